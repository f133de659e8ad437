"""The feature tables of a fold, from the folder that `featurize` wrote."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from popularity.core.contracts import FEATURES, FoldKey, read_table


def read_features(folder: Path, key: FoldKey, pids: pl.DataFrame) -> pl.DataFrame:
    """Returns (pid, all features) of some posts of one fold, sorted by pid.

    Args:
        folder: that `featurize` wrote.
        key: of the fold.
        pids: (pid) of the posts.
    """
    row, label = folder / "row.parquet", folder / "label" / key.file_name
    table = pids.select("pid")
    for features in (read_table(row, FEATURES), read_context(folder, key), read_table(label, FEATURES)):
        table = table.join(features, on="pid", how="left", validate="1:1")
    return table.sort("pid")


def read_context(folder: Path, key: FoldKey) -> pl.DataFrame:
    """Returns (pid, context features) of the train and valid rows of one fold.

    Args:
        folder: that `featurize` wrote.
        key: of the fold.
    """
    common = folder / "context" / common_name(key.scheme)
    return read_table(common if common.exists() else folder / "context" / key.file_name, FEATURES)


def common_name(scheme: str) -> str:
    """Returns the name of the file of context features that all folds of a scheme share."""
    return f"{scheme}.parquet"
