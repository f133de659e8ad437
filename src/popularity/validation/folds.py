"""The folds of the schemes: their train and valid rows, with features and dates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from popularity.core.arrays import Float64Array, Int64Array
from popularity.core.contracts import FoldKey
from popularity.features import read_features


@dataclass(frozen=True)
class Fold:
    """Features of a fold's train and valid rows, and labels of its train rows.

    Args:
        key: scheme and fold.
        train: (pid, features) of the train rows, sorted by pid.
        valid: (pid, features) of the valid rows, sorted by pid.
        label: (train rows,).
        posted_at: (train rows,) microseconds.
        valid_at: (valid rows,) microseconds.
    """

    key: FoldKey
    train: pl.DataFrame
    valid: pl.DataFrame
    label: Float64Array
    posted_at: Int64Array
    valid_at: Int64Array


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
        label=train_labels["label"].to_numpy(),
        posted_at=train_labels["posted_at"].to_physical().to_numpy(),
        valid_at=valid_labels["posted_at"].to_physical().to_numpy(),
    )
