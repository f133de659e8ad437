"""Stages run where they were asked to: on the CPU by its topologies, also where CUDA seems to be available."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from popularity.encoders.sharding import start_processes
from popularity.network.accelerator import make_accelerator
from popularity.network.inputs import EncoderPair
from stages import embed_posts, text_model
from tests.encoders.tiny_encoders import encoder_sections, make_images, save_bert, text_params
from tests.random_posts import random_posts
from tests.repository import REPOSITORY, STAGES, stage_flags
from tests.text_model.test_text_model import PARAMS, write_inputs
from tests.training.test_train_stage import Project, make_project

SOURCES = REPOSITORY / "src" / "popularity"
# The only files that look for a GPU; all others take their device from `start_processes`.
DECIDES = {"core/gpus.py", "encoders/precision.py", "encoders/sharding.py"}
QUESTIONS = {"is_available", "device_count", "is_bf16_supported", "current_device", "set_device", "current_accelerator"}


@pytest.fixture
def mocked_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CUDA seems to be available; its first use is an error."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    # AdamW asks the current GPU whether it records a graph, also for parameters on the CPU.
    monkeypatch.setattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda _: None)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(params=["cpu", "two_cpu_processes"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the topologies, of which POPULARITY_TOPOLOGY names one of CPUs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POPULARITY_WORKERS", "0")
    monkeypatch.setenv("POPULARITY_TOPOLOGY", request.param)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    shutil.copytree(REPOSITORY / "configs" / "accelerate", "configs/accelerate")
    return tmp_path


@pytest.mark.usefixtures("mocked_cuda")
def test_the_topology_decides(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert start_processes().device.type == make_accelerator("auto").device.type == "cpu"
    monkeypatch.delenv("POPULARITY_TOPOLOGY")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert start_processes().device.type == "cuda"  # else the other tests could not fail
    del folder


@pytest.mark.usefixtures("mocked_cuda")
def test_encoders_and_network_run_on_the_cpu(folder: Path) -> None:
    """embed_image, embed_text, prototypes, train and embed_posts."""
    images = make_images(folder)
    text = text_params(weights=f"path:{save_bert(folder / 'bert')}", max_tokens=12, precision="auto")
    project = make_project(folder, EncoderPair(images.params(precision="auto"), text))
    project.write_params(epochs=1, precision="auto")
    assert project.train("first")
    _embed_posts(project)
    assert (folder / "embedded/scalars.parquet").exists()


def _embed_posts(project: Project) -> None:
    sections = encoder_sections(project.towers.image, project.towers.text)
    sections |= {"embed_posts": {"batch_size": 8, "shard_rows": 16, "nearest": 3}}
    (project.folder / "params.yaml").write_text(json.dumps(sections), encoding="utf-8")
    given = {"root": "data", "posts": "posts.parquet", "images": "images.parquet", "network": "first/network"}
    given |= {name: name for name in ("image", "text", "prototypes", "state")}
    AcceleratorState._reset_state()
    embed_posts.main(
        stage_flags("embed_posts", project.folder, **given, out="embedded", explain="explain", resources="posts.json")
    )


@pytest.mark.usefixtures("mocked_cuda")
def test_the_text_model_runs_on_the_cpu(folder: Path) -> None:
    encoder = text_params(weights=f"path:{save_bert(folder / 'bert')}", max_tokens=12, precision="auto")
    write_inputs(random_posts(3, train=120, test=30, users=40), folder)
    params = asdict(replace(PARAMS, epochs=1))
    sections = {**encoder_sections(text=encoder), "text_model": params, "stack": {"schemes": []}}
    Path("params.yaml").write_text(json.dumps(sections), encoding="utf-8")
    given = {"posts": "posts.parquet", "splits": "splits.parquet", "features": "features", "state": "state"}
    text_model.main(stage_flags("text_model", folder, **given, predictions="predicted", models="models"))
    assert (folder / "models/model.safetensors").exists()


def test_nothing_else_looks_for_a_gpu() -> None:
    """A file that asks torch itself, or names the device, would take the GPU that a topology forbids."""
    found = set()
    for file in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            asks = (
                isinstance(node, ast.Attribute)
                and node.attr in QUESTIONS
                and ast.unparse(node.value) in ("torch.cuda", "torch.accelerator", "cuda")
            )
            moves = isinstance(node, ast.Call) and any(
                isinstance(word, ast.Constant) and str(word.value).startswith("cuda")
                for call in ast.walk(node)
                if isinstance(call, ast.Call) and ast.unparse(call.func).endswith((".to", "torch.device"))
                for word in ast.walk(call)
            )
            if asks or moves:
                found.add(file.relative_to(SOURCES).as_posix())
    assert found <= DECIDES
    assert found


def test_stages_that_compute_start_through_the_launcher() -> None:
    """A stage that takes a device: the others compute with numpy, polars and LightGBM."""
    for name in STAGES:
        code = (REPOSITORY / "stages" / f"{name}.py").read_text(encoding="utf-8")
        launched = "popularity.launch" in STAGES[name]["cmd"]
        assert launched == (name in ("embed_image", "embed_text", "train", "embed_posts", "text_model")), name
        assert not launched or "POPULARITY_TOPOLOGY" in code
