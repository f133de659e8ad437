"""The feature group `rhythm`: how often a user posts, and how busy the hour of the week is. It reads no label."""

from __future__ import annotations

import polars as pl

from popularity.features.past_posts import count_before

SPAN_DAYS = {"day": 1, "week": 7, "month": 30}  # in which a user's last posts are counted


def rhythm_columns(posts: pl.DataFrame) -> dict[str, pl.Series | pl.Expr]:
    """Returns posts of the user in each of SPAN_DAYS; the hour of the week (0 to 167, the user's clock) and its posts.

    Args:
        posts: contract POSTS, the train and valid rows.

    Returns:
        By name, (n,) values or expressions over `posts`.
    """
    local = pl.col("posted_at") + pl.duration(minutes=pl.col("timezone_offset").fill_null(0))
    hour = (local.dt.weekday().cast(pl.Int32) - 1) * 24 + local.dt.hour().cast(pl.Int32)
    own = count_before(posts, "uid", SPAN_DAYS.values())
    return {
        **{f"rhythm.user_{name}": counts for name, counts in zip(SPAN_DAYS, own, strict=True)},
        "rhythm.week_hour": hour,
        "rhythm.week_hour_posts": pl.len().over(hour).cast(pl.Int32),
    }
