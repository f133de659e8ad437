"""Target statistics of train rows against those of valid rows."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest

from popularity.core.contracts import FoldKey
from popularity.features import FeaturizeParams, compare_target_statistics, featurize
from popularity.validation import make_splits
from tests.random_posts import random_images, random_posts
from tests.stack.small_stack import SPLIT

PARAMS = FeaturizeParams(
    seed=0, n_text_components=0, target_statistics=("uid", "subcategory"), target_statistics_prior=3.0
)


def steady_posts() -> pl.DataFrame:
    """Posts of a few users who write at a steady rate: then a train row of a block and a valid row see alike."""
    posts = random_posts(0, train=2000, test=300, users=60).sort("posted_at", "pid")
    hours = np.sort(np.random.default_rng(1).integers(0, 24 * 600, posts.height))
    times = [datetime(2016, 1, 1, tzinfo=UTC) + timedelta(hours=int(hour)) for hour in hours]
    users = np.random.default_rng(2).integers(60, size=posts.height)
    return posts.with_columns(
        posted_at=pl.Series(times).dt.cast_time_unit("us").dt.replace_time_zone("UTC"),
        uid=pl.Series([f"{user}@N0" for user in users]),
    ).sort("pid")


class Steady(NamedTuple):
    """The steady posts, their splits, and the folder of their features."""

    posts: pl.DataFrame
    splits: pl.DataFrame
    features: Path


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Steady:
    posts, features = steady_posts(), tmp_path_factory.mktemp("features")
    splits, _ = make_splits(posts, SPLIT)
    featurize(posts, random_images(posts, 0), splits, PARAMS, features)
    return Steady(posts, splits, features)


def test_ages_of_histories_agree_and_lengths_are_told(steady: Steady) -> None:
    splits = steady.splits
    found = compare_target_statistics(splits, steady.features, PARAMS.target_statistics)
    folds = splits.select("scheme", "fold").unique().height
    assert len(found) == folds * len(PARAMS.target_statistics)
    by_key = {(row["scheme"], row["fold"], row["key"]): row for row in found}
    for scheme in ("holdout", "refit"):
        row = by_key[scheme, 0, "uid"]
        roles = splits.filter(scheme=scheme, role="valid").height
        assert row["valid"]["rows"] == roles
        assert row["distance"]["age"] < 0.15, row  # made alike by blocks of the scored span
        assert row["distance"]["posts"] > 0.3, row  # the valid rows come last
        assert row["valid"]["posts"][1] > row["train"]["posts"][1]


def test_histories_up_to_the_post_itself_would_be_younger(steady: Steady, tmp_path: Path) -> None:
    """The comparison can fail: with the ages that a naive history has, the two kinds of rows differ."""
    splits = steady.splits
    shutil.copytree(steady.features, tmp_path, dirs_exist_ok=True)
    gaps = (
        steady.posts.sort("posted_at", "pid")
        .select("pid", gap=pl.col("posted_at").diff().over("uid").dt.total_seconds() / 86_400)
        .join(splits.filter(scheme="holdout", role="train"), on="pid", how="semi")
    )
    path = tmp_path / "label" / FoldKey("holdout", 0).file_name
    label = pl.read_parquet(path).join(gaps, on="pid", how="left")
    naive = label.with_columns(uid_target_age=pl.coalesce("gap", "uid_target_age")).drop("gap")
    naive.write_parquet(path)
    (row,) = (r for r in compare_target_statistics(splits, tmp_path, ("uid",)) if r["scheme"] == "holdout")
    assert row["distance"]["age"] > 0.3


def test_a_fold_without_scored_rows(tmp_path: Path) -> None:
    posts = random_posts(1).filter(split="train")
    splits, _ = make_splits(posts, SPLIT)
    featurize(posts, random_images(posts, 0), splits, PARAMS, tmp_path)
    (row,) = (r for r in compare_target_statistics(splits, tmp_path, ("uid",)) if r["scheme"] == "refit")
    assert row["valid"]["rows"] == 0
    assert row["valid"]["share"] is None
    assert row["distance"] == {"posts": None, "age": None}
