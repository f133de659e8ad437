"""The feature group `class_time`: how classes come and go (no label is read), and their level of late (past labels)."""

from __future__ import annotations

import polars as pl

from popularity.features.classes import CLASSES, TIMED
from popularity.features.past_labels import HALF_LIVES, total
from popularity.features.past_posts import count_before
from popularity.features.rows import days

ACTIVITY = (30, 180)  # days, of the recent and of the usual share of a class


def class_activity_columns(posts: pl.DataFrame) -> dict[str, pl.Series | pl.Expr]:
    """Days since the first post of the class, its share of the posts of ACTIVITY[0] days, and how far that has risen.

    The age is at most ACTIVITY[1]: more would tell the date. The rise is a difference of logarithms, over the share of
    the posts of ACTIVITY[1] days.

    Args:
        posts: contract POSTS with themes, the shown ones.

    Returns:
        By name, (n,) values or expressions over `posts`.
    """
    columns: dict[str, pl.Series | pl.Expr] = {}
    age = days(pl.col("posted_at") - pl.col("posted_at").min())
    every = count_before(posts, None, ACTIVITY)
    for level in TIMED:
        classes = posts[level].n_unique()
        # One post more in every class: the share of a class without a recent post is small and not nothing.
        both = zip(count_before(posts, level, ACTIVITY), every, strict=True)
        recent, usual = ((alike + 1) / (all_posts + classes) for alike, all_posts in both)
        columns |= {
            f"class_time.{level}_age": age.over(level).clip(upper_bound=ACTIVITY[1]),
            f"class_time.{level}_share": recent,
            f"class_time.{level}_rise": (recent / usual).log(),
        }
    return columns


def class_level_columns(past: pl.DataFrame, rows: pl.DataFrame, prior: float) -> pl.DataFrame:
    """(rows, levels) of each of CLASSES, and as HALF_LIVES show it; without a past post, the level of the class above.

    Args:
        past: of `past_of`.
        rows: (CLASSES), those whose past it is.
        prior: posts' worth of what a mean is shrunk to.
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
