"""Feature groups: further columns, that `stack.columns.feature_groups` switches on group by group.

A column is named <group>.<what>; columns without a dot are always seen. `rhythm` and the activity of classes in
`class_time` count shown posts and read no label. `history`, `words` and the levels of classes in `class_time` are made
of labels older than a row's as-of date (`as_of.py`). `user_text` is made of what users write of themselves.
"""

from __future__ import annotations

from datetime import datetime

import polars as pl

from popularity.features.class_time import class_activity_columns, class_level_columns
from popularity.features.classes import CLASSES, with_themes
from popularity.features.histories import history_columns
from popularity.features.past_labels import TEXTS, code_names, past_of
from popularity.features.rhythm import rhythm_columns
from popularity.features.words import word_columns


def count_groups(posts: pl.DataFrame) -> pl.DataFrame:
    """(pid, groups without labels) of the shown posts, sorted by pid; counts look back from each post.

    Args:
        posts: contract POSTS, the shown ones.
    """
    posts = with_themes(posts.sort("pid"))
    return posts.select("pid", **rhythm_columns(posts), **class_activity_columns(posts))


def label_groups(rows: pl.DataFrame, prior: float) -> pl.DataFrame:
    """(pid, groups from labels) for fit and score rows of one fold, sorted by pid.

    Args:
        rows: (pid, role, posted_at, as_of, label, SOURCES); labels of score rows are not read.
        prior: posts' worth of what a mean is shrunk to.
    """
    return coded_label_groups(code_names(rows), prior)


def coded_label_groups(rows: pl.DataFrame, prior: float) -> pl.DataFrame:
    """As `label_groups`, of rows whose SOURCES went through `code_names`.

    Args:
        rows: (pid, role, posted_at, as_of, label, SOURCES).
        prior: posts' worth of what a mean is shrunk to.
    """
    labelled = rows.filter((pl.col("role") == "train") & pl.col("label").is_not_null()).sort("posted_at", "pid")
    labelled = labelled.select("posted_at", "label", "uid", *CLASSES, *TEXTS)
    parts = []
    for (date,), wanted in rows.sort("as_of", "pid").group_by("as_of", maintain_order=True):
        assert isinstance(date, datetime)
        before = labelled["posted_at"].search_sorted(date, side="left")
        past = past_of(labelled.head(before), prior)
        groups = (compute(past, wanted, prior) for compute in (history_columns, class_level_columns, word_columns))
        parts.append(pl.concat([wanted.select("pid"), *groups], how="horizontal"))
    return pl.concat(parts).sort("pid")
