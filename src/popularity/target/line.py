"""A line through time that one absurd label does not bend, and whose forecast levels off."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from popularity.core.arrays import Float64Array, Int64Array
from popularity.validation.inner_cv import MICROSECONDS_A_DAY

N_PERIODS = 10  # of equal numbers of posts; the line goes through their means, whose scatter is the slope's error
REACH = 0.25  # share of the time span: the length after which a forecast has almost stopped to change
MIN_FENCE = 1.0  # label units: where almost all labels are equal


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
        reach: days after which the forecast has almost stopped to change.
    """

    value: float
    slope: float
    middle: float
    start: float
    end: float
    trust: float
    reach: float

    @classmethod
    def fit(cls, posted_at: Int64Array, label: Float64Array, reach: float = REACH, *, shrink: bool = True) -> Line:
        """Returns the least-squares line through the mean labels of N_PERIODS; flat where there are too few posts.

        Labels far from all others count as if they were nearer (`clipped`). The forecast follows the slope ever less
        with distance (a damped trend). The ends are the 1 % and 99 % quantiles of the dates, so that one odd date does
        not stretch the line.

        Args:
            posted_at: (n,) microseconds.
            label: (n,).
            reach: share of the time span after which the forecast has almost stopped to change.
            shrink: whether the forecast keeps 1 - (error of the slope / slope)^2 of the slope alone, none where the
                slope is within its error (James-Stein).
        """
        days = posted_at / MICROSECONDS_A_DAY
        start, end = (float(np.quantile(days, fraction)) for fraction in (0.01, 0.99))
        if len(days) < 2 * N_PERIODS:
            return cls(float(np.median(label)), 0.0, start, start, end, 0.0, 0.0)
        label = clipped(label)
        if start == end:
            return cls(float(label.mean()), 0.0, start, start, end, 0.0, 0.0)
        x, y = period_means(days, label, N_PERIODS)
        centred = x - x.mean()
        slope = float(centred @ y / (centred @ centred))
        residual = y - y.mean() - slope * centred
        variance = float(residual @ residual) / (N_PERIODS - 2) / float(centred @ centred)
        kept = max(0.0, 1 - variance / slope**2) if slope else 0.0
        trust = kept if shrink else 1.0
        return cls(float(y.mean()), slope, float(x.mean()), start, end, trust, reach * (end - start))

    def at(self, posted_at: Int64Array) -> Float64Array:
        """Returns the line (n,) at the dates (n,)."""
        days = posted_at / MICROSECONDS_A_DAY
        beyond = np.maximum(days - self.end, 0.0)
        ahead = self.reach * -np.expm1(-beyond / self.reach) if self.reach else 0 * beyond
        along = np.clip(days, self.start, self.end) - self.middle + self.trust * ahead
        values: Float64Array = self.value + self.slope * along
        return values


FLAT = Line(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def clipped(label: Float64Array) -> Float64Array:
    """Returns the labels (n,), none farther from their middle 90 % than that is wide, or MIN_FENCE.

    Args:
        label: (n,), at least 20; a normal distribution has no label out there.
    """
    low, high = np.quantile(label, 0.05, method="higher"), np.quantile(label, 0.95, method="lower")
    fence = max(high - low, MIN_FENCE)
    return np.clip(label, low - fence, high + fence)


def period_means(days: Float64Array, label: Float64Array, n_periods: int) -> tuple[Float64Array, Float64Array]:
    """Returns the median day and the mean label of `n_periods` periods (n_periods,) with equal numbers of posts.

    Args:
        days: (n,) in any order, at least one a period.
        label: (n,).
        n_periods: how many.
    """
    periods = np.array_split(np.argsort(days, kind="stable"), n_periods)
    return np.array([np.median(days[rows]) for rows in periods]), np.array([label[rows].mean() for rows in periods])
