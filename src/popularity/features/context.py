"""Statistics without labels over the train and valid rows of a fold, without the excluded ones.

Each function takes these posts and returns (pid, its features). The metadata of the test part is published, so counts
may include later posts.
"""

from __future__ import annotations

import polars as pl

from popularity.features.groups import count_groups
from popularity.features.rows import days, join_by_pid
from popularity.features.text_components import TextReducer


def user_features(posts: pl.LazyFrame) -> pl.LazyFrame:
    """Returns a user's activity: posts in all and so far, gaps in days (previous, next, mean), posts a day, classes."""
    ordered = posts.sort("uid", "posted_at", "pid")
    gap = days(pl.col("posted_at").diff())
    per_user = ordered.select(
        "pid",
        "uid",
        user_posts=pl.len().over("uid").cast(pl.Int32),
        user_posts_before=pl.int_range(pl.len()).over("uid").cast(pl.Int32),
        user_gap_previous=gap.over("uid"),
        user_gap_next=days(pl.col("posted_at").shift(-1) - pl.col("posted_at")).over("uid"),
        user_gap_mean=days(pl.col("posted_at").max() - pl.col("posted_at").min()).over("uid")
        / (pl.len().over("uid") - 1),
        user_posts_same_day=pl.len().over("uid", pl.col("posted_at").dt.date()).cast(pl.Int32),
        user_subcategories=pl.col("subcategory").n_unique().over("uid").cast(pl.Int32),
        user_subcategory_share=pl.len().over("uid", "subcategory") / pl.len().over("uid"),
        user_photo_count_change=(pl.col("photo_count") - pl.col("photo_count").shift(1)).over("uid"),
        user_mean_title_length=pl.col("title").str.len_chars().mean().over("uid"),
        user_mean_tags_length=pl.col("tags").str.len_chars().mean().over("uid"),
    )
    # A user with one post has no gap: 0 / 0 is a missing value, not a number.
    return per_user.drop("uid").with_columns(pl.col("user_gap_mean").fill_nan(None))


def class_features(posts: pl.LazyFrame) -> pl.LazyFrame:
    """Returns how many posts each of the post's three classes has, and its share of the platform's day."""
    date = pl.col("posted_at").dt.date()
    return posts.select(
        "pid",
        **{f"{level}_posts": pl.len().over(level).cast(pl.Int32) for level in ("category", "subcategory", "concept")},
        day_posts=pl.len().over(date).cast(pl.Int32),
        day_subcategory_share=pl.len().over(date, "subcategory") / pl.len().over(date),
    )


def tag_features(posts: pl.LazyFrame) -> pl.LazyFrame:
    """Returns log document frequencies of the post's tags (mean, min, max), and how often its texts recur."""
    exploded = (
        posts.sort("pid")  # polars sums groups of a sorted column in another order, with other last bits
        .select(
            "pid",
            # In the order of the text: a hash order differs between runs, and with it the last bits of a mean.
            tag=pl.col("tags").str.to_lowercase().str.extract_all(r"\S+").list.unique(maintain_order=True),
        )
        .explode("tag")
        .drop_nulls("tag")
    )
    frequency = exploded.with_columns(log_frequency=pl.len().over("tag").cast(pl.Float64).log())
    per_post = (
        frequency.group_by("pid")
        .agg(
            # Of a slice: see `past_labels.total`. polars skips a sort before a mean.
            tag_frequency_mean=pl.col("log_frequency").slice(0).mean(),
            tag_frequency_min=pl.col("log_frequency").min(),
            tag_frequency_max=pl.col("log_frequency").max(),
        )
        .sort("pid")
    )
    recurrences = posts.select(
        "pid",
        title_posts=pl.len().over("title").cast(pl.Int32),
        text_posts=pl.len().over("title", "tags").cast(pl.Int32),
    )
    return recurrences.join(per_post, on="pid", how="left", validate="1:1")


def count_features(posts: pl.DataFrame) -> pl.DataFrame:
    """Returns (pid, every context feature but the text components), sorted by pid.

    Args:
        posts: contract POSTS, the train and valid rows.
    """
    lazy = posts.lazy()
    table = lazy.select("pid")
    for features in (user_features, class_features, tag_features):
        table = table.join(features(lazy), on="pid", how="left", validate="1:1")
    return join_by_pid(table.collect().sort("pid"), count_groups(posts))


def context_features(posts: pl.DataFrame, text: TextReducer) -> pl.DataFrame:
    """Returns (pid, every context feature), sorted by pid.

    Args:
        posts: contract POSTS, the train and valid rows.
        text: fitted on them.
    """
    return join_by_pid(count_features(posts), text.apply(posts))
