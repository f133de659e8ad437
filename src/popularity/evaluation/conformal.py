"""Intervals around a prediction: normalised split conformal, and whether they hold what they state.

On posts that the model was not fitted on, |label - prediction| / scale is ranked; a further post's lies at or below the
k-th of n with a probability of at least k / (n + 1), as long as it comes from where they come (Lei et al. 2018,
section 5.2). Under a drift it does not, and coverage is lost: that is measured, not mended. Nor does it quite after a
search: the posts that calibrate have then chosen the parameters too, and are predicted a little too well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from popularity.core.atomic import write_json
from popularity.core.errors import ContractError
from popularity.core.metrics import FloatArray
from popularity.evaluation.bootstrap import interval, resample_means
from popularity.evaluation.scores import MAIN_MODEL, EvaluateConfig, Scored, rounded

CALIBRATED_ON = "forward"  # its scored posts have the test part's mix of users, and `report` stays unseen
LEVELS = (0.5, 0.8, 0.9)

COVERAGE = {
    "scheme": pl.String,
    "group": pl.String,  # all, or the posts of seen or unseen users
    "level": pl.Float64,  # stated
    "posts": pl.Int64,
    "users": pl.Int64,
    "coverage": pl.Float64,  # share of the labels inside; null: the interval is infinite
    "low": pl.Float64,
    "high": pl.Float64,
    "width": pl.Float64,  # mean, in label units
}


@dataclass(frozen=True)
class Calibration:
    """How many scales an interval reaches to either side.

    Args:
        scheme: whose scored posts calibrated.
        posts: how many there were; cuts of the scheme are pooled.
        quantiles: level -> number of scales; None where there are too few posts to state the level: the interval
            is infinite.
    """

    scheme: str
    posts: int
    quantiles: Mapping[float, float | None]

    def reach(self, level: float, scale: FloatArray) -> FloatArray | None:
        """(n,) half widths in label units of posts with `scale` (n,), or None: infinite."""
        quantile = self.quantiles[level]
        return None if quantile is None else quantile * scale

    def write(self, path: Path) -> None:
        """JSON; a level that cannot be stated is null."""
        quantiles = {f"{level:g}": quantile for level, quantile in self.quantiles.items()}
        write_json(path, {"scheme": self.scheme, "posts": self.posts, "quantiles": quantiles})

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """What `write` wrote."""
        stored = json.loads(path.read_text(encoding="utf-8"))
        return cls(stored["scheme"], stored["posts"], {float(level): q for level, q in stored["quantiles"].items()})


def calibrate(
    labels: FloatArray, predictions: FloatArray, scale: FloatArray, levels: Sequence[float] = LEVELS
) -> Calibration:
    """Quantiles of |label - prediction| / scale of n posts that were not fitted on: the k-th, k = ceil((n + 1) level).

    Where k is above n the level has no finite interval.
    """
    scores = np.sort(np.abs(labels - predictions) / scale)
    posts = len(scores)
    quantiles: dict[float, float | None] = {}
    for level in levels:
        place = math.ceil(round((posts + 1) * level, 9))  # 10 * 0.7 is 7, not the next number above
        quantiles[level] = float(scores[place - 1]) if place <= posts else None
    return Calibration(CALIBRATED_ON, posts, quantiles)


def calibrate_on(scored: Sequence[Scored]) -> Calibration:
    """From the scheme CALIBRATED_ON; without it, no level can be stated.

    Raises:
        ContractError: a prediction of the main model has no scale, or one that is not above 0.
    """
    found = [one.rows for one in scored if one.scheme == CALIBRATED_ON]
    if not found:
        return calibrate(*np.empty((3, 0)))
    return calibrate(*_columns(found[0]))


def coverage_table(one: Scored, calibration: Calibration, config: EvaluateConfig) -> pl.DataFrame:
    """Coverage and width in a scheme, for all users and for seen and unseen ones: columns COVERAGE.

    `low` and `high` are bounds of the coverage by bootstrap over users; none for a single user.

    Raises:
        ContractError: as in `calibrate_on`.
    """
    parts = {
        "all": one.rows,
        "seen": one.rows.filter(pl.col("seen")),
        "unseen": one.rows.filter(~pl.col("seen")),
    }
    rows = [
        {"scheme": one.scheme, "group": group, "level": level, **_coverage(part, calibration, level, config)}
        for group, part in parts.items()
        if len(part)
        for level in calibration.quantiles
    ]
    return pl.DataFrame(rows, schema=COVERAGE, orient="row")


def _coverage(rows: pl.DataFrame, calibration: Calibration, level: float, config: EvaluateConfig) -> dict[str, Any]:
    labels, predictions, scale = _columns(rows)
    users = rows["uid"].rank("dense").to_numpy().astype(np.int64) - 1
    n_users = int(users.max()) + 1
    result: dict[str, Any] = {"posts": rows["pid"].n_unique(), "users": n_users}
    reach = calibration.reach(level, scale)
    if reach is None:
        return {**result, "coverage": None, "low": None, "high": None, "width": None}
    inside = (np.abs(labels - predictions) <= reach).astype(np.float64)
    draws = resample_means(inside, users, resamples=config.n_resamples, seed=config.seed)
    low, high = interval(draws, config.confidence_level) if n_users > 1 else (None, None)
    return {
        **result,
        "coverage": rounded(float(inside.mean())),
        "low": rounded(low),
        "high": rounded(high),
        "width": rounded(float(2 * reach.mean())),
    }


def _columns(rows: pl.DataFrame) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Labels, predictions of the main model and their scale, each (n,)."""
    bad = rows.filter(pl.col("error_scale").is_null() | (pl.col("error_scale") <= 0))
    if len(bad):
        raise ContractError(
            f"predictions: expected a scale above 0 beside each prediction of '{MAIN_MODEL}'; {len(bad)} have none, "
            f"for example that of {bad['pid'][0]}; run `dvc repro stack`"
        )
    columns = ("label", f"prediction:{MAIN_MODEL}", "error_scale")
    labels, predictions, scale = (rows[column].to_numpy() for column in columns)
    return labels, predictions, scale
