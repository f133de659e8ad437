"""Detrend: the label's trend leaves it before the learners fit, and returns at the date of a prediction.

Views fall or rise with the date, and trees predict a later date as they predict the last days of the train rows. So a
line through time is fitted on the train rows, the learners fit the label less that line, and a prediction gets the
line back at the post's own date. What line and learners miss together is estimated on the inner CV.

    none    the learners fit the label
    linear  the learners fit the label less the line; predictions for dates after the train rows are shifted by what
            the predictions of the inner CV missed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.stats import t as student

from popularity.core.arrays import Float64Array, Int64Array
from popularity.validation.inner_cv import MICROSECONDS_A_DAY, InnerSplit

Detrend = Literal["none", "linear"]

N_PERIODS = 10  # of equal numbers of posts; the line goes through their means, whose scatter is the slope's error
DAMPING_FRACTION = 0.25  # of the time span: the length after which a forecast has almost stopped to change
FORECAST_CONFIDENCE = 0.9  # of the interval of a forecast


@dataclass(frozen=True)
class Line:
    """A line through time that ends in a damped forecast.

    Args:
        value: label units, at the day `middle`.
        slope: label units a day.
        middle: days since 1970.
        start: the day before which it is flat.
        end: the day from which it is a forecast.
        trust: share of the slope that the forecast keeps, 0 to 1.
    """

    value: float
    slope: float
    middle: float
    start: float
    end: float
    trust: float

    @classmethod
    def fit(cls, posted_at: Int64Array, label: Float64Array) -> Line:
        """Returns the least-squares line through the mean labels of N_PERIODS; flat where there are too few posts.

        The forecast keeps 1 - (error of the slope / slope)^2 of the slope, none where the slope is within its error
        (James-Stein), and ever less with distance (a damped trend). The ends are the 1 % and 99 % quantiles of the
        dates, so that one odd date does not stretch the line.

        Args:
            posted_at: (n,) microseconds.
            label: (n,).
        """
        days = posted_at / MICROSECONDS_A_DAY
        start, end = (float(np.quantile(days, fraction)) for fraction in (0.01, 0.99))
        periods = np.array_split(np.argsort(days, kind="stable"), N_PERIODS)
        if len(days) < 2 * N_PERIODS or start == end:
            return cls(float(label.mean()), 0.0, start, start, end, 0.0)
        x = np.array([np.median(days[rows]) for rows in periods])
        y = np.array([label[rows].mean() for rows in periods])
        centred = x - x.mean()
        slope = float(centred @ y / (centred @ centred))
        residual = y - y.mean() - slope * centred
        variance = float(residual @ residual) / (N_PERIODS - 2) / float(centred @ centred)
        trust = max(0.0, 1 - variance / slope**2) if slope else 0.0
        return cls(float(y.mean()), slope, float(x.mean()), start, end, trust)

    def at(self, posted_at: Int64Array) -> Float64Array:
        """Returns the trend (n,) at the dates (n,)."""
        days = posted_at / MICROSECONDS_A_DAY
        reach = DAMPING_FRACTION * (self.end - self.start)
        beyond = np.maximum(days - self.end, 0.0)
        ahead = reach * -np.expm1(-beyond / reach) if reach else 0 * beyond
        along = np.clip(days, self.start, self.end) - self.middle + self.trust * ahead
        trend: Float64Array = self.value + self.slope * along
        return trend


FLAT = Line(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Shift:
    """The correction of predictions for dates after the train rows.

    Args:
        value: label units.
        after: the day after which it applies.
        spread: standard deviation of the inner splits' own shifts; None for fewer than two splits.
        n_splits: how many inner splits there were.
    """

    value: float
    after: float
    spread: float | None
    n_splits: int

    @classmethod
    def fit(cls, errors: Sequence[Float64Array], after: float) -> Shift:
        """Returns the mean of the inner splits' median errors, shrunk to 0 by how far the splits disagree.

        It shrinks as the slope of a Line does; it is 0 with fewer than two splits, which cannot disagree.

        Args:
            errors: label - prediction (m,) of the valid rows of every inner split.
            after: the day after which it applies.
        """
        if len(errors) < 2:
            return cls(0.0, after, None, len(errors))
        medians = np.array([np.median(own) for own in errors])
        mean, spread = float(medians.mean()), float(medians.std(ddof=1))
        kept = max(0.0, 1 - spread**2 / len(medians) / mean**2) if mean else 0.0
        return cls(mean * kept, after, spread, len(medians))

    def at(self, posted_at: Int64Array) -> Float64Array:
        """Returns the correction (n,) at the dates (n,)."""
        return np.where(posted_at / MICROSECONDS_A_DAY > self.after, self.value, 0.0)


@dataclass(frozen=True)
class Trend:
    """The label's trend: what the learners do not fit, and what their predictions get back.

    Args:
        kind: none or linear.
        line: through time; FLAT for none.
        shift: of predictions for dates after the train rows.
    """

    kind: Detrend
    line: Line
    shift: Shift

    @classmethod
    def fit(cls, posted_at: Int64Array, label: Float64Array, kind: Detrend) -> Trend:
        """Returns the trend of the train rows, without a shift.

        Args:
            posted_at: (n,) microseconds.
            label: (n,).
            kind: none or linear.
        """
        line = Line.fit(posted_at, label)
        return cls(kind, line if kind == "linear" else FLAT, Shift(0.0, line.end, None, 0))

    def detrend(self, label: Float64Array, posted_at: Int64Array) -> Float64Array:
        """Returns labels (n,) less the trend at their dates (n,)."""
        return label - self.line.at(posted_at)

    def retrend(self, predicted: Float64Array, posted_at: Int64Array) -> Float64Array:
        """Returns labels (n,): the learners' predictions (n,) plus trend and shift at their dates (n,)."""
        label: Float64Array = predicted + self.line.at(posted_at) + self.shift.at(posted_at)
        return label

    @property
    def shifts(self) -> bool:
        """Whether predictions are shifted, so that an error that all of them share does not count."""
        return self.kind != "none"

    def shifted(self, errors: Sequence[Float64Array]) -> Trend:
        """Returns the trend with the shift of `errors`, see Shift.fit; itself for `none`."""
        return replace(self, shift=Shift.fit(errors, self.shift.after)) if self.shifts else self

    def forecast(self, posted_at: Int64Array) -> tuple[float, float | None, float | None]:
        """Returns the trend in the middle of a period, and its interval; None without two inner splits.

        The interval is Student's t on how far the inner splits, each one period after its train rows, missed.

        Args:
            posted_at: (m,) microseconds, of the period's posts.
        """
        value = float(self.retrend(np.zeros(1), np.median(posted_at, keepdims=True).astype(np.int64))[0])
        if self.shift.spread is None:
            return value, None, None
        n_splits = self.shift.n_splits
        quantile = float(student.ppf((1 + FORECAST_CONFIDENCE) / 2, n_splits - 1))
        half_width = quantile * self.shift.spread * (1 + 1 / n_splits) ** 0.5
        return value, value - half_width, value + half_width

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` reads back to the last bit."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Trend:
        """Returns the trend that `to_json` described."""
        return cls(content["kind"], Line(**content["line"]), Shift(**content["shift"]))


def inner_trends(
    posted_at: Int64Array, label: Float64Array, splits: Sequence[InnerSplit], kind: Detrend
) -> Float64Array:
    """Returns (m,) the trend at the valid rows of every inner split, fitted on the split's train rows alone.

    Args:
        posted_at: (n,) microseconds.
        label: (n,).
        splits: of `inner_splits`.
        kind: none or linear.
    """
    trends = [Trend.fit(posted_at[train], label[train], kind).line.at(posted_at[valid]) for train, valid in splits]
    return np.concatenate(trends) if trends else np.empty(0)
