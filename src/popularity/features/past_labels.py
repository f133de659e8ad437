"""Past labels as the feature groups `history`, `words` and `class_time` read them.

A label enters as what is left of it over the level of its own PERIOD: a level that drifts belongs to no user, class or
word. Every mean is shrunk: that of a user to his classes', of a class to the class above, of the first level to 0.
"""

from __future__ import annotations

from datetime import timedelta

import polars as pl

from popularity.core.contracts import LEVELS
from popularity.features.classes import CLASSES, TIMED, with_themes
from popularity.features.rows import days

PERIOD = timedelta(days=30)
HALF_LIVES = (30, 90, 270)  # days, of the recent levels of a class; a user's trend has the second
TEXTS = ("title", "tags")
WORD = r"[\p{L}\p{N}']+"
SOURCES = ("uid", *LEVELS, *TEXTS)  # columns of POSTS that the groups read


def code_names(posts: pl.DataFrame) -> pl.DataFrame:
    """`posts` with `theme` and `variant`, all keys of users and classes as numbers, and texts as lists of their words.

    What only compares names is several times faster on numbers. The different words of a text (List(UInt32)) are in
    the order of their spelling. Numbers are alike exactly where names are, within one call.
    """
    posts = with_themes(posts)
    keys = [_numbers(pl.col(name)).alias(name) for name in ("uid", *LEVELS, *TIMED)]
    words = (pl.col(text).str.to_lowercase().str.extract_all(WORD).list.unique().list.sort() for text in TEXTS)
    return posts.with_columns(*keys, *(found.list.eval(_numbers(pl.element())) for found in words))


def _numbers(names: pl.Expr) -> pl.Expr:
    return names.cast(pl.Categorical).to_physical()


def past_of(labelled: pl.DataFrame, prior: float) -> pl.DataFrame:
    """The labelled posts with `age`, `rest`, a level for each of CLASSES and `beyond`.

    age: days before the last post. rest: the label over the shrunk mean of its period. `<class>_level`: the shrunk mean
    of the rest. beyond: the rest over the level of the third class.

    Args:
        labelled: (posted_at, label, CLASSES, ...), in order of time.
        prior: posts' worth of what a mean is shrunk to.
    """
    return _over_classes(_over_periods(labelled, prior), prior)


def _over_periods(past: pl.DataFrame, prior: float) -> pl.DataFrame:
    """`past` with its `age`, days before the last of it, and `rest`: the label over the shrunk mean of its period."""
    age = days(pl.col("posted_at").max() - pl.col("posted_at"))
    period = (age / (PERIOD / timedelta(days=1))).floor()
    mean = past["label"].mean()
    level = (pl.col("label").sum().over(period) + prior * pl.lit(mean)) / (pl.len().over(period) + prior)
    return past.with_columns(age=age, rest=pl.col("label") - level)


def _over_classes(past: pl.DataFrame, prior: float) -> pl.DataFrame:
    """`past` with the shrunk level of each class and `beyond`: the rest over that of the third level."""
    above: pl.Expr = pl.lit(0.0)
    for level in CLASSES:
        shrunk = (pl.col("rest").sum().over(level) + prior * above) / (pl.len().over(level) + prior)
        past = past.with_columns(shrunk.alias(f"{level}_level"))
        above = pl.col(f"{level}_level")
    return past.with_columns(beyond=pl.col("rest") - above)


def total(values: pl.Expr) -> pl.Expr:
    """The sum of `values` in a group, added up in order.

    Of plain values polars may add up parts of a group, one for each thread: the last bits then differ from run to run,
    and with the number of cores. A slice, be it of everything, is added up whole.
    """
    return values.slice(0).sum()
