"""Where the feature tables of a fold lie in the folder that `featurize` wrote, and how they are read."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from popularity.schema import FEATURES, read_table


def fold_path(folder: Path, scheme: str, repeat: int, fold: int | None = None) -> Path:
    """The table of a fold in a folder of such; of every fold of the repeat without `fold`.

    Args:
        folder: of the tables.
        scheme: of splits.
        repeat: from 0.
        fold: from 0; None: of all folds of the repeat.
    """
    return folder / ("-".join(str(each) for each in (scheme, repeat, fold) if each is not None) + ".parquet")


def read_features(folder: Path, scheme: str, repeat: int, fold: int, pids: pl.DataFrame) -> pl.DataFrame:
    """(pid, all features) for the posts `pids` (column pid) of one fold, sorted by pid.

    Args:
        folder: that `featurize` wrote.
        scheme: of splits.
        repeat: from 0.
        fold: from 0.
        pids: (pid) of the wanted posts.
    """
    row, label = folder / "row.parquet", fold_path(folder / "label", scheme, repeat, fold)
    table = pids.select("pid")
    for features in (
        read_table(row, FEATURES),
        read_context(folder, scheme, repeat, fold),
        read_table(label, FEATURES),
    ):
        table = table.join(features, on="pid", how="left", validate="1:1")
    return table.sort("pid")


def read_context(folder: Path, scheme: str, repeat: int, fold: int) -> pl.DataFrame:
    """(pid, context features) of the rows that one fold shows.

    Args:
        folder: that `featurize` wrote.
        scheme: of splits.
        repeat: from 0.
        fold: from 0.
    """
    common = fold_path(folder / "context", scheme, repeat)
    return read_table(common if common.exists() else fold_path(folder / "context", scheme, repeat, fold), FEATURES)
