"""Past labels for the feature groups `user_target`, `words` and `class_time`.

A label counts as its residual (`rest`), the label less the mean of its own PERIOD: a trend belongs to no user, class or
word. Every mean is shrunk: a user's to that of the classes, a class's to that of the class above, the first level's to
0.
"""

from __future__ import annotations

from datetime import timedelta

import polars as pl

from popularity.core.contracts import LEVELS
from popularity.features.classes import CLASSES, TIMED, with_themes
from popularity.features.rows import days

PERIOD = timedelta(days=30)
HALF_LIVES = (30, 90, 270)  # days, of the recent means of a class; the second also of a user's trend
TEXTS = ("title", "tags")
WORD = r"[\p{L}\p{N}']+"
SOURCES = ("uid", *LEVELS, *TEXTS)  # columns of POSTS that the groups read


def code_names(posts: pl.DataFrame) -> pl.DataFrame:
    """Returns `posts` with `theme` and `variant`, users and classes as numbers, and texts as lists of words.

    Numbers compare several times faster than names; within one call they are equal exactly where the names are. The
    distinct words of a text (List(UInt32)) are sorted by spelling.

    Args:
        posts: (n rows) with SOURCES.
    """
    posts = with_themes(posts)
    keys = [_numbers(pl.col(name)).alias(name) for name in ("uid", *LEVELS, *TIMED)]
    words = (pl.col(text).str.to_lowercase().str.extract_all(WORD).list.unique().list.sort() for text in TEXTS)
    return posts.with_columns(*keys, *(found.list.eval(_numbers(pl.element())) for found in words))


def _numbers(names: pl.Expr) -> pl.Expr:
    return names.cast(pl.Categorical).to_physical()


def past_of(labelled: pl.DataFrame, prior: float) -> pl.DataFrame:
    """Returns the labelled posts with `age`, `rest`, a mean for each of CLASSES and `beyond`.

    age: days before the last post. rest: the label less the shrunk mean of its period. `<class>_level`: the shrunk mean
    of the rest. beyond: the rest less that mean of the third class.

    Args:
        labelled: (posted_at, label, CLASSES, ...), in order of time.
        prior: posts' worth of the value that a mean is shrunk to.
    """
    return _over_classes(_over_periods(labelled, prior), prior)


def _over_periods(past: pl.DataFrame, prior: float) -> pl.DataFrame:
    """`past` with `age`, days before the last post, and `rest`, the label less the shrunk mean of its period."""
    age = days(pl.col("posted_at").max() - pl.col("posted_at"))
    period = (age / (PERIOD / timedelta(days=1))).floor()
    mean = past["label"].mean()
    level = (pl.col("label").sum().over(period) + prior * pl.lit(mean)) / (pl.len().over(period) + prior)
    return past.with_columns(age=age, rest=pl.col("label") - level)


def _over_classes(past: pl.DataFrame, prior: float) -> pl.DataFrame:
    """`past` with the shrunk mean of each class, and `beyond`, the rest less that of the third class."""
    above: pl.Expr = pl.lit(0.0)
    for level in CLASSES:
        shrunk = (pl.col("rest").sum().over(level) + prior * above) / (pl.len().over(level) + prior)
        past = past.with_columns(shrunk.alias(f"{level}_level"))
        above = pl.col(f"{level}_level")
    return past.with_columns(beyond=pl.col("rest") - above)


def total(values: pl.Expr) -> pl.Expr:
    """Returns the sum of `values` in a group, in the order of its rows.

    polars may sum plain values in one chunk a thread: then the last bits differ between runs and numbers of cores. It
    sums a slice in one piece, even a slice of all rows.
    """
    return values.slice(0).sum()
