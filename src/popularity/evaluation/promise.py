"""What the splits in time promise for a later part, with an interval, next to the result where there is one.

The promise for a split is the mean score of the splits before it; that for the test part is the mean of all, `holdout`
included. A part's score differs from this mean because other users are scored and because the time is another one. With
k splits, variance s^2 of a split's score over draws of users (mean over the splits) and variance v of the scores:

    tau^2 = max(0, v - s^2)                      between times (moments; DerSimonian and Laird, 1986)
    promise +- z sqrt((1 + 1/k) (tau^2 + s^2))

One split does not show how much scores vary in time: then tau is 0 and `origins` is 1. Nothing here knows what the
test part's own dates do to the trend.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import polars as pl

from popularity.core.arrays import Float64Array
from popularity.core.contracts import FORWARD, HOLDOUT, MAIN_MODEL

TEST = "test"
PROMISED = ("src", "mae")
CONFIDENCE = 0.9  # of the interval around a promise


@dataclass(frozen=True)
class Promise:
    """A score that is expected on a part, from the splits before it.

    Args:
        part: `forward 1`, `holdout` or `test`.
        metric: src or mae.
        origins: number of splits before it.
        value: mean of their scores.
        low: of the interval.
        high: of the interval.
        result: the score on the part; None for the test part.
    """

    part: str
    metric: str
    origins: int
    value: float
    low: float
    high: float
    result: float | None

    @property
    def kept(self) -> bool | None:
        """Whether the result lies in the interval."""
        return None if self.result is None else self.low <= self.result <= self.high


def promises(scores: pl.DataFrame, confidence: float) -> list[Promise]:
    """Returns the promise for every split in time but the first, and for the test part, of the main model.

    Args:
        scores: of `score_overall`.
        confidence: of the intervals in `scores`.
    """
    return [promise for metric in PROMISED for promise in _of_metric(scores, metric, confidence)]


def _of_metric(scores: pl.DataFrame, metric: str, confidence: float) -> list[Promise]:
    own = scores.filter(pl.col("minus").is_null(), model=MAIN_MODEL, metric=metric)
    forward = own.filter(scheme=FORWARD)
    single = forward.filter(pl.col("fold").is_not_null()).sort("fold")
    in_time = pl.concat([single if len(single) else forward, own.filter(scheme=HOLDOUT)]).to_dicts()
    names = [_name(row) for row in in_time]
    if any(row["value"] is None or row["low"] is None for row in in_time):
        return []
    values = np.array([row["value"] for row in in_time])
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    variances = np.array([((row["high"] - row["low"]) / (2 * z)) ** 2 for row in in_time])
    parts = [(name, count, float(values[count])) for count, name in enumerate(names) if count]
    return [
        _promise((part, metric), values[:count], variances[:count], result)
        for part, count, result in [*parts, (TEST, len(values), None)]
    ]


def _name(row: dict[str, object]) -> str:
    return f"{row['scheme']} {row['fold']}" if row["fold"] is not None else f"{row['scheme']}"


def _promise(what: tuple[str, str], values: Float64Array, variances: Float64Array, result: float | None) -> Promise:
    count = len(values)
    value, of_users = float(np.mean(values)), float(np.mean(variances))
    between = max(0.0, float(np.var(values, ddof=1)) - of_users) if count > 1 else 0.0
    half = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * float(np.sqrt((1 + 1 / count) * (between + of_users)))
    return Promise(*what, count, value, value - half, value + half, result)
