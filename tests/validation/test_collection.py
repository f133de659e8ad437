"""Valid rows are spread over the order of collection as the test posts are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from popularity.core.arrays import Float64Array
from popularity.core.errors import DataError
from popularity.validation import make_splits
from popularity.validation.collection import MIN_KEPT, rows_to_keep
from tests.random_posts import random_posts
from tests.validation.test_splits import PARAMS

MATCHED = replace(PARAMS, match_collection_order=True)


def collected(seed: int = 1) -> pl.DataFrame:
    """Random posts whose Pids have nothing to do with their dates; those of the test part come late."""
    posts = random_posts(seed, train=3000, test=800, users=300)
    rng = np.random.default_rng(seed)
    place = np.where(posts["split"] == "train", rng.random(posts.height), rng.beta(3, 1, posts.height))
    number = np.argsort(np.argsort(place)) + 1000
    return posts.with_columns(pid=pl.Series([str(one) for one in number]))


def places(posts: pl.DataFrame, rows: pl.DataFrame) -> Float64Array:
    """Shares of the rows in four quarters of the test part's Pids."""
    edges = np.quantile(posts.filter(split="test")["pid"].cast(pl.Int64).to_numpy(), (0.25, 0.5, 0.75))
    counts = np.bincount(np.searchsorted(edges, rows["pid"].cast(pl.Int64).to_numpy()), minlength=4)
    shares: Float64Array = counts / rows.height
    return shares


def test_valid_rows_of_splits_in_time_lie_where_the_test_posts_lie() -> None:
    posts = collected()
    (plain, _), (matched, summary) = make_splits(posts, PARAMS), make_splits(posts, MATCHED)
    for scheme, fold in (("holdout", 0), ("forward", 0), ("forward", 2)):
        before, after = (made.filter(scheme=scheme, fold=fold) for made in (plain, matched))
        valid, kept = before.filter(role="valid"), after.filter(role="valid")
        assert places(posts, valid)[0] > 0.4
        np.testing.assert_allclose(places(posts, kept), 0.25, atol=0.06)
        assert set(kept["pid"]) < set(valid["pid"])
        assert kept.height >= MIN_KEPT * valid.height
        # What is not kept is in no part of the split.
        roles = after.filter(pl.col("pid").is_in(valid["pid"].implode()))["role"]
        assert set(roles) == {"valid", "excluded"}
    for scheme in ("group", "random", "refit"):
        assert matched.filter(scheme=scheme).equals(plain.filter(scheme=scheme))
    wanted = summary["wanted_unseen_post_share"]
    for fold in summary["schemes"]:
        if fold["scheme"] in ("holdout", "forward"):
            assert fold["unseen_post_share"] == pytest.approx(wanted, abs=0.02)


def test_a_third_of_the_rows_stays_where_few_lie_near_the_test_posts_and_that_is_said() -> None:
    rng = np.random.default_rng(0)
    valid, test = rng.integers(0, 1000, 600), rng.integers(950, 1400, 500)
    keep, note = rows_to_keep(valid, test, rng)
    assert MIN_KEPT <= keep.mean() < 0.5
    assert keep[valid > np.quantile(test, 0.1)].all()  # bins that have too few
    assert "% of the valid posts lie elsewhere in the order of collection" in note
    keep, note = rows_to_keep(test, test, rng)
    assert keep.mean() > 0.9
    assert note == ""


def test_pids_that_are_no_numbers_are_refused() -> None:
    posts = random_posts(2, train=400, test=100)
    named = posts.with_columns(pid="p" + pl.col("pid"))
    make_splits(named, PARAMS)
    with pytest.raises(DataError, match="no Pid of the test part is a number"):
        make_splits(named, MATCHED)
    train = named.filter(split="train")
    assert make_splits(train, MATCHED)[0].equals(make_splits(train, PARAMS)[0])  # nothing to match
