"""The day on which the counts were read: given, or that of the last post."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl

from popularity.core.contracts import POSTS
from popularity.validation.folds import collection_day
from tests.small_tables import small_posts

DAY = timedelta(days=1)


def day_of(date: datetime) -> float:
    return date.timestamp() / 86_400


def test_the_last_post_of_both_parts_says_it() -> None:
    posts = small_posts()
    last = posts["posted_at"].max()
    assert isinstance(last, datetime)
    assert posts.filter(posted_at=last)["split"].item() == "test"
    assert collection_day(posts) == day_of(last)


def test_a_given_day_counts_alone() -> None:
    given = datetime(2020, 2, 29, 12, tzinfo=UTC)
    posts = small_posts().with_columns(collected_at=pl.lit(given).cast(POSTS.columns["collected_at"].dtype))
    assert collection_day(posts) == day_of(given)


def test_one_odd_date_does_not_say_it() -> None:
    posts = small_posts(train=300, test=100)
    last = posts["posted_at"].max()
    assert isinstance(last, datetime)
    odd = pl.when(pl.col("posted_at") == last).then(pl.lit(last + 9000 * DAY)).otherwise("posted_at")
    moved = posts.with_columns(posted_at=odd.cast(POSTS.columns["posted_at"].dtype))
    assert abs(collection_day(moved) - day_of(last)) < 3
