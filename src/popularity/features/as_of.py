"""As-of dates: where the past of a post ends, for all features that use labels.

The past of a valid post ends at the origin. The past of a train post ends at the start of its block of time. Blocks
are as long as the valid span, counted back from the origin, so that train rows see labels as old as those that a valid
row sees, and no row sees its own.

    blocks   ...|-- B --|-- B --|  valid span B  |
    past     ends at the start of the block of a post
"""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl


def as_of_dates(
    rows: pl.DataFrame, interleaved_horizon: timedelta, timed_by: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Returns (pid, as_of): when each row's past ends.

    If most valid rows lie after the last train row (a split in time; published parts may overlap a little), the first
    of those is the origin, and blocks are as long as their span. If train and valid rows interleave (schemes `group`
    and `random`), blocks of `interleaved_horizon` are counted back from the last post.

    Args:
        rows: (pid, role, posted_at) of train and valid rows.
        interleaved_horizon: length of a block where train and valid rows interleave.
        timed_by: the rows that decide on origin and blocks; by default `rows`. Other rows may lie between the last
            train row and the origin: they see all labels, too.
    """
    timed_by = rows if timed_by is None else timed_by
    train, valid = (timed_by.filter(pl.col("role") == role)["posted_at"] for role in ("train", "valid"))
    later = valid.filter(valid > train.max())
    if 2 * len(later) > len(valid):
        start, end = later.min(), later.max()
        assert isinstance(start, datetime)
        assert isinstance(end, datetime)
        block = _block_start(start, max(end - start, timedelta(days=1)))
        return rows.select("pid", as_of=pl.when(pl.col("posted_at") > train.max()).then(pl.lit(start)).otherwise(block))
    latest = timed_by["posted_at"].max()
    assert isinstance(latest, datetime)
    return rows.select("pid", as_of=_block_start(latest + timedelta(seconds=1), interleaved_horizon))


def _block_start(origin: datetime, length: timedelta) -> pl.Expr:
    """The start of the block that holds `posted_at`: the origin for posts from there on, else origin - k * length."""
    micros = length // timedelta(microseconds=1)
    before = (pl.lit(origin) - pl.col("posted_at")).dt.total_microseconds()
    blocks = ((before + micros - 1) // micros).clip(lower_bound=0)
    return pl.lit(origin) - pl.duration(microseconds=blocks * micros)
