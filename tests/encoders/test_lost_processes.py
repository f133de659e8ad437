"""Processes of a real launch of the stage are killed: others do what is left undone, once, to the same bytes."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from popularity.encoders.image_blocks import embed_images
from stages import embed_image
from tests.encoders.tiny_encoders import Images, encoder_sections, make_images
from tests.processes import kill_everything, wait_for, workers_of
from tests.repository import REPOSITORY, stage_flags


@pytest.fixture
def image_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Images]:
    """19 images, which are 4 shards; what one undisturbed process makes of them is in `whole`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POPULARITY_WORKERS", "0")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes have: another count may sum in another order
    made = make_images(tmp_path)
    embed_images(made.root, made.table, Path("whole"), made.params())
    shutil.copytree(REPOSITORY / "configs" / "accelerate", "configs/accelerate")
    YAML().dump(encoder_sections(made.params()), Path("params.yaml"))
    yield made
    torch.set_num_threads(threads)


class Gate:
    """A named pipe instead of a file: its reader waits until the gate opens."""

    def __init__(self, path: Path) -> None:
        self.path, self.content = path, path.read_bytes()
        path.unlink()
        os.mkfifo(path)

    def open(self) -> None:
        self.path.unlink()
        self.path.write_bytes(self.content)


def arguments(image_set: Images) -> list[str]:
    return stage_flags("embed_image", Path(), root=image_set.root, images=image_set.table, out="out")


def launch(image_set: Images, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "popularity.launch", "stages.embed_image", *arguments(image_set)]
    own = {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'src'}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    own |= {"POPULARITY_TOPOLOGY": "two_cpu_processes", **environment}
    return subprocess.Popen(command, env={**os.environ, **own}, stderr=subprocess.PIPE, text=True)


def shards() -> list[str]:
    return sorted(path.name for path in Path(".state").glob("embed_image/*/shard-*.npz"))


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def test_a_lost_process_is_replaced_and_its_parts_are_shared_out(image_set: Images) -> None:
    gate = Gate(image_set.root / "zoo/single.jpg")
    process = launch(image_set, POPULARITY_RESTARTS="1")
    wait_for(lambda: len(shards()) == 3, process)
    lost = workers_of(process)[1]
    gate.open()
    os.kill(lost, signal.SIGKILL)
    _, messages = process.communicate(timeout=300)
    assert process.returncode == 0, messages
    assert contents("out") == contents("whole")
    said = re.findall(r"embed_image: ((?:process )?\d of \d .*shard.*)", messages)  # a progress bar may stand before it
    again = [
        "process 0 of 2 has 1 shards",
        "process 1 of 2 has 0 shards",
        "3 of 4 shards are there from an earlier run",
    ]
    first = ["process 0 of 2 has 2 shards", "process 1 of 2 has 2 shards"]
    assert sorted(said) == sorted(first + again)
    assert not list(Path(".state/embed_image").iterdir())


def test_what_two_processes_left_is_finished_by_others(image_set: Images, caplog: pytest.LogCaptureFixture) -> None:
    """By one process, which is this one, and by three."""
    caplog.set_level(logging.INFO)
    gate = Gate(image_set.root / "zoo/single.jpg")
    process = launch(image_set)
    wait_for(lambda: len(shards()) == 3, process)
    kill_everything(process)
    process.communicate()
    gate.open()
    shutil.copytree(".state", "left")
    embed_image.main(arguments(image_set))
    assert "3 of 4 shards are there from an earlier run" in caplog.text
    assert contents("out") == contents("whole")
    shutil.rmtree("out")
    shutil.copytree("left", ".state", dirs_exist_ok=True)
    topology = Path("configs/accelerate/two_cpu_processes.yaml")
    topology.write_text(topology.read_text().replace("num_processes: 2", "num_processes: 3"))
    process = launch(image_set)
    _, messages = process.communicate(timeout=300)
    assert process.returncode == 0, messages
    assert "embed_image: 3 of 4 shards are there from an earlier run" in messages
    assert contents("out") == contents("whole")
