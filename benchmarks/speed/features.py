"""From published files to features: the tasks of `python -m benchmarks.speed features`, without torch in memory."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.measuring import REPOSITORY, Task, run_task
from benchmarks.speed import pandas_features
from popularity.core.atomic import atomic_directory
from popularity.core.config import PARAMS_FILE, load_params, parse_section
from popularity.core.contracts import FOLDS, POSTS, read_table, write_table
from popularity.demo import DemoParams, generate
from popularity.features.context import class_features, tag_features, user_features
from popularity.features.target_statistics import target_statistics
from popularity.validation import SplitParams, make_splits
from stages import ingest

TRAINING_POSTS, TEST_POSTS, USERS, CLASSES = 305_613, 180_581, 60_093, 77  # of SMPD
SMPD_POSTS = TRAINING_POSTS + TEST_POSTS
KEYS = ("uid", "subcategory", "concept")
PRIOR = 3.0
OURS, OTHER = "ours.parquet", "pandas.parquet"


def scaled(posts: int, user_file: str, side: int = 96) -> DemoParams:
    """SMPD's proportions at another number of posts; `side`: pixels of the longer side of an image."""
    values = {
        "seed": 20,
        "posts": posts,
        "users": max(10, round(posts * USERS / SMPD_POSTS)),
        "subcategories": CLASSES,
        "image_size": side,
        "test_fraction": TEST_POSTS / SMPD_POSTS,
        "user_file": user_file,
        "trend": 2.3,
        "trend_along": "time",
    }
    return parse_section("demo", values, DemoParams, "the flags")


def task_data(root: Path, posts: str, user_file: str, images: str, side: str) -> None:
    """Writes a data set in the official layout below `root`: data/ and truth/."""
    with atomic_directory(root) as out:
        generate(scaled(int(posts), user_file, int(side)), out / "data", out / "truth", int(images))


def task_ingest(root: Path) -> None:
    names = ("posts", "users", "columns", "quarantine")
    tables = [word for name in names for word in (f"--{name}", str(root / f"{name}.parquet"))]
    summaries = ["--summary", str(root / "ingest.json"), "--resources", str(root / "resources.json")]
    ingest.main(["--root", str(root / "data"), *tables, *summaries])


def task_split(root: Path) -> None:
    posts = read_table(root / "posts.parquet", POSTS)
    splits, _ = make_splits(posts, load_params("split", SplitParams, REPOSITORY / PARAMS_FILE))
    write_table(splits, root / "splits.parquet", FOLDS)


def task_features(root: Path) -> None:
    """Counts and target statistics of the refit on all labelled posts, as stage featurize computes them."""
    posts = pl.read_parquet(root / "posts.parquet")
    table = posts.lazy().select("pid")
    for made in (user_features, class_features, tag_features):
        table = table.join(made(posts.lazy()), on="pid", how="left", validate="1:1")
    role = pl.when(pl.col("split") == "train").then(pl.lit("train")).otherwise(pl.lit("valid"))
    rows = posts.select("pid", "posted_at", "label", *KEYS, role=role)
    statistics = target_statistics(rows, KEYS, PRIOR, timedelta(days=1))
    table.collect().join(statistics, on="pid", how="left", validate="1:1").sort("pid").write_parquet(root / OURS)


def task_pandas(root: Path) -> None:
    """The same columns in pandas."""
    pandas_features.write(root / "posts.parquet", root / OTHER, PRIOR)


def task_difference(root: Path) -> dict[str, float]:
    """The largest difference, in its own process, as later tasks would inherit its peak of memory."""
    return {"worst": difference(pl.read_parquet(root / OURS), pl.read_parquet(root / OTHER))}


def difference(ours: pl.DataFrame, other: pl.DataFrame) -> float:
    """The largest difference between two tables sorted by pid, over 1 or the value where that is larger.

    Raises:
        RuntimeError: a table has other posts or columns, or a value is missing in one of the two.
    """
    if not ours["pid"].equals(other["pid"]) or set(ours.columns) != set(other.columns):
        raise RuntimeError(f"other posts or columns than with pandas: {set(ours.columns) ^ set(other.columns)}")
    worst = 0.0
    for column in ours.drop("pid").columns:
        mine, theirs = (frame[column].cast(pl.Float64).fill_null(float("nan")).to_numpy() for frame in (ours, other))
        if (np.isnan(mine) != np.isnan(theirs)).any():
            raise RuntimeError(f"{column} is missing in other rows than with pandas")
        worst = max(worst, float(np.nanmax(np.abs(mine - theirs) / np.maximum(np.abs(mine), 1), initial=0.0)))
    return worst


TASKS: dict[str, Task] = {
    "data": task_data,
    "ingest": task_ingest,
    "split": task_split,
    "features": task_features,
    "pandas": task_pandas,
    "difference": task_difference,
}

if __name__ == "__main__":
    run_task(TASKS, sys.argv[1:])
