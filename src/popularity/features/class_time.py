"""The feature group `class_time`: how classes come and go (no labels), and how their posts did lately (past labels)."""

from __future__ import annotations

import polars as pl

from popularity.features.classes import CLASSES, TIMED
from popularity.features.past_labels import HALF_LIVES, total
from popularity.features.past_posts import count_before
from popularity.features.rows import days

ACTIVITY_DAYS = (30, 180)  # of the recent and of the long-run share of a class


def class_activity_columns(posts: pl.DataFrame) -> dict[str, pl.Series | pl.Expr]:
    """Returns days since the first post of the class, its share of the recent posts, and the rise of that share.

    The age is at most ACTIVITY_DAYS[1], because a longer one would reveal the date. The share is of the posts of
    ACTIVITY_DAYS[0] days; its rise is the logarithm of it over the share of ACTIVITY_DAYS[1] days.

    Args:
        posts: contract POSTS with themes: the train and valid rows.

    Returns:
        By name, (n,) values or expressions over `posts`.
    """
    columns: dict[str, pl.Series | pl.Expr] = {}
    age = days(pl.col("posted_at") - pl.col("posted_at").min())
    all_counts = count_before(posts, None, ACTIVITY_DAYS)
    for level in TIMED:
        classes = posts[level].n_unique()
        # One post is added to every class: the share of a class without a recent post is small, not 0.
        counts = zip(count_before(posts, level, ACTIVITY_DAYS), all_counts, strict=True)
        recent, long_run = ((own + 1) / (total_count + classes) for own, total_count in counts)
        columns |= {
            f"class_time.{level}_age": age.over(level).clip(upper_bound=ACTIVITY_DAYS[1]),
            f"class_time.{level}_share": recent,
            f"class_time.{level}_rise": (recent / long_run).log(),
        }
    return columns


def class_level_columns(past: pl.DataFrame, rows: pl.DataFrame, prior: float) -> pl.DataFrame:
    """Returns (rows, mean residuals of each of CLASSES), in all and by HALF_LIVES; without a past, the class above's.

    Args:
        past: of `past_of`.
        rows: (CLASSES) of the posts whose past it is.
        prior: posts' worth of the value that a mean is shrunk to.
    """
    table = rows.select(CLASSES)
    columns: list[str] = []
    above: pl.Expr = pl.lit(0.0)
    for level in CLASSES:
        name = f"class_time.{level}_level"
        found = {name: pl.col(f"{level}_level").first()}
        if level in TIMED:
            for half_life in HALF_LIVES:
                weight = 0.5 ** (pl.col("age") / half_life)
                shrunk = total(weight * pl.col("rest")) + prior * pl.col(f"{level}_level").first()
                found[f"class_time.{level}_level_{half_life}"] = shrunk / (total(weight) + prior)
        levels = past.group_by(level, maintain_order=True).agg(**found)
        table = table.join(levels, on=level, how="left", validate="m:1", maintain_order="left")
        table = table.with_columns(pl.col(name).fill_null(above))
        table = table.with_columns(pl.col(column).fill_null(pl.col(name)) for column in found)
        above = pl.col(name)
        columns += found
    return table.select(columns)
