"""Means over several data sets: of SRC, and of MAE as a share of the constant's, with paired intervals over users."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.systems import METRICS, POST_COLUMNS
from benchmarks.tables import verdict
from popularity.core.arrays import Float64Array
from popularity.core.metrics import loss_of_scores, relative_error, score
from popularity.ensemble.members import CONSTANT
from popularity.evaluation.bootstrap import interval, resample

SHARE, LOSS = "mae_share", "loss"  # MAE over the constant's; that less SRC
MEANS = ("src", SHARE, LOSS)  # what is averaged over the sets
CONFIDENCE = 0.95  # of the intervals, as in benchmarks.systems.compare
SCHEMA = {**dict.fromkeys(("score", "difference", "low", "high"), pl.Float64), "sets": pl.Int64}


def with_share(table: pl.DataFrame) -> pl.DataFrame:
    """The result of `compare` with rows of metric SHARE: MAE, its difference and interval over the constant's MAE."""
    mae = table.filter(metric="mae")
    constant = mae.filter(system=CONSTANT)["score"].item()
    names = ("score", "difference", "low", "high")
    values = mae.select(
        pl.Series(name, relative_error(mae[name].to_numpy(), constant)).fill_nan(None) for name in names
    )
    return pl.concat([table, mae.with_columns(pl.lit(SHARE).alias("metric"), *values)])


def mean_over_sets(
    sets: Mapping[str, pl.DataFrame], against: str, *, resamples: int, others: Mapping[str, str] | None = None
) -> pl.DataFrame:
    """(metric, system, score, difference, low, high, sets): means over the sets of MEANS, intervals of the difference.

    A draw takes users of every set with replacement, and averages the sets' scores: sets count alike, whatever their
    size. An undefined SRC counts as 0. A system that a set lacks has no score, and its difference is the mean over the
    `sets` that have it. A system without any SRC, such as a constant, has no mean of it.

    Args:
        sets: tables of Project.run with a column CONSTANT, by set.
        against: the system whose score is subtracted.
        resamples: number of draws.
        others: systems, by name, from which the score of another system is subtracted.
    """
    scored = [_scores_and_draws(rows, resamples, seed) for seed, rows in enumerate(sets.values())]
    names = dict.fromkeys(name for one in scored for name in one)
    lines: list[dict[str, Any]] = []
    for metric in MEANS:
        for name in names:
            reference = (others or {}).get(name, against)
            pairs = [(one[name][metric], one[reference][metric]) for one in scored if {name, reference} <= {*one}]
            if not pairs:
                continue
            own, other = (np.mean(side, axis=0) for side in zip(*pairs, strict=True))
            low, high = interval(own[1:] - other[1:], CONFIDENCE)
            known = bool(np.isfinite(own[1:]).any())  # not the SRC of a constant
            value = float(own[0]) if known and len(pairs) == len(sets) else None
            difference = float(own[0] - other[0]) if known else None
            line = {"metric": metric, "system": name, "score": value, "difference": difference}
            lines.append(line | {"low": low, "high": high, "sets": len(pairs)})
    return pl.DataFrame(lines, schema_overrides=SCHEMA)


def _scores_and_draws(rows: pl.DataFrame, resamples: int, seed: int) -> dict[str, dict[str, Float64Array]]:
    """(1 + resamples,) by system and metric of MEANS: its score in one set, then those on draws of its users."""
    names = [name for name in rows.columns if name not in POST_COLUMNS]
    labels, splits = rows["label"].to_numpy(), rows["fold"].to_numpy()
    each = rows.select(names).to_numpy()
    user = np.unique(rows["uid"].to_numpy(), return_inverse=True)[1]
    drawn = resample(labels, each, user, resamples=resamples, seed=seed, folds=splits)
    whole = [score(labels, column, splits) for column in each.T]
    src, mae = (
        np.vstack([[one[metric] or 0.0 for one in whole], drawn[metric]]) for metric in METRICS
    )  # (1 + resamples, systems)
    constant = mae[:, [names.index(CONSTANT)]]
    means = {"src": src, SHARE: relative_error(mae, constant), LOSS: loss_of_scores(mae, constant, src)}
    return {name: {metric: means[metric][:, index] for metric in MEANS} for index, name in enumerate(names)}


def outside(scored: Mapping[str, pl.DataFrame], system: str, word: str) -> list[str]:
    """The sets, with the metric, on which a system is `better` or `worse` outside the interval of its difference.

    Args:
        scored: results of `compare`, by set.
        system: its name.
        word: better or worse.
    """
    return [
        f"{Path(name).resolve().name} ({row['metric']})"
        for name, table in scored.items()
        for row in table.filter(pl.col("metric").is_in(METRICS), system=system).iter_rows(named=True)
        if verdict(row["metric"], row["low"], row["high"]) == word
    ]
