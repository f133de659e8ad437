"""Fixtures for every test: a tiny data set with a known truth, and no way to a model hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from popularity.demo import DemoParams, generate
from tests.pipeline.conftest import Clone, make_clone, switch_to_tiny

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
    """A clone whose graph has run once with the real DVC; what it printed is in `.git/first-run`."""
    made = make_clone(tmp_path_factory.mktemp("clone"))
    switch_to_tiny(made)
    (made.root / ".git" / "first-run").write_text(made.run("dvc", "repro").stdout, encoding="utf-8")
    return made
