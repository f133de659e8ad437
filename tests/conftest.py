"""Fixtures for every test: a tiny data set with a known truth, and no way to a model hub."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
import torch
from filelock import FileLock

from popularity.demo import DemoParams, generate
from tests.clones import Clone, make_clone, switch_to_tiny
from tests.forks import serving

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the stages set it: see stages/__init__.py


class Dataset(NamedTuple):
    """A generated data set: its root in the official layout, and the folder of its truth."""

    root: Path
    truth: Path


@pytest.fixture(autouse=True)
def fresh_accelerator_state() -> Iterator[None]:
    """An accelerator keeps its precision for the whole process: the next test may ask for another."""
    yield
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state()


@pytest.fixture(scope="session")
def tiny_params() -> DemoParams:
    return DemoParams(
        seed=20,
        posts=300,
        users=80,
        subcategories=8,
        image_size=32,
        test_fraction=0.3,
        user_file="A",
        trend=2.3,
        trend_along="time",
    )


@pytest.fixture(scope="session")
def tiny_dataset(tiny_params: DemoParams, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("tiny")
    dataset = Dataset(folder / "data", folder / "truth")
    generate(tiny_params, *dataset)
    return dataset


PROGRAMS_VARIABLE = "POPULARITY_TEST_PROGRAMS"


def pytest_configure(config: pytest.Config) -> None:
    """Starts, once for all workers of pytest-xdist, what stands in for Python: see tests/forks.py."""
    if not hasattr(config, "workerinput"):
        stack = ExitStack()
        config.add_cleanup(stack.close)
        folder = stack.enter_context(TemporaryDirectory(prefix="programs-"))
        stack.enter_context(serving(Path(folder)))
        os.environ[PROGRAMS_VARIABLE] = folder


@pytest.fixture(scope="session")
def programs() -> Path:
    """A folder with a `python` that starts in milliseconds: see tests/forks.py."""
    return Path(os.environ[PROGRAMS_VARIABLE])


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Clone:
    """A clone whose graph has run once with the real DVC and Python; what it printed is in `.git/first-run`.

    What tests run in it and its copies starts by `programs`. One of the workers of pytest-xdist runs the graph, the
    others copy it: tests change theirs.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return Clone(_run_graph(folder / "clone").root, programs)
    run_once = folder.parent / "clone"
    with FileLock(f"{run_once}.lock"):
        if not run_once.exists():
            _run_graph(run_once.with_suffix(".new")).root.rename(run_once)
    shutil.copytree(run_once, folder / "clone", symlinks=True)
    return Clone(folder / "clone", programs)


def _run_graph(root: Path) -> Clone:
    shutil.rmtree(root, ignore_errors=True)  # of another worker's failed try
    made = make_clone(root)
    switch_to_tiny(made)
    (root / ".git" / "first-run").write_text(made.run("dvc", "repro").stdout, encoding="utf-8")
    return made


# A test with one of these runs stages or needs a server: it is slow, wherever it stands.
SLOW_FIXTURES = {"clone", "postgresql", "small_run"}
# Files and single tests that are slow, as are those of the benchmarks; other files mark theirs themselves.
SLOW = {
    "encoders/test_embed_stages",
    "encoders/test_lost_processes",
    "encoders/test_prompting::test_runs_without_the_libraries_of_the_tables",
    "encoders/test_weights::test_a_branch_without_safetensors",
    "encoders/test_weights::test_fetch_then_run_offline",
    "features/test_groups::test_the_number_of_threads_changes_no_bit",
    "features/test_text_components::test_the_number_of_threads_changes_no_bit",
    "leakage/test_labels",
    "leakage/test_rows",
    "network/test_losses::test_two_processes_see_each_others_posts",
    "network/test_model::test_training_needs_neither_tables_nor_trees_nor_dvc_nor_the_compiler",
    "inference/test_embed_posts_stage",
    "pipeline/test_where_it_runs",
    "report/test_report_stage",
    "stack/test_lightgbm_dask",
    "stack/test_fit",
    "stack/test_model",
    "core/test_parallel",
    "stack/test_stack_stage",
    "test_launch",
    "test_two_nodes",
    "text_model/test_processes",
    "text_model/test_text_model",
    "text_model/test_towers",
    "training/test_loop",
    "training/test_processes",
    "training/test_train_stage",
    "tuning/test_network",
    "tuning/test_study",
    "tuning/test_tune_stage",
}
# Files that take minutes, in the order in which they start. The first runs the graph for all; the three after it need
# none, so that the other worker does not wait for it.
FIRST = (
    "faults/test_stages",
    "tuning/test_tune_stage",
    "test_launch",
    "encoders/test_lost_processes",
    "pipeline/test_experiments",
    "pipeline/test_documents",
    "pipeline/test_paper",
    "pipeline/test_graph",
    "pipeline/test_own_table",
    "pipeline/test_other_encoders",
    "pipeline/test_reruns",
    "training/test_processes",
    "training/test_train_stage",
    "text_model/test_processes",
)
TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is slow, skips what needs a GPU where there is none, and puts the longest files first.

    The files of FIRST come first, then the others with slow tests. At the end one worker would run the last of the long
    files and the others none.
    """
    for item in items:
        benchmark = _name(item).startswith("benchmarks/")
        names = {_name(item), f"{_name(item)}::{getattr(item, 'originalname', None)}"}
        if benchmark or names & SLOW or SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
    order = {name: index for index, name in enumerate(FIRST)}
    slow = {_name(item) for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: order.get(_name(item), len(order) + (_name(item) not in slow)))


def _name(item: pytest.Item) -> str:
    """The file of a test, below tests/ and without its ending."""
    return item.path.relative_to(TESTS).with_suffix("").as_posix()
