"""As-of dates: where the past of a post ends, for all features that use labels.

The past of a valid post ends at the origin. The past of a train post ends at the start of its block of time. Blocks
are as long as the valid span, counted back from the origin, so that train rows see labels as old as those that a valid
row sees, and no row sees its own.

    blocks   ...|-- B --|-- B --|  valid span B  |
    past     ends at the start of the block of a post

Where the test part lies among the training posts in time, a test post has earlier posts of its own period. So blocks
are short there (`interleaved_horizon`), wherever train and valid rows interleave.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta

import polars as pl

from popularity.core.contracts import FORWARD

EDGE = 0.001  # of the posts at either end of a part, whose dates may be wrong and do not count
PERIODS = 100  # blocks of the training part where the test posts lie among the training posts


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


def ends(posted_at: pl.Series) -> tuple[datetime, datetime]:
    """Returns when a part begins and ends: first and last date, without EDGE of the posts at either end.

    Args:
        posted_at: (n,) dates, in any order; not empty.
    """
    dates = posted_at.sort()
    edge = min(math.ceil(EDGE * len(dates)), (len(dates) - 1) // 2)
    return dates[edge], dates[len(dates) - 1 - edge]


def lies_among(test: pl.Series, train: pl.Series) -> bool:
    """Whether at least half of the test posts are not later than the training posts.

    Args:
        test: (m,) dates of the test posts; without any, the answer is no.
        train: (n,) dates of the training posts.
    """
    return len(test) > 0 and 2 * int((test > ends(train)[1]).sum()) <= len(test)


def interleaved_horizon(posts: pl.DataFrame, splits: pl.DataFrame) -> timedelta:
    """Returns the length of a block where train and valid rows interleave.

    It is the length of the last forward split's valid span: the schemes that interleave contain those rows, and not
    the valid rows of `holdout`. Where the test part lies among the training posts it is a part of the training span,
    so that histories see earlier posts of the same period. At least a day.

    Args:
        posts: (pid, split, posted_at).
        splits: contract FOLDS.
    """
    train, test = (posts.filter(pl.col("split") == part)["posted_at"] for part in ("train", "test"))
    if lies_among(test, train):
        start, end = ends(train)
        return max((end - start) / PERIODS, timedelta(days=1))
    last = splits.filter(pl.col("scheme") == FORWARD).filter(pl.col("fold") == pl.col("fold").max())
    valid = last.filter(pl.col("role") == "valid").select("pid").unique()
    times = valid.join(posts.select("pid", "posted_at"), on="pid", how="left", validate="1:1")
    span: timedelta = times.select(pl.col("posted_at").max() - pl.col("posted_at").min()).item()
    return max(span, timedelta(days=1))
