"""Fits at the same time: their order, their number, what a failure does, and what they may not change."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from threadpoolctl import threadpool_info

from benchmarks.measuring import environment
from popularity.core.errors import ClusterError, DataError
from popularity.core.parallel import ordered_map
from tests.processes import wait_for
from tests.stack.small_stack import ALL_PARTS, posts_with_signal, run_all, tree_bytes


def blas_threads(_: object = None) -> set[int]:
    import numpy.linalg  # noqa: F401, PLC0415  (in a fresh process nothing else has loaded it)

    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.mark.parametrize("parallel", [1, 2])
def test_results_come_in_the_order_of_the_tasks(parallel: int) -> None:
    def work(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    tasks = [0.4, 0.0, 0.2, 0.0]
    assert list(ordered_map(work, tasks, parallel=parallel, threads=1)) == tasks


def test_two_run_at_a_time(tmp_path: Path) -> None:
    def meet(name: str) -> int:
        (tmp_path / name).touch()
        for _ in range(600):
            if len(list(tmp_path.iterdir())) == 2:
                return os.getpid()
            time.sleep(0.1)
        raise TimeoutError(name)

    one, other = ordered_map(meet, ["one", "other"], parallel=2, threads=1)
    assert len({one, other, os.getpid()}) == 3


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_failure_is_raised_as_it_was_and_ends_the_rest(parallel: int, tmp_path: Path) -> None:
    def work(task: int) -> None:
        (tmp_path / str(task)).touch()
        if task == 1:
            raise DataError("no label", file="train_label.txt", row=1, fix="dvc repro ingest")
        while task and not (tmp_path / "1").exists():  # whose process may start later than the others'
            time.sleep(0.01)
        time.sleep(0.1)

    with pytest.raises(DataError, match=r"train_label\.txt, row 1: no label") as caught:
        list(ordered_map(work, range(100), parallel=parallel, threads=1))
    assert caught.value.fix == "dvc repro ingest"
    assert len(list(tmp_path.iterdir())) < 50


def test_a_killed_process_is_an_error_for_people() -> None:
    def work(_: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ClusterError, match=r"lower parallel_folds"):
        list(ordered_map(work, [0], parallel=2, threads=1))
    assert list(ordered_map(str, [0], parallel=2, threads=1)) == ["0"]  # others work again


ENDLESS = """
import os, sys, time
from pathlib import Path
from popularity.core.parallel import ordered_map

def work(name):
    (Path(sys.argv[1]) / name).write_text(str(os.getpid()))
    time.sleep(600)

list(ordered_map(work, ["one", "other"], parallel=2, threads=1))
"""


def test_the_fits_of_a_killed_run_end_with_it(tmp_path: Path) -> None:
    run = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)], env=environment())
    wait_for(lambda: [file.read_text() != "" for file in tmp_path.iterdir()] == [True, True], run)
    fits = [Path("/proc") / file.read_text() / "cmdline" for file in tmp_path.iterdir()]
    assert all(fit.read_bytes() for fit in fits)
    run.kill()
    run.wait()
    deadline = time.monotonic() + 60
    while any(fit.exists() and fit.read_bytes() for fit in fits):  # one that is not waited for has no words
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("parallel", [1, 2])
def test_linear_algebra_takes_the_threads_of_a_fit_and_gets_its_own_back(parallel: int) -> None:
    before = blas_threads()
    assert list(ordered_map(blas_threads, [0], parallel=parallel, threads=1)) == [{1}]
    assert blas_threads() == before


def test_how_many_folds_are_fitted_at_a_time_is_no_part_of_the_result(tmp_path: Path) -> None:
    posts, blocks = posts_with_signal(3)
    found = []
    for parallel in (1, 2):
        run = run_all(posts, blocks, tmp_path / str(parallel), params=replace(ALL_PARTS, parallel_folds=parallel))
        found.append((run.predictions.to_dicts(), run.importance.to_dicts(), tree_bytes(run.folder)))
    assert found[0] == found[1]


def test_the_stack_needs_no_torch() -> None:
    """It takes seconds to load, in each of the stages and in each process of a fit."""
    code = "import sys, stages.tune, stages.stack, stages.ensemble, stages.evaluate; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), check=True, capture_output=True, text=True, timeout=120
    )
    loaded = set(done.stdout.split())
    assert "lightgbm" in loaded
    assert not loaded & {"torch", "transformers", "timm", "accelerate"}
