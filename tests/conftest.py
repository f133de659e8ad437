"""Fixtures for every test: a tiny data set with a known truth, and no way to a model hub."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from filelock import FileLock

from popularity.demo import DemoParams, generate
from tests.clones import Clone, make_clone, switch_to_tiny

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the stages set it: see stages/__init__.py


class Dataset(NamedTuple):
    """A generated data set: its root in the official layout, and the folder of its truth."""

    root: Path
    truth: Path


@pytest.fixture(scope="session")
def tiny_params() -> DemoParams:
    return DemoParams(
        seed=20, posts=300, users=80, subcategories=8, image_size=32, test_share=0.3, user_file="A", trend=2.3
    )


@pytest.fixture(scope="session")
def tiny_dataset(tiny_params: DemoParams, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("tiny")
    dataset = Dataset(folder / "data", folder / "truth")
    generate(tiny_params, *dataset)
    return dataset


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone whose graph has run once with the real DVC; what it printed is in `.git/first-run`.

    One of the workers of pytest-xdist runs the graph, the others copy it: tests change theirs.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return _run_graph(folder / "clone")
    run_once = folder.parent / "clone"
    with FileLock(f"{run_once}.lock"):
        if not run_once.exists():
            _run_graph(run_once.with_suffix(".new")).root.rename(run_once)
    shutil.copytree(run_once, folder / "clone", symlinks=True)
    return Clone(folder / "clone")


def _run_graph(root: Path) -> Clone:
    shutil.rmtree(root, ignore_errors=True)  # of another worker's failed try
    made = make_clone(root)
    switch_to_tiny(made)
    (root / ".git" / "first-run").write_text(made.run("dvc", "repro").stdout, encoding="utf-8")
    return made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first: at the end one worker would run the last of them and the others none.

    The first runs the graph for all; the two after it need none, so that the other worker does not wait for it.
    """
    long = ("stages", "tune_stage", "lost_processes", "experiments", "reruns", "graph", "readme")
    places = {f"test_{name}.py": place for place, name in enumerate(long)}
    items.sort(key=lambda item: places.get(item.path.name, len(long)))
