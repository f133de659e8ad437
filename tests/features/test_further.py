"""Features of posts that come to the test part against those that the graph gives posts of the test part."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from popularity.core.contracts import FoldKey
from popularity.features import (
    FeaturizeParams,
    add_columns,
    count_each_alone,
    featurize,
    further_features,
    read_features,
)
from popularity.features.context import count_features
from popularity.validation import SplitParams, make_splits
from tests.random_posts import random_images, random_posts

PARAMS = FeaturizeParams(
    seed=0, n_text_components=3, target_statistics=("uid", "subcategory"), target_statistics_prior=3.0
)
SPLIT = SplitParams(
    seed=0,
    span="fractions",
    holdout_fraction=0.2,
    forward_fraction=0.2,
    n_origins=1,
    n_folds=2,
    unseen_user_fraction=0.5,
    tolerance=0.05,
    match_collection_order=False,
)


class Graph(NamedTuple):
    """Tables that stages of the graph wrote, and the folder of the features."""

    posts: pl.DataFrame
    images: pl.DataFrame
    splits: pl.DataFrame
    features: Path


def run_graph(posts: pl.DataFrame, folder: Path) -> Graph:
    images, (splits, _) = random_images(posts, seed=0), make_splits(posts, SPLIT)
    featurize(posts, images, splits, PARAMS, folder)
    return Graph(posts, images, splits, folder)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return run_graph(random_posts(0), tmp_path_factory.mktemp("features"))


@pytest.mark.parametrize("order", ["posted_at", "title"])  # the first posts after the cut, and any
def test_posts_taken_out_of_the_tables_get_the_features_that_the_graph_gave_them(order: str, graph: Graph) -> None:
    posts, images, splits, features = graph
    out = pl.col("pid").is_in(posts.filter(split="test").sort(order, "pid")["pid"].head(4).implode())
    further = posts.filter(out)
    found = further_features(further, images.filter(out), splits.filter(~out), posts.filter(~out), PARAMS, features)
    assert further.height > 3
    expected = read_features(features, FoldKey("refit", 0), further)
    stored = further.sort("pid")["uid"].is_in(posts.filter(~out)["uid"].implode())
    assert stored.any()
    # A user without a stored post has no profile.
    expected = expected.with_columns(pl.when(stored).then(pl.col("^user_text\\..*$")))
    assert_frame_equal(found, expected, check_row_order=True, rel_tol=0, abs_tol=1e-6)
    exact = [name for name in found.columns if not name.startswith("text_component")]
    assert_frame_equal(found.select(exact), expected.select(exact), rel_tol=1e-12, abs_tol=0)


def test_columns_of_a_users_own_table(tmp_path: Path) -> None:
    """Stored posts have them as row features; a later post has none of them."""
    posts, _, splits, folder = run_graph(random_posts(2), tmp_path)
    columns = posts.select("pid", table_price=pl.lit(2.0), table_kind=pl.lit("a"))
    add_columns(columns, folder)
    row = read_features(folder, FoldKey("refit", 0), posts)
    assert row.select("table_price", "table_kind").unique().rows() == [(2.0, "a")]
    new = posts.filter(split="test").head(2).with_columns(pid=pl.format("new-{}", "pid"))
    found = further_features(new, random_images(new, seed=2), splits, posts, PARAMS, folder)
    assert found.select("table_price", "table_kind").rows() == [(None, None)] * 2
    assert found.schema["table_kind"] == pl.String
    add_columns(posts.select("pid"), folder)  # the official layout has none
    assert read_features(folder, FoldKey("refit", 0), posts).equals(row)


def test_without_a_test_part_the_label_of_every_earlier_post_counts(tmp_path: Path) -> None:
    posts, _, splits, _ = run_graph(random_posts(1).filter(split="train"), tmp_path)
    last = posts.sort("posted_at", "pid").tail(1)
    new = last.with_columns(
        pid=pl.lit("new"),
        split=pl.lit("test"),
        label=pl.lit(None, pl.Float64),
        posted_at=pl.col("posted_at").dt.offset_by("3d"),
    )
    found = further_features(new, random_images(new, seed=2), splits, posts, PARAMS, tmp_path)
    of_user = posts.filter(uid=last["uid"][0])
    assert found["uid_target_posts"].to_list() == [of_user.height]
    assert found["user_posts"].to_list() == [of_user.height + 1]
    assert found["uid_target_age"].to_list() == [3.0]


def test_a_post_far_ahead_moves_no_target_but_its_own(graph: Graph) -> None:
    posts, _, splits, features = graph
    amid = posts.filter(split="train").sort("posted_at", "pid")[70]  # dated between posts that are fitted on
    now = amid.with_columns(pid=pl.lit("now"), split=pl.lit("test"), label=pl.lit(None, pl.Float64))
    ahead = now.with_columns(pid=pl.lit("ahead"), posted_at=pl.col("posted_at").dt.offset_by("30y"))

    def histories(new: pl.DataFrame) -> pl.DataFrame:
        found = further_features(new, random_images(new, seed=2), splits, posts, PARAMS, features)
        return found.filter(pid="now").select("^.*_target_.*$")

    alone = histories(now)
    assert alone["subcategory_target_posts"].item() > 0
    assert alone.equals(histories(pl.concat([ahead, now])))


def test_only_counts_see_the_posts_that_come_with_a_post(graph: Graph) -> None:
    posts, _, splits, folder = graph
    new = posts.filter(split="test").head(6).with_columns(pid=pl.format("new-{}", "pid"))

    def features(of: pl.DataFrame) -> pl.DataFrame:
        pictures = random_images(new, seed=2).filter(pl.col("pid").is_in(of["pid"].implode()))
        return further_features(of, pictures, splits, posts, PARAMS, folder)

    together = features(new)
    counts = set(count_features(new).columns) - {"pid"}
    for post in new.iter_slices(1):
        alone, beside = features(post), together.filter(pid=post["pid"][0])
        assert_frame_equal(alone.drop(counts), beside.drop(counts), rel_tol=1e-12, abs_tol=0)
        assert not alone.equals(beside)  # there are more posts of the class
        counted = count_each_alone(together, new, splits, posts).filter(pid=post["pid"][0])
        assert_frame_equal(alone, counted, rel_tol=1e-12, abs_tol=0)
