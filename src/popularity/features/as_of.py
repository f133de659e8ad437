"""When the past of a post ends: the as-of dates of all features that are made of labels.

A post's past ends at a date before the post, at the start of its block of time, as the past of a test post ends at the
cut. Blocks are as long as the scored span, counted back from the cut, so that fit rows see labels that are as old as
those that a scored row sees, and no row sees its own.

    blocks   ...|-- B --|-- B --|  scored span B  |
    past     ends at the start of the block a post is in
"""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl


def as_of_dates(
    rows: pl.DataFrame, interleaved_horizon: timedelta, timed_by: pl.DataFrame | None = None
) -> pl.DataFrame:
    """(pid, as_of) for fit and score rows (pid, role, posted_at): when each row's past ends.

    When most score rows lie after the last fit row (a scheme cut in time; published parts may overlap a
    little), the first of those is the cut, and blocks are as long as their span. When fit and score rows
    interleave (schemes user and random), blocks of `interleaved_horizon` are counted back from the last post.

    Args:
        rows: (pid, role, posted_at).
        interleaved_horizon: length of a block where fit and score rows interleave.
        timed_by: the rows that decide on the cut and the blocks, where others come to them; by default all of `rows`.
            Such others may lie between the last fit row and the cut: they see all labels too.
    """
    timed_by = rows if timed_by is None else timed_by
    fit, score = (timed_by.filter(pl.col("role") == role)["posted_at"] for role in ("train", "valid"))
    later = score.filter(score > fit.max())
    if 2 * len(later) > len(score):
        start, end = later.min(), later.max()
        assert isinstance(start, datetime)
        assert isinstance(end, datetime)
        block = _block_start(start, max(end - start, timedelta(days=1)))
        return rows.select("pid", as_of=pl.when(pl.col("posted_at") > fit.max()).then(pl.lit(start)).otherwise(block))
    latest = timed_by["posted_at"].max()
    assert isinstance(latest, datetime)
    return rows.select("pid", as_of=_block_start(latest + timedelta(seconds=1), interleaved_horizon))


def _block_start(cut: datetime, length: timedelta) -> pl.Expr:
    """Start of the block that holds `posted_at`: the cut for posts from the cut on, else cut - k * length."""
    micros = length // timedelta(microseconds=1)
    before = (pl.lit(cut) - pl.col("posted_at")).dt.total_microseconds()
    blocks = ((before + micros - 1) // micros).clip(lower_bound=0)
    return pl.lit(cut) - pl.duration(microseconds=blocks * micros)
