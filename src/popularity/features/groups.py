"""Feature groups: further columns, each group switched on by `stack.columns.feature_groups`.

A column is named <group>.<quantity>; columns without a dot are always used. `rhythm` and the activity of classes in
`class_time` count posts and read no label. `user_target`, `words` and the mean residuals of classes in `class_time`
use labels older than a row's as-of date (`core/as_of.py`). `user_text` is made of users' descriptions of themselves.
"""

from __future__ import annotations

from datetime import datetime

import polars as pl

from popularity.features.class_time import class_activity_columns, class_level_columns
from popularity.features.classes import CLASSES, with_themes
from popularity.features.past_labels import TEXTS, past_of
from popularity.features.rhythm import rhythm_columns
from popularity.features.user_target import user_target_columns
from popularity.features.words import word_columns


def count_groups(posts: pl.DataFrame) -> pl.DataFrame:
    """Returns (pid, groups without labels), sorted by pid; counts are of earlier posts.

    Args:
        posts: contract POSTS, the train and valid rows.
    """
    posts = with_themes(posts.sort("pid"))
    return posts.select("pid", **rhythm_columns(posts), **class_activity_columns(posts))


def label_groups(rows: pl.DataFrame, prior: float, pids: pl.Series | None = None) -> pl.DataFrame:
    """Returns (pid, groups from labels) of the train and valid rows of one fold, sorted by pid.

    Args:
        rows: (pid, role, posted_at, as_of, label, SOURCES), the SOURCES coded by `code_names`; labels of valid rows
            are not read.
        prior: posts' worth of the value that a mean is shrunk to.
        pids: the rows that are wanted; None for all.
    """
    labelled = rows.filter((pl.col("role") == "train") & pl.col("label").is_not_null()).sort("posted_at", "pid")
    labelled = labelled.select("posted_at", "label", "uid", *CLASSES, *TEXTS)
    tables = []
    wanted = rows if pids is None else rows.filter(pl.col("pid").is_in(pids.implode()))
    for (date,), own in wanted.sort("as_of", "pid").group_by("as_of", maintain_order=True):
        assert isinstance(date, datetime)
        before = labelled["posted_at"].search_sorted(date, side="left")
        past = past_of(labelled.head(before), prior)
        groups = (compute(past, own, prior) for compute in (user_target_columns, class_level_columns, word_columns))
        tables.append(pl.concat([own.select("pid"), *groups], how="horizontal"))
    return pl.concat(tables).sort("pid")
