"""Months as the positions of a time axis."""

from __future__ import annotations

import polars as pl


def all_months(found: pl.Series) -> list[str]:
    """Every month from the first to the last.

    >>> all_months(pl.Series(["2015-11", "2016-01"]))
    ['2015-11', '2015-12', '2016-01']
    """
    first, last = (int(month[:4]) * 12 + int(month[5:]) - 1 for month in (str(found.min()), str(found.max())))
    return [f"{month // 12:04d}-{month % 12 + 1:02d}" for month in range(first, last + 1)]
