"""The folds of the text model in the processes of a real launch: divided, resumed after a kill, the same bytes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import polars as pl
import pytest
import torch

from popularity.core.contracts import MEMBER_PREDICTIONS, read_table
from popularity.core.tensors import torch_threads
from popularity.text_model.folds import FoldInputs, parallel_fits
from stages import text_model
from tests.encoders.tiny_encoders import encoder_sections, save_bert, text_params
from tests.processes import kill_everything, wait_for
from tests.random_posts import random_posts
from tests.repository import REPOSITORY, stage_flags
from tests.stack.small_stack import tree_bytes
from tests.text_model.test_text_model import PARAMS, write_inputs

SCHEMES = ["holdout", "forward"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the stage reads, in the working directory."""
    monkeypatch.chdir(tmp_path)
    encoder = text_params(weights=f"path:{save_bert(tmp_path / 'bert')}", max_tokens=12)
    posts = random_posts(3, train=200, test=40, users=60)
    write_inputs(posts, tmp_path)
    params = replace(PARAMS, epochs=1)
    sections = {**encoder_sections(text=encoder), "text_model": asdict(params), "stack": {"schemes": SCHEMES}}
    Path("params.yaml").write_text(json.dumps(sections), encoding="utf-8")
    shutil.copytree(REPOSITORY / "configs" / "accelerate", "configs/accelerate")
    return tmp_path


def arguments(out: str) -> list[str]:
    given = {"posts": "posts.parquet", "splits": "splits.parquet", "features": "features", "state": "state"}
    return stage_flags("text_model", Path(), **given, predictions=f"{out}/predicted", models=f"{out}/models")


def launch_two(out: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "popularity.launch", "stages.text_model", *arguments(out)]
    own = {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'src'}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    own |= {"POPULARITY_TOPOLOGY": "two_cpu_processes"}
    return subprocess.Popen(command, env={**os.environ, **own}, stderr=subprocess.PIPE, text=True)


def finished() -> list[Path]:
    return sorted(Path("state").rglob("*.parquet"))


def test_two_processes_divide_the_folds_and_a_killed_run_goes_on(folder: Path) -> None:
    with torch_threads(1):  # as the processes have
        text_model.main(arguments("one"))
    folds = read_table(folder / "one/predicted/predictions.parquet", MEMBER_PREDICTIONS)["scheme", "fold"].n_unique()
    process = launch_two("two")
    wait_for(lambda: len(finished()) >= 2, process)
    kill_everything(process)
    process.communicate()
    kept = finished()
    assert 2 <= len(kept) < folds
    process = launch_two("two")
    _, messages = process.communicate(timeout=300)
    assert process.returncode == 0, messages
    shares = [int(count) for count in re.findall(r"process \d of 2 has (\d+) folds", messages)]
    assert sorted(shares) == [(folds - len(kept)) // 2, -(-(folds - len(kept)) // 2)]
    assert tree_bytes(Path("one/predicted")) == tree_bytes(Path("two/predicted"))
    assert Path("one/models/model.safetensors").read_bytes() == Path("two/models/model.safetensors").read_bytes()
    assert not list(Path("state/text_model").iterdir())


@pytest.mark.parametrize(
    ("device", "processes", "parallel"), [("cpu", "1", 4), ("cpu", "2", 2), ("cpu:1", "3", 1), ("cuda:1", "1", 1)]
)
def test_fits_at_the_same_time(
    device: str, processes: str, parallel: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All processes of a machine together: parallel_folds on CPUs, one a GPU."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    params = replace(PARAMS, parallel_folds=4)
    inputs = FoldInputs(pl.DataFrame(), tmp_path, text_params(), params, torch.device(device), tmp_path)
    assert parallel_fits(inputs) == parallel
