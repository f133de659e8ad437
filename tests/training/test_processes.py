"""Two processes against one, in real launches: the same losses, accuracies and weights."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.network.small_network import ALL_LEVELS
from tests.processes import wait_for, workers_of
from tests.repository import REPOSITORY
from tests.training.small_training import small_run, train_params

EVERYTHING = {
    "prototypes.levels": list(ALL_LEVELS),
    "weights.contrastive": 0.5,
    "weights.consistency": 0.3,
    "same_class_positives": True,
    "temperatures.learn": True,
}
SETTINGS: dict[str, dict[str, Any]] = {
    # One step an epoch, so that the history holds every step; 51 posts are 26 and 25.
    "every_step": {"epochs": 20, "batch_size": 51, **EVERYTHING},
    # 51 posts are steps of 25, 25 and 1, where one process has filler alone; a step is accumulated in passes of 4.
    "accumulated": {"epochs": 7, "batch_size": 25, "micro_batch": 4},
    # Instance prompts; temperatures and projections that no term reaches must not stop the processes.
    "unreached": {"prompts.instance_length": 2, "temperatures.learn": True, "attention.prototypes": ["visual"]},
    "unfrozen": {"unfreeze_layers": 1, "weights.global_prompt": 0.0},
}


def launch(settings: dict[str, dict[str, Any]], tower: Path, folder: Path) -> subprocess.Popen[str]:
    (folder / "settings.json").write_text(json.dumps(settings))
    environment = {**os.environ, "POPULARITY_TOPOLOGY": "two_cpu_processes", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(REPOSITORY / "src"), "POPULARITY_WORKERS": "0", "POPULARITY_RESTARTS": "1"}
    command = [sys.executable, "-m", "popularity.launch", "tests.training.launched"]
    command += [str(path) for path in (folder / "settings.json", tower, folder)]
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def two(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of two processes under every setting."""
    folder = tmp_path_factory.mktemp("two")
    process = launch(SETTINGS, bert, folder)
    _, messages = process.communicate(timeout=170)
    assert process.returncode == 0, messages
    return folder


def test_a_lost_process_costs_no_more_than_an_epoch(two: Path, bert: Path, tmp_path: Path) -> None:
    """The group goes on from the last checkpoint, to the bits of two undisturbed processes."""
    process = launch({"every_step": SETTINGS["every_step"]}, bert, tmp_path)
    stored = tmp_path / "every_step" / "state" / "checkpoint" / "history.json"
    wait_for(lambda: stored.is_file() and len(json.loads(stored.read_text())) >= 3, process)
    os.kill(workers_of(process)[1], signal.SIGKILL)
    _, messages = process.communicate(timeout=170)
    assert process.returncode == 0, messages
    (message,) = [line for line in messages.splitlines() if "resuming after epoch" in line][:1]
    found = re.search(r"resuming after epoch (\d+), step 0 of the next", message)
    assert found
    assert 3 <= int(found[1]) < SETTINGS["every_step"]["epochs"]
    for name in ("history.json", "weights.safetensors"):
        assert (tmp_path / "every_step" / name).read_bytes() == (two / "every_step" / name).read_bytes()


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_equal_one(name: str, two: Path, bert: Path, tmp_path: Path) -> None:
    stored = json.loads((two / name / "history.json").read_text())
    assert stored["processes"] == 2
    assert stored["seconds"] <= 3600  # a process that hangs is noticed within an hour
    history, weights = small_run(train_params(**SETTINGS[name]), bert, tmp_path / "state")
    assert len(history) == len(stored["history"])
    for one, other in zip(history, stored["history"], strict=True):
        assert one.keys() == other.keys()
        for value in one:
            if "top" in value:
                assert one[value] == other[value], value
            else:
                assert other[value] == pytest.approx(one[value], rel=1e-5), value
    assert {value[6:] for value in history[0] if value.startswith("train/")} == TRAINED[name]
    for key, values in load_file(two / name / "weights.safetensors").items():
        torch.testing.assert_close(
            with_gradient(key, values), with_gradient(key, weights[key]), rtol=1e-3, atol=1e-4, msg=key
        )


def with_gradient(name: str, values: Tensor) -> Tensor:
    """Without the biases of keys: a softmax does not see them, so AdamW blows up what rounding leaves of their
    gradients."""
    if name.endswith("in_proj_bias"):
        return values.view(3, -1)[[0, 2]]
    return values[:0] if name.endswith("key.bias") else values


AS_PRINTED = {"loss", "global_prompt", "local_prompt", "attention"}
TRAINED = {
    "every_step": AS_PRINTED | {"attention_category", "attention_concept", "contrastive", "consistency"},
    "accumulated": AS_PRINTED,
    "unreached": AS_PRINTED,
    "unfrozen": AS_PRINTED - {"global_prompt"},
}
