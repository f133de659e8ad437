"""Finished runs are compared post by post."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.runs import main, predictions_of
from popularity.core import paths
from popularity.core.contracts import POSTS, PREDICTIONS, write_table
from popularity.core.errors import DataError
from tests.random_posts import random_posts


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two runs: the second errs half as much."""
    posts = random_posts(3, train=200, test=10, users=60)
    valid = posts.filter(pl.col("label").is_not_null()).sort("pid")
    noise = np.random.default_rng(0).normal(size=valid.height)
    found = []
    for name, size in (("one", 1.0), ("two", 0.5)):
        folder = tmp_path / name
        for path in (paths.POSTS, paths.ENSEMBLE_PREDICTIONS):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_table(posts, folder / paths.POSTS, POSTS)
        seeds = [
            valid.select(
                "pid", scheme=pl.lit("forward"), fold=pl.lit(0, pl.Int32),
                seed=pl.lit(seed, pl.Int64), model=pl.lit("stack"),
                prediction=pl.col("label") + pl.Series(size * noise + shift),
                error_scale=pl.lit(1.0),
            )
            for seed, shift in ((0, -1.0), (1, 1.0))
        ]  # fmt: skip
        write_table(
            pl.concat(seeds).select(list(PREDICTIONS.columns)).sort(PREDICTIONS.key),
            folder / paths.ENSEMBLE_PREDICTIONS,
            PREDICTIONS,
        )
        found.append(folder)
    return found


def test_the_difference_is_that_of_the_mean_over_seeds(folders: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    rows = predictions_of(folders, "forward", "stack")
    one, two = (np.abs(rows["label"] - rows[str(folder)]).mean() for folder in folders)
    assert two == pytest.approx(one / 2)
    main([*map(str, folders), "--schemes", "forward", "--resamples", "200"])
    lines = [line for line in capsys.readouterr().out.splitlines() if " mae " in line]
    assert f"{two:.4f}" in lines[1]
    assert f"{two - one:+.4f} [-" in lines[1]
    assert "better" in lines[1]
    assert "better" not in lines[0]


def test_runs_on_other_posts_are_refused(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prediction of stack in holdout"):
        predictions_of(folders, "holdout", "stack")
    other = tmp_path / "other"
    shutil.copytree(folders[1], other)
    table = pl.read_parquet(other / paths.ENSEMBLE_PREDICTIONS)
    write_table(table.filter(pl.col("pid") != table["pid"][0]), other / paths.ENSEMBLE_PREDICTIONS, PREDICTIONS)
    with pytest.raises(DataError, match="other posts than in"):
        predictions_of([folders[0], other], "forward", "stack")
