"""The order in which posts were collected, as the numbers of their Pids and Uids tell it.

It is an artefact of the collection and no property of a post, so nothing reads it by default (docs/validation.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from popularity.core.arrays import Int64Array

NUMBER = r"^(\d{1,18})(?:@.*)?$"  # a Pid, or a Uid such as 70478@N10
NOT_COLLECTED = np.iinfo(np.int64).max  # of a Pid that is no number: after all others


def id_number(column: str) -> pl.Expr:
    """Returns the number of each id; null where it has none."""
    return pl.col(column).str.extract(NUMBER).cast(pl.Int64)


def pid_numbers(pids: Sequence[str] | pl.Series) -> Int64Array:
    """Returns the numbers (n,) of n Pids; NOT_COLLECTED where a Pid is no number."""
    frame = pl.DataFrame({"pid": pl.Series(pids, dtype=pl.String)})
    return frame.select(id_number("pid").fill_null(NOT_COLLECTED)).to_series().to_numpy()
