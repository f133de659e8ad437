"""The label's level in time: taken off before the learners see the label, and forecast for the posts they predict.

Views fall (or rise) with the date, and trees answer for a later date with what the last days of the fit rows had. So a
line through time is fitted on the fit rows, the learners fit what is left, and a prediction gets the line back at the
post's own date. What the line and the learners still miss together is measured where it can be: on the cuts in time
inside the fit rows.

    none      the learners fit the label
    residual  the learners fit what the label is above the line, and predictions for later dates than the fit rows'
              move by what those of the inner cuts missed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from popularity.validation.inner_cv import MICROSECONDS_A_DAY, Array, Cut

Detrend = Literal["none", "linear"]
Times = npt.NDArray[np.int64]

PERIODS = 10  # of equal numbers of posts; the line goes through their means, whose scatter says how far to trust it
REACH = 0.25  # share of the time span after whose length a forecast has all but stopped to move
CONFIDENCE = 0.9  # of the interval of a forecast


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
    def fit(cls, posted_at: Times, label: Array) -> Line:
        """Through the mean labels (n,) of PERIODS runs of posts, by least squares; flat where there are too few posts.

        The forecast is shrunk towards the last period: it keeps 1 - (error of the slope / slope)^2 of the slope, none
        where the slope is within its error (James-Stein), and ever less of it with distance (a damped trend). Ends are
        the 1 % and 99 % quantiles of the dates: one odd date must not stretch the line.
        """
        days = posted_at / MICROSECONDS_A_DAY
        start, end = (float(np.quantile(days, share)) for share in (0.01, 0.99))
        runs = np.array_split(np.argsort(days, kind="stable"), PERIODS)
        if len(days) < 2 * PERIODS or start == end:
            return cls(float(label.mean()), 0.0, start, start, end, 0.0)
        x = np.array([np.median(days[run]) for run in runs])
        y = np.array([label[run].mean() for run in runs])
        away = x - x.mean()
        slope = float(away @ y / (away @ away))
        rest = y - y.mean() - slope * away
        error = float(rest @ rest) / (PERIODS - 2) / float(away @ away)
        trust = max(0.0, 1 - error / slope**2) if slope else 0.0
        return cls(float(y.mean()), slope, float(x.mean()), start, end, trust)

    def at(self, posted_at: Times) -> Array:
        """(n,) the level at the dates (n,)."""
        days = posted_at / MICROSECONDS_A_DAY
        reach = REACH * (self.end - self.start)
        beyond = np.maximum(days - self.end, 0.0)
        ahead = reach * -np.expm1(-beyond / reach) if reach else 0 * beyond
        along = np.clip(days, self.start, self.end) - self.middle + self.trust * ahead
        level: Array = self.value + self.slope * along
        return level


FLAT = Line(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Shift:
    """What predictions for dates ahead of the fit rows are moved by.

    Args:
        value: label units.
        after: the day from which on.
        spread: standard deviation over the inner cuts of what each of them asked for; None for less than two.
        cuts: how many there were.
    """

    value: float
    after: float
    spread: float | None
    cuts: int

    @classmethod
    def fit(cls, errors: Sequence[Array], after: float) -> Shift:
        """From label - prediction (m,) of every inner cut's scored posts: the mean of the cuts' medians.

        Shrunk to 0 by how far the cuts disagree, as the slope of a Line; 0 with less than two cuts, which cannot tell.
        """
        if len(errors) < 2:
            return cls(0.0, after, None, len(errors))
        asked = np.array([np.median(own) for own in errors])
        mean, spread = float(asked.mean()), float(asked.std(ddof=1))
        kept = max(0.0, 1 - spread**2 / len(asked) / mean**2) if mean else 0.0
        return cls(mean * kept, after, spread, len(asked))

    def at(self, posted_at: Times) -> Array:
        """(n,) what it is at the dates (n,)."""
        return np.where(posted_at / MICROSECONDS_A_DAY > self.after, self.value, 0.0)


@dataclass(frozen=True)
class Trend:
    """What a learner does not see of the label, and what its predictions are given back."""

    kind: Detrend
    line: Line
    shift: Shift

    @classmethod
    def fit(cls, posted_at: Times, label: Array, kind: Detrend) -> Trend:
        """From dates (n,) and labels (n,) of fit rows; not shifted yet."""
        line = Line.fit(posted_at, label)
        return cls(kind, line if kind == "linear" else FLAT, Shift(0.0, line.end, None, 0))

    def remove(self, label: Array, posted_at: Times) -> Array:
        """(n,) what the learners fit of labels (n,)."""
        return label - self.line.at(posted_at)

    def add(self, predicted: Array, posted_at: Times) -> Array:
        """(n,) labels for predictions (n,) of the learners."""
        moved: Array = predicted + self.line.at(posted_at) + self.shift.at(posted_at)
        return moved

    @property
    def shifts(self) -> bool:
        """Whether predictions are moved, so that an error that all of them share does not count."""
        return self.kind != "none"

    def shifted(self, errors: Sequence[Array]) -> Trend:
        """The level that makes good what the inner cuts missed; itself for `none`. See Shift.fit."""
        return replace(self, shift=Shift.fit(errors, self.shift.after)) if self.shifts else self

    def forecast(self, posted_at: Times) -> tuple[float, float | None, float | None]:
        """The level in the middle of a scored period with the dates (m,), and its interval; None without two cuts.

        By Student's t from how far the inner cuts, each one period ahead of its fit rows, missed their own level.
        """
        value = float(self.add(np.zeros(1), np.median(posted_at, keepdims=True).astype(np.int64))[0])
        if self.shift.spread is None:
            return value, None, None
        cuts = self.shift.cuts
        reach = float(student.ppf((1 + CONFIDENCE) / 2, cuts - 1)) * self.shift.spread * (1 + 1 / cuts) ** 0.5
        return value, value - reach, value + reach

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads back to the last bit."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Trend:
        """The level that `to_json` described."""
        return cls(content["kind"], Line(**content["line"]), Shift(**content["shift"]))


def inner_levels(posted_at: Times, label: Array, cuts: Sequence[Cut], kind: Detrend) -> Array:
    """(m,) what each inner cut forecasts for the rows that it scores, from the rows before them alone."""
    parts = [Trend.fit(posted_at[fit], label[fit], kind).line.at(posted_at[scored]) for fit, scored in cuts]
    return np.concatenate(parts) if parts else np.empty(0)
