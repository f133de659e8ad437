"""The folds of the schemes: their train and valid rows, with features and dates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from popularity.core.arrays import Float64Array, Int64Array
from popularity.core.contracts import FoldKey
from popularity.core.outliers import clipped_labels
from popularity.features import read_features
from popularity.validation.inner_cv import MICROSECONDS_A_DAY

LATE_DATES = 0.1  # of the time span: a date farther after the 99 % quantile does not say when the counts were read


@dataclass(frozen=True)
class Fold:
    """Features of a fold's train and valid rows, and labels of its train rows.

    Args:
        key: scheme and fold.
        train: (pid, features) of the train rows, sorted by pid.
        valid: (pid, features) of the valid rows, sorted by pid.
        label: (train rows,) clipped, see `core/outliers.py`.
        posted_at: (train rows,) microseconds.
        valid_at: (valid rows,) microseconds.
        collected_at: days since 1970, on which the counts of all posts were read.
    """

    key: FoldKey
    train: pl.DataFrame
    valid: pl.DataFrame
    label: Float64Array
    posted_at: Int64Array
    valid_at: Int64Array
    collected_at: float

    def take(self, rows: Int64Array) -> Fold:
        """The fold with the train rows at the positions (k,), sorted and without repetition."""
        return replace(self, train=self.train[rows], label=self.label[rows], posted_at=self.posted_at[rows])


def load_fold(key: FoldKey, rows: pl.DataFrame, posts: pl.DataFrame, folder: Path) -> Fold:
    """Returns the fold `key`, with the features that stage `featurize` wrote.

    Args:
        key: scheme and fold.
        rows: (pid, role) of the fold, without excluded rows.
        posts: contract POSTS.
        folder: that `featurize` wrote.
    """
    dates = posts.select("pid", "posted_at")
    features = read_features(folder, key, rows).join(dates, on="pid", how="left", validate="1:1", maintain_order="left")
    roles = dict(rows.iter_rows())
    is_train = pl.Series([roles[pid] == "train" for pid in features["pid"]])
    train, valid = features.filter(is_train), features.filter(~is_train)
    labels = posts.select("pid", "label", "posted_at")
    train_labels, valid_labels = (
        table.select("pid").join(labels, on="pid", how="left", validate="1:1", maintain_order="left")
        for table in (train, valid)
    )
    return Fold(
        key,
        train=train,
        valid=valid,
        label=clipped_labels(train_labels["label"].to_numpy()),
        posted_at=train_labels["posted_at"].to_physical().to_numpy(),
        valid_at=valid_labels["posted_at"].to_physical().to_numpy(),
        collected_at=collection_day(posts),
    )


def collection_day(posts: pl.DataFrame) -> float:
    """Returns the day since 1970 on which the counts were read: `collected_at`, or the date of the last post.

    A date far after all others does not count.

    Args:
        posts: contract POSTS, with and without labels.
    """
    given = posts["collected_at"].to_physical().drop_nulls()
    if len(given):
        return float(given[0]) / MICROSECONDS_A_DAY
    days = posts["posted_at"].to_physical().to_numpy() / MICROSECONDS_A_DAY
    start, end = np.quantile(days, (0.01, 0.99))
    return float(days[days <= end + LATE_DATES * (end - start)].max())
