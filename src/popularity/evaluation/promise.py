"""What the splits in time promise for another part, with an interval, next to the result where there is one.

A forward split is promised by the other forward splits (leave one origin out), `holdout` by all forward splits, and the
test part by all of them and `holdout`. A promise is the mean score of those splits, each with a weight of 1 / (the
number of splits that share its posts). A part's score differs from it for three reasons:

    users     other users are scored: variance s^2 of a split's score over draws of users
    times     the time is another one: variance tau^2. The k splits show t^2 = max(0, v - s^2), with the variance v of
              their scores (moments; DerSimonian and Laird, 1986). Two or three splits show little, so the prior
              TIMES counts for PRIOR_SPLITS more of them (scaled inverse chi^2; Gelman et al., Bayesian Data Analysis,
              sec 2.6): tau^2 = (PRIOR_SPLITS * prior^2 + (k - 1) t^2) / n, n = PRIOR_SPLITS + k - 1
    level     at the part's own dates, which are known, each member of the trend forecasts another level. Were one of
              them right, and not their mean, the score would change by d_m

With weights w of the splits, correlations C = shared posts of two splits, and c of the splits with the part:

    promise +- q sqrt((1 + w'Cw - 2 w'c) (tau^2 + s^2) + mean of d_m^2)    v = sum w (score - promise)^2 / (1 - w'Cw)

q is the quantile of Student's t with n degrees of freedom. The changes that worsen a score widen the interval on that
side alone. One split does not show how much scores vary in time: then the prior alone says it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import polars as pl
from scipy.stats import t as student

from popularity.core.arrays import Float64Array, rounded
from popularity.core.contracts import FORWARD, HOLDOUT, MAIN_MODEL, REFIT
from popularity.core.metrics import spearman
from popularity.evaluation.scores import DIGITS, Scored

TEST = "test"
PROMISED = ("src", "mae")
CONFIDENCE = 0.9  # of the interval around a promise
LEVEL_LIMIT = 0.10  # label units: where the members' mean forecasts differ by more, the level is not known
# Standard deviation of a score between splits in time, users apart, before a split is seen; that of the MAE is a share
# of the promise (docs/results.md, promises).
TIMES = {"src": 0.03, "mae": 0.05}
PRIOR_SPLITS = 3  # that the prior counts for
MAX_SHARED = 0.9  # of the variance between splits that shared posts may hide
BOUNDS = {"src": (-1.0, 1.0), "mae": (0.0, np.inf)}

PROMISES = {
    "part": pl.String,
    "metric": pl.String,
    "splits": pl.Int64,  # that promise
    "shared": pl.Float64,  # mean share of posts that the part has in common with them
    "promise": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "width": pl.Float64,
    "result": pl.Float64,  # null: the test part, whose labels nobody has
    "inside": pl.Boolean,
    "members_differ_by": pl.Float64,  # of the trend, in their mean forecasts at the part's dates; null: one member
}


@dataclass(frozen=True)
class Promise:
    """A score that is expected on a part, from other splits.

    Args:
        part: `forward 1`, `holdout` or `test`.
        metric: src or mae.
        origins: number of splits that promise.
        shared: mean share of posts that the part has in common with them.
        value: weighted mean of their scores.
        low: of the interval.
        high: of the interval.
        result: the score on the part; None for the test part.
        members_differ_by: label units, see `Forecasts`; None where the trend has one member.
    """

    part: str
    metric: str
    origins: int
    shared: float
    value: float
    low: float
    high: float
    result: float | None
    members_differ_by: float | None

    @property
    def kept(self) -> bool | None:
        """Whether the result lies in the interval."""
        return None if self.result is None else self.low <= self.result <= self.high


@dataclass(frozen=True)
class Forecasts:
    """What the members of the trend forecast at the dates of a part.

    Args:
        earlier: (d,) share of the part's posts that are not later than each date, rising from 0 to 1.
        values: (members, d) label units.
    """

    earlier: Float64Array
    values: Float64Array

    @property
    def differ_by(self) -> float:
        """How far the members' means over the dates lie apart, label units."""
        return float(np.ptp(self.values.mean(axis=1)))

    def from_mean(self, earlier: Float64Array) -> Float64Array:
        """Returns (members, n) how far each member lies from their mean, at n posts in order of time.

        Args:
            earlier: (n,) share of the posts that are not later.
        """
        apart = self.values - self.values.mean(axis=0)
        return np.stack([np.interp(earlier, self.earlier, own) for own in apart])


@dataclass(frozen=True)
class TimeSplit:
    """The valid posts of a split in time, with the main model's score.

    Args:
        name: `forward 0` or `holdout`.
        pids: of its posts.
        earlier: (n,) share of its posts that are not later, 0 to 1.
        label: (n,).
        prediction: (n,).
        values: score by metric.
        variances: of the score over draws of users, by metric.
    """

    name: str
    pids: frozenset[str]
    earlier: Float64Array
    label: Float64Array
    prediction: Float64Array
    values: Mapping[str, float]
    variances: Mapping[str, float]

    def shared(self, other: TimeSplit) -> float:
        """Returns the share of posts that two splits have in common, of the geometric mean of their numbers."""
        return len(self.pids & other.pids) / math.sqrt(len(self.pids) * len(other.pids))

    def changes(self, metric: str, forecasts: Forecasts) -> Float64Array:
        """Returns (members,) by how much the score would change, were one member right in place of their mean.

        The split's posts stand for those of the part, in the same order of time. The error's own median is taken off
        the MAE, so that an error of the level can only raise it.

        Args:
            metric: src or mae.
            forecasts: at the part's dates.
        """
        apart = forecasts.from_mean(self.earlier)
        if metric == "mae":
            error = self.label - self.prediction
            error = error - np.median(error)
            changed: Float64Array = np.abs(error + apart).mean(axis=1) - np.abs(error).mean()
            return changed
        own = spearman(self.label, self.prediction) or 0.0
        return np.array([(spearman(self.label + one, self.prediction) or 0.0) - own for one in apart])


def promises(scored: Sequence[Scored], scores: pl.DataFrame, trends: pl.DataFrame, confidence: float) -> list[Promise]:
    """Returns the promise for every split in time that others promise, and for the test part, of the main model.

    Args:
        scored: of `collect`.
        scores: of `score_overall`.
        trends: contract TRENDS; without a row the level adds nothing.
        confidence: of the intervals in `scores`.
    """
    splits = time_splits(scored, scores, confidence)
    forward = [one for one in splits if one.name != HOLDOUT]
    tasks: list[tuple[str, TimeSplit | None, list[TimeSplit]]] = [
        *((one.name, one, [other for other in forward if other is not one]) for one in splits),
        (TEST, None, splits),
    ]
    forecasts = {name: _forecasts(trends, name) for name, _, _ in tasks}
    return [
        _promise((name, metric), part, others, forecasts[name])
        for metric in PROMISED
        for name, part, others in tasks
        if others
    ]


def time_splits(scored: Sequence[Scored], scores: pl.DataFrame, confidence: float) -> list[TimeSplit]:
    """Returns the splits in time, the holdout last; none where one has no score with an interval.

    Args:
        scored: of `collect`.
        scores: of `score_overall`.
        confidence: of the intervals in `scores`.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    own = scores.filter(pl.col("minus").is_null(), model=MAIN_MODEL)
    found = []
    for scheme in (FORWARD, HOLDOUT):
        for one in (one for one in scored if one.scheme == scheme):
            for fold in one.folds:
                is_fold = pl.col("fold") == fold if len(one.folds) > 1 else pl.col("fold").is_null()
                by_metric = {row["metric"]: row for row in own.filter(is_fold, scheme=scheme).to_dicts()}
                rows = [by_metric[metric] for metric in PROMISED]
                if any(row["value"] is None or row["low"] is None for row in rows):
                    return []
                values = {row["metric"]: row["value"] for row in rows}
                variances = {row["metric"]: ((row["high"] - row["low"]) / (2 * z)) ** 2 for row in rows}
                name = HOLDOUT if scheme == HOLDOUT else f"{scheme} {fold}"
                found.append(_time_split(name, one.rows.filter(fold=fold), values, variances))
    return found


def _time_split(
    name: str, rows: pl.DataFrame, values: Mapping[str, float], variances: Mapping[str, float]
) -> TimeSplit:
    order = rows["posted_at"].rank("average").to_numpy()
    label, prediction = rows["label"].to_numpy(), rows[f"prediction:{MAIN_MODEL}"].to_numpy()
    earlier = (order - 1) / max(len(order) - 1, 1)
    return TimeSplit(name, frozenset(rows["pid"]), earlier, label, prediction, values, variances)


def _forecasts(trends: pl.DataFrame, name: str) -> Forecasts | None:
    """The members' forecasts at the dates of a part; None where the trend has one member or none."""
    scheme, _, fold = (REFIT if name == TEST else name).partition(" ")
    own = trends.filter(scheme=scheme, fold=int(fold or 0)).sort("member", "earlier")
    members = own.partition_by("member", maintain_order=True)
    if len(members) < 2:
        return None
    return Forecasts(members[0]["earlier"].to_numpy(), np.stack([one["value"].to_numpy() for one in members]))


def _promise(
    what: tuple[str, str], part: TimeSplit | None, others: Sequence[TimeSplit], forecasts: Forecasts | None
) -> Promise:
    metric, n = what[1], PRIOR_SPLITS + len(others) - 1
    q = float(student.ppf(0.5 + CONFIDENCE / 2, n))
    values = np.array([one.values[metric] for one in others])
    shared = np.array([[one.shared(other) for other in others] for one in others])
    with_part = np.array([0.0 if part is None else one.shared(part) for one in others])
    weights = 1 / shared.sum(axis=1)
    weights /= weights.sum()
    value, of_mean = float(weights @ values), float(weights @ shared @ weights)
    of_users = float(weights @ np.array([one.variances[metric] for one in others]))
    between = 0.0
    if len(others) > 1:
        seen = max(1 - of_mean, 1 - MAX_SHARED)
        between = max(0.0, float(weights @ (values - value) ** 2) / seen - of_users)
    prior = TIMES[metric] * (value if metric == "mae" else 1)
    between = (PRIOR_SPLITS * prior**2 + (len(others) - 1) * between) / n
    spread = max(1 + of_mean - 2 * float(weights @ with_part), 0.0) * (between + of_users)
    changes = np.zeros(1)
    if forecasts is not None:
        changes = np.average([one.changes(metric, forecasts) for one in others], axis=0, weights=weights)
    below, above = (float(np.mean(own**2)) for own in (np.minimum(changes, 0), np.maximum(changes, 0)))
    low, high = BOUNDS[metric]
    return Promise(
        *what,
        origins=len(others),
        shared=float(with_part.mean()),
        value=value,
        low=max(value - q * (spread + below) ** 0.5, low),
        high=min(value + q * (spread + above) ** 0.5, high),
        result=None if part is None else part.values[metric],
        members_differ_by=None if forecasts is None else forecasts.differ_by,
    )


def promise_table(found: Sequence[Promise]) -> pl.DataFrame:
    """Returns a row a promise: columns PROMISES."""
    rows = [
        {
            "part": one.part,
            "metric": one.metric,
            "splits": one.origins,
            "shared": rounded(one.shared, DIGITS),
            "promise": rounded(one.value, DIGITS),
            "low": rounded(one.low, DIGITS),
            "high": rounded(one.high, DIGITS),
            "width": rounded(one.high - one.low, DIGITS),
            "result": rounded(one.result, DIGITS),
            "inside": one.kept,
            "members_differ_by": rounded(one.members_differ_by, DIGITS),
        }
        for one in found
    ]
    return pl.DataFrame(rows, schema=PROMISES, orient="row")


def promise_sentences(table: pl.DataFrame) -> list[str]:
    """Returns whether the level of the test part is known, and how many results lie in their intervals.

    Args:
        table: of `promise_table`.
    """
    sentences = []
    test = table.filter(part=TEST)
    if len(test):
        sentences.append(_level_sentence(test["members_differ_by"][0]))
    checked = table.filter(pl.col("inside").is_not_null())
    if len(checked):
        inside = int(checked["inside"].sum())
        sentences.append(f"{inside} of {len(checked)} results lie in the interval that was promised for them.")
    return sentences


def _level_sentence(differ_by: float | None) -> str:
    if differ_by is None:
        return "The trend has one member, so how far forecasts of the level differ at the test's dates is not known."
    if differ_by > LEVEL_LIMIT:
        return (
            f"The level of the test part is not known: at its dates the members of the trend differ by {differ_by:.2f} "
            f"label units in their means (limit {LEVEL_LIMIT:.2f}), and no split shows which is right. Quote the MAE "
            "with its interval alone."
        )
    return (
        f"The members of the trend agree on the level of the test part: their means at its dates differ by "
        f"{differ_by:.2f} label units (limit {LEVEL_LIMIT:.2f})."
    )
