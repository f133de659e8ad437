"""Features fitted on labels: causal histories of users and classes, from fit rows alone.

A post's history ends at an as-of date before the post, at the start of its block of time, as the
history of a test post ends at the cut. Blocks are as long as the scored span, counted back from the
cut, so that fit rows see labels that are as old as those a scored row sees, and no row sees its own.

    blocks   ...|-- B --|-- B --|  scored span B  |
    history  ends at the start of the block a post is in
"""

from __future__ import annotations

from datetime import datetime, timedelta

import polars as pl

from popularity.features.row import beside, days


def as_of_dates(
    rows: pl.DataFrame, interleaved_horizon: timedelta, timed_by: pl.DataFrame | None = None
) -> pl.DataFrame:
    """(pid, as_of) for fit and score rows (pid, role, posted_at): when each row's history ends.

    When most score rows lie after the last fit row (a scheme cut in time; published parts may overlap a
    little), the first of those is the cut, and blocks are as long as their span. When fit and score rows
    interleave (schemes user and random), blocks of `interleaved_horizon` are counted back from the last post.

    `timed_by`: the rows by which that is judged, where others come to them; by default all of `rows`. Such others may
    lie between the last fit row and the cut: they see all labels too.
    """
    timed_by = rows if timed_by is None else timed_by
    fit, score = (timed_by.filter(pl.col("role") == role)["posted_at"] for role in ("fit", "score"))
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


def history(rows: pl.DataFrame, key: str, prior_weight: float) -> pl.DataFrame:
    """(pid, history of the post's `key`) from labels of fit rows posted before the row's as-of date.

    Args:
        rows: (pid, role, posted_at, as_of, label, <key>), label null unless role is fit.
        key: the column whose past posts count: uid, subcategory, concept.
        prior_weight: posts' worth of the overall mean that the shrunk mean starts from.

    Columns: `<key>_history_posts`; `<key>_history_level`, the mean label shrunk to the overall mean as of
    that date, minus that mean (a level that drifts is not a property of the user); `<key>_history_last`,
    likewise of the last label; `<key>_history_age`, days from the last labelled post to this post.
    """
    labelled = rows.filter((pl.col("role") == "fit") & pl.col("label").is_not_null()).sort("posted_at", "pid")
    overall = labelled.select(
        overall_at=pl.col("posted_at"),
        total=pl.col("label").cum_sum(),
        count=pl.int_range(1, pl.len() + 1),
    )
    past = labelled.select(
        key,
        key_total=pl.col("label").cum_sum().over(key),
        key_count=pl.int_range(1, pl.len() + 1).over(key),
        key_last=pl.col("label"),
        key_last_at=pl.col("posted_at"),
    )
    asked = rows.select("pid", key, "posted_at", "as_of").sort("as_of", "pid")
    # Strictly before: posts of one second with the as-of date belong to the block that starts there.
    joined = asked.join_asof(
        overall, left_on="as_of", right_on="overall_at", strategy="backward", allow_exact_matches=False
    ).join_asof(
        past,
        left_on="as_of",
        right_on="key_last_at",
        by=key,
        strategy="backward",
        allow_exact_matches=False,
        check_sortedness=False,
    )
    mean = pl.col("total") / pl.col("count")
    shrunk = (pl.col("key_total") + prior_weight * mean) / (pl.col("key_count") + prior_weight)
    return joined.select(
        "pid",
        **{
            f"{key}_history_posts": pl.col("key_count").fill_null(0).cast(pl.Int32),
            f"{key}_history_level": shrunk - mean,
            f"{key}_history_last": pl.col("key_last") - mean,
            f"{key}_history_age": days(pl.col("posted_at") - pl.col("key_last_at")),
        },
    ).sort("pid")


def label_features(
    rows: pl.DataFrame,
    keys: tuple[str, ...],
    prior_weight: float,
    interleaved_horizon: timedelta,
    timed_by: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """(pid, histories of every key) for the fit and score rows of one fold.

    Args:
        rows: (pid, role, posted_at, label, every key). Labels of score rows are blanked before use.
        keys: see `history`.
        prior_weight: see `history`.
        interleaved_horizon: see `as_of_dates`.
        timed_by: see `as_of_dates`.
    """
    rows = rows.with_columns(label=pl.when(pl.col("role") == "fit").then(pl.col("label")))
    rows = beside(rows, as_of_dates(rows, interleaved_horizon, timed_by))
    table = rows.select("pid").sort("pid")
    for key in keys:
        table = beside(table, history(rows, key, prior_weight))
    return table
