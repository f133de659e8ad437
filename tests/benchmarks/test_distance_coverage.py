"""Coverage by distance, on posts whose errors grow with the distance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.distance_coverage import coverage_rows, main, valid_rows
from popularity.core import paths
from popularity.core.contracts import FOLDS, POSTS, PREDICTIONS, TIME_SCHEMES, write_table
from popularity.core.errors import DataError
from popularity.validation import make_splits
from tests.random_posts import random_posts
from tests.stack.small_stack import SPLIT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose errors are four times as large in the second half of the holdout's days."""
    folder = tmp_path_factory.mktemp("run")
    posts = random_posts(2, train=900, test=60, users=200).sort("pid")
    splits = make_splits(posts, SPLIT)[0]
    write_table(posts, folder / paths.POSTS, POSTS)
    write_table(splits, folder / paths.SPLITS, FOLDS)
    valid = splits.filter(pl.col("scheme").is_in(TIME_SCHEMES), role="valid").join(posts, on="pid").sort("pid")
    middle = valid.filter(scheme="holdout")["posted_at"].median()
    far = (pl.col("scheme") == "holdout") & (pl.col("posted_at") > middle)
    noise = pl.Series(np.random.default_rng(0).normal(size=valid.height))
    rows = valid.with_columns(
        prediction=pl.col("label") + noise * pl.when(far).then(4.0).otherwise(1.0), seed=pl.lit(0, pl.Int64),
        model=pl.lit("stack"), error_scale=pl.lit(0.8),
    )  # fmt: skip
    table = rows.select(list(PREDICTIONS.columns)).sort(PREDICTIONS.key)
    write_table(table, folder / paths.ENSEMBLE_PREDICTIONS, PREDICTIONS)
    return folder


def test_coverage_falls_where_the_errors_grow(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = list(coverage_rows(folder, 0.8, bins=2, resamples=50))
    by_scheme = {scheme: [row for row in found if row["scheme"] == scheme] for scheme in TIME_SCHEMES}
    assert all(len(rows) == 2 for rows in by_scheme.values())
    assert all(abs(row["coverage"] - 0.8) < 0.1 for row in by_scheme["forward"])
    near, far = by_scheme["holdout"]
    assert abs(near["coverage"] - 0.8) < 0.12
    assert far["coverage"] < 0.5
    assert far["low"] <= far["coverage"] <= far["high"]
    rows = valid_rows(folder)
    assert sum(row["posts"] for row in found) == rows.height
    assert rows["days"].min() > 0  # type: ignore[operator]
    main([str(folder), "--bins", "2", "--resamples", "10"])
    assert capsys.readouterr().out.count("holdout") == 2


def test_a_run_that_is_not_finished_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"predictions\.parquet: missing(.|\n)*dvc repro ensemble"):
        valid_rows(tmp_path)
