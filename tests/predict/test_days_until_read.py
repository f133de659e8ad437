"""When the count of a post to predict is read: as it says, at the collection, or after the median exposure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from popularity.core.contracts import POSTS
from popularity.predict.predict import days_until_read
from popularity.target.trend import Trend

START = datetime(2016, 1, 1, tzinfo=UTC)
POSTED = [START + timedelta(days=days) for days in (10, 90, 500, 500)]
READ = [None, POSTED[1] + timedelta(days=3), None, POSTED[3] + timedelta(days=0.5)]


@pytest.fixture
def posts() -> pl.DataFrame:
    """Two within the data set, which was collected on day 100, and two after it; one of each says when it is read."""
    types = {name: POSTS.columns[name].dtype for name in ("pid", "posted_at", "collected_at")}
    return pl.DataFrame({"pid": list("abcd"), "posted_at": POSTED, "collected_at": READ}, schema=types)


def trend(kind: str) -> Trend:
    days = (START.timestamp() / 86_400 + np.arange(60)) * 86_400e6
    collected_at = START.timestamp() / 86_400 + 100
    return Trend.fit(days.astype(np.int64), np.sin(np.arange(60.0)), kind, collected_at)  # type: ignore[arg-type]


def test_each_post_is_read_when_it_says_or_as_others_were(posts: pl.DataFrame) -> None:
    notes: dict[str, list[str]] = {pid: [] for pid in "abcd"}
    found = days_until_read(trend("family"), posts, notes)
    np.testing.assert_allclose(found, [np.nan, 3, 70.5, 0.5])
    assert notes["c"] == ["no days_after: 70 days taken, as the median train post had until its count"]
    assert not any(notes[pid] for pid in "abd")


def test_another_trend_says_that_it_does_not_read_them(posts: pl.DataFrame) -> None:
    notes: dict[str, list[str]] = {pid: [] for pid in "abcd"}
    days_until_read(trend("linear"), posts, notes)
    assert not notes["a"] + notes["c"]
    assert all("unused value: days_after" in notes[pid][0] for pid in "bd")


def test_posts_that_all_say_it(posts: pl.DataFrame) -> None:
    chosen = posts.filter(pl.col("collected_at").is_not_null())
    np.testing.assert_allclose(days_until_read(trend("family"), chosen, {pid: [] for pid in "bd"}), [3, 0.5])
    np.testing.assert_allclose(days_until_read(trend("linear"), chosen.clear(), {}), [])
