"""Normalised split conformal intervals around a prediction, and their coverage.

On n posts that the model was not fitted on, |label - prediction| / error_scale is ranked. That of a further post lies
at or below the k-th with a probability of at least k / (n + 1), if it comes from the same distribution (Lei et al.
2018, section 5.2). Under a drift it does not, and the coverage is lower than nominal; `coverage_table` measures that.
After a search it is a little lower, too: the posts that calibrate have also chosen the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from popularity.core.arrays import Float64Array, rounded
from popularity.core.atomic import read_json, write_json
from popularity.core.contracts import FORWARD, MAIN_MODEL
from popularity.core.errors import ContractError
from popularity.evaluation.bootstrap import interval, resample_means
from popularity.evaluation.scores import DIGITS, EvaluateConfig, Scored

CALIBRATED_ON = FORWARD  # its valid posts have the test part's mix of users, and `holdout` stays unseen
COVERAGES = (0.5, 0.8, 0.9)  # nominal

COVERAGE = {
    "scheme": pl.String,
    "group": pl.String,  # all, or the posts of seen or unseen users
    "nominal": pl.Float64,  # coverage
    "posts": pl.Int64,
    "users": pl.Int64,
    "coverage": pl.Float64,  # share of the labels inside their intervals; null: the interval is infinite
    "low": pl.Float64,
    "high": pl.Float64,
    "width": pl.Float64,  # mean, in label units
}


@dataclass(frozen=True)
class Calibration:
    """The half width of an interval, in error scales.

    Args:
        scheme: whose valid posts calibrated.
        posts: how many there were; the folds of the scheme are pooled.
        quantiles: nominal coverage -> number of error scales; None where there are too few posts for it, and the
            interval is infinite.
    """

    scheme: str
    posts: int
    quantiles: Mapping[float, float | None]

    def half_width(self, nominal: float, error_scale: Float64Array) -> Float64Array | None:
        """Returns half widths (n,) in label units of posts with `error_scale` (n,); None: infinite."""
        quantile = self.quantiles[nominal]
        return None if quantile is None else quantile * error_scale

    def write(self, path: Path) -> None:
        """Writes JSON; an infinite interval is null."""
        quantiles = {f"{nominal:g}": quantile for nominal, quantile in self.quantiles.items()}
        write_json(path, {"scheme": self.scheme, "posts": self.posts, "quantiles": quantiles})

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Returns what `write` wrote."""
        stored = read_json(path)
        return cls(stored["scheme"], stored["posts"], {float(nominal): q for nominal, q in stored["quantiles"].items()})


def calibrate(
    labels: Float64Array, predictions: Float64Array, error_scale: Float64Array, coverages: Sequence[float] = COVERAGES
) -> Calibration:
    """Returns the conformal quantiles of |label - prediction| / error_scale: the k-th of n, k = ceil((n + 1) nominal).

    Where k is above n the interval is infinite.

    Args:
        labels: (n,) of posts that were not fitted on.
        predictions: (n,).
        error_scale: (n,) above 0.
        coverages: nominal ones.
    """
    scores = np.sort(np.abs(labels - predictions) / error_scale)
    posts = len(scores)
    quantiles: dict[float, float | None] = {}
    for nominal in coverages:
        rank = math.ceil(round((posts + 1) * nominal, 9))  # 10 * 0.7 is 7, not the next number above
        quantiles[nominal] = float(scores[rank - 1]) if rank <= posts else None
    return Calibration(CALIBRATED_ON, posts, quantiles)


def calibrate_on(scored: Sequence[Scored]) -> Calibration:
    """Returns the calibration on the scheme CALIBRATED_ON; without it all intervals are infinite.

    Raises:
        ContractError: a prediction of the main model has no error_scale above 0.
    """
    found = [one.rows for one in scored if one.scheme == CALIBRATED_ON]
    if not found:
        return calibrate(*np.empty((3, 0)))
    return calibrate(*_columns(found[0]))


def coverage_table(one: Scored, calibration: Calibration, config: EvaluateConfig) -> pl.DataFrame:
    """Returns coverage and width in a scheme, for all users and for seen and unseen ones: columns COVERAGE.

    `low` and `high` bound the coverage, by bootstrap over users; a single user has no bounds.

    Raises:
        ContractError: as in `calibrate_on`.
    """
    groups = {
        "all": one.rows,
        "seen": one.rows.filter(pl.col("seen")),
        "unseen": one.rows.filter(~pl.col("seen")),
    }
    lines = [
        {"scheme": one.scheme, "group": group, "nominal": nominal, **_coverage(rows, calibration, nominal, config)}
        for group, rows in groups.items()
        if len(rows)
        for nominal in calibration.quantiles
    ]
    return pl.DataFrame(lines, schema=COVERAGE, orient="row")


def _coverage(rows: pl.DataFrame, calibration: Calibration, nominal: float, config: EvaluateConfig) -> dict[str, Any]:
    labels, predictions, error_scale = _columns(rows)
    users = rows["uid"].rank("dense").to_numpy().astype(np.int64) - 1
    n_users = int(users.max()) + 1
    result: dict[str, Any] = {"posts": rows["pid"].n_unique(), "users": n_users}
    half_width = calibration.half_width(nominal, error_scale)
    if half_width is None:
        return {**result, "coverage": None, "low": None, "high": None, "width": None}
    inside = (np.abs(labels - predictions) <= half_width).astype(np.float64)
    draws = resample_means(inside, users, resamples=config.n_resamples, seed=config.seed)
    low, high = interval(draws, config.confidence_level) if n_users > 1 else (None, None)
    return {
        **result,
        "coverage": rounded(float(inside.mean()), DIGITS),
        "low": rounded(low, DIGITS),
        "high": rounded(high, DIGITS),
        "width": rounded(float(2 * half_width.mean()), DIGITS),
    }


def _columns(rows: pl.DataFrame) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Labels, predictions of the main model and their error_scale, each (n,)."""
    bad = rows.filter(pl.col("error_scale").is_null() | (pl.col("error_scale") <= 0))
    if len(bad):
        raise ContractError(
            f"predictions: {len(bad)} of '{MAIN_MODEL}' have no error_scale above 0, for example that of post "
            f"{bad['pid'][0]}; run `dvc repro stack`"
        )
    columns = ("label", f"prediction:{MAIN_MODEL}", "error_scale")
    labels, predictions, error_scale = (rows[column].to_numpy() for column in columns)
    return labels, predictions, error_scale
