"""Target statistics of users and classes: shrunk means, last labels and counts of past train rows.

The past of a row ends at its as-of date (`core/as_of.py`). `compare_target_statistics` compares the statistics of train
rows with those of valid rows: a model that learns on the former assumes that the latter are distributed alike.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
from scipy.stats import ks_2samp

from popularity.core.arrays import rounded
from popularity.core.as_of import as_of_dates
from popularity.core.contracts import FOLDS, FoldKey
from popularity.features.rows import days, join_by_pid

COMPARED = ("posts", "age")
QUARTILES = (0.25, 0.5, 0.75)
DIGITS = 4
FOLD = list(FOLDS.key[:2])


def target_statistics(
    rows: pl.DataFrame,
    keys: tuple[str, ...],
    prior_weight: float,
    interleaved_horizon: timedelta,
    timed_by: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Returns (pid, the target statistics of every key) of the train and valid rows of one fold.

    Args:
        rows: (pid, role, posted_at, label, every key). Labels of valid rows are blanked before use.
        keys: see `key_statistics`.
        prior_weight: see `key_statistics`.
        interleaved_horizon: see `as_of_dates`.
        timed_by: see `as_of_dates`.
    """
    rows = rows.with_columns(label=pl.when(pl.col("role") == "train").then(pl.col("label")))
    rows = join_by_pid(rows, as_of_dates(rows, interleaved_horizon, timed_by))
    table = rows.select("pid").sort("pid")
    for key in keys:
        table = join_by_pid(table, key_statistics(rows, key, prior_weight))
    return table


def key_statistics(rows: pl.DataFrame, key: str, prior_weight: float) -> pl.DataFrame:
    """Returns (pid, target statistics of the post's `key`), from labels of train rows before the row's as-of date.

    Args:
        rows: (pid, role, posted_at, as_of, label, <key>), label null unless role is train.
        key: the column whose past posts count, for example uid.
        prior_weight: posts' worth of the overall mean that the shrunk mean starts from.

    Columns: `<key>_target_posts`; `<key>_target_level`, the mean label shrunk to the overall mean as of that date,
    minus that mean (a trend is not a property of the user); `<key>_target_last`, the last label minus that mean;
    `<key>_target_age`, days from the last labelled post to this post.
    """
    labelled = rows.filter((pl.col("role") == "train") & pl.col("label").is_not_null()).sort("posted_at", "pid")
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
    posts = rows.select("pid", key, "posted_at", "as_of").sort("as_of", "pid")
    # Strictly before: posts of the second of the as-of date belong to the block that starts there.
    joined = posts.join_asof(
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
            f"{key}_target_posts": pl.col("key_count").fill_null(0).cast(pl.Int32),
            f"{key}_target_level": shrunk - mean,
            f"{key}_target_last": pl.col("key_last") - mean,
            f"{key}_target_age": days(pl.col("posted_at") - pl.col("key_last_at")),
        },
    ).sort("pid")


def compare_target_statistics(splits: pl.DataFrame, folder: Path, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns, for each fold and key, the share of train and valid rows with a past, quartiles of it and a distance.

    The quartiles are of the past's length (posts) and age (days); `distance` is Kolmogorov and Smirnov's, between train
    and valid rows. Valid rows may have a longer past, because they come last, and fewer of them have one, because
    users are excluded; the age should agree, because blocks are as long as the valid span.

    Args:
        splits: contract FOLDS.
        folder: that `featurize` wrote.
        keys: section featurize, target_statistics.
    """
    roles = splits.filter(pl.col("role") != "excluded")
    columns = [f"{key}_target_{quantity}" for key in keys for quantity in COMPARED]
    comparisons = []
    for (scheme, fold), own in roles.group_by(FOLD, maintain_order=True):
        key_of_fold = FoldKey(str(scheme), int(str(fold)))
        statistics = pl.read_parquet(folder / "label" / key_of_fold.file_name, columns=["pid", *columns])
        rows = statistics.join(own.select("pid", "role"), on="pid", how="left", validate="1:1")
        both = {role: rows.filter(role=role) for role in ("train", "valid")}
        for key in keys:
            past = {role: _past(table, key) for role, table in both.items()}
            comparisons.append(
                {
                    **asdict(key_of_fold),
                    "key": key,
                    **{role: _quartiles(past[role], table.height) for role, table in both.items()},
                    "distance": {
                        quantity: _distance(past["train"][quantity], past["valid"][quantity]) for quantity in COMPARED
                    },
                }
            )
    return comparisons


def _past(rows: pl.DataFrame, key: str) -> pl.DataFrame:
    """COMPARED of the rows that have a past labelled post of their `key`."""
    return rows.select(pl.col(f"{key}_target_{quantity}").alias(quantity) for quantity in COMPARED).filter(
        pl.col("posts") > 0
    )


def _quartiles(past: pl.DataFrame, rows: int) -> dict[str, Any]:
    quartiles = {
        name: [rounded(past[name].quantile(share, "linear"), DIGITS) for share in QUARTILES] for name in COMPARED
    }
    return {"rows": rows, "share": rounded(past.height / rows if rows else None, DIGITS), **quartiles}


def _distance(train: pl.Series, valid: pl.Series) -> float | None:
    """The largest difference of the two distribution functions; None if one has no value."""
    if train.is_empty() or valid.is_empty():
        return None
    return rounded(ks_2samp(train.to_numpy(), valid.to_numpy(), method="asymp").statistic, DIGITS)
