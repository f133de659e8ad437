from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Dataset
from tests.report.small_run import SmallRun, make_run


@pytest.fixture(scope="session")
def small_run(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return make_run(tiny_dataset.root, tmp_path_factory.mktemp("run") / "all")


@pytest.fixture(scope="session")
def written(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with report.html and model_card.md of that run."""
    out = tmp_path_factory.mktemp("written")
    small_run.write(out)
    return out
