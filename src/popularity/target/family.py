"""The trend as the mean of a family of forecasts, where the posts before a date cannot tell which of them is right.

    line           a damped line
    longer_line    the same, which levels off later
    level          local means; the last one goes on
    exposure_*     a count that is read on one day of collection has had only that long to grow: a coefficient times
                   log2(days until collection + margin), and a damped line for the rest

A count cannot grow faster than time, so the coefficient lies in [0, 1]; it is near 0 where labels are already counts a
day. Lines keep their whole slope here: the mean over the family shrinks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from popularity.core.arrays import Float64Array, Int64Array
from popularity.target.line import FLAT, N_PERIODS, REACH, Line, clipped, period_means
from popularity.validation.inner_cv import MICROSECONDS_A_DAY

LONGER_REACH = 0.5  # share of the time span, of the longer line
N_LEVELS = 5  # periods of the local level
MARGINS = (0.02, 0.1, 0.3)  # of the days from the first train row to the collection, one for each exposure
N_ERRORS = 2.0  # standard errors of the coefficient, within which it is 0
N_RECENT_ERRORS = 3.0  # standard errors of the later half, whose posts are fewer and not independent
ORIGINS = (0.6, 0.7, 0.8)  # of the train rows, each forecast up to the last row: .67, .43 and .25 of its own length
MIN_ORIGIN = 50  # posts; with fewer no member can lose clearly
CLEAR_LOSS = 1.4  # times the least error of a member, at every origin: then a member is left out


@dataclass(frozen=True)
class Level:
    """Local means, with straight lines between them; the last one is the forecast.

    Args:
        days: since 1970, rising.
        values: label units.
    """

    days: tuple[float, ...]
    values: tuple[float, ...]

    @classmethod
    def fit(cls, posted_at: Int64Array, label: Float64Array) -> Level:
        """Returns the means of N_LEVELS periods of the rows (n,); the median of too few rows, or of a single date."""
        days = posted_at / MICROSECONDS_A_DAY
        if len(days) < 2 * N_PERIODS or days.min() == days.max():
            return cls((float(np.median(days)),), (float(np.median(label)),))
        x, y = period_means(days, clipped(label), N_LEVELS)
        return cls(tuple(x.tolist()), tuple(y.tolist()))

    def at(self, posted_at: Int64Array) -> Float64Array:
        """Returns the level (n,) at the dates (n,)."""
        found: Float64Array = np.interp(posted_at / MICROSECONDS_A_DAY, self.days, self.values)
        return found


@dataclass(frozen=True)
class Exposure:
    """What a count gains with the days until it is read, and a line for the rest.

    Args:
        coefficient: label units for each doubling of the days, 0 to 1.
        margin: days that are added, so that the last posts do not have minus infinity.
        collected_at: days since 1970.
        rest: of the label less the term.
    """

    coefficient: float
    margin: float
    collected_at: float
    rest: Line

    @classmethod
    def fit(cls, posted_at: Int64Array, label: Float64Array, collected_at: float, margin: float) -> Exposure:
        """Returns the least-squares coefficient, held to [0, 1], and the line through what it leaves.

        The coefficient b is shrunk to 1 - (N_ERRORS * error / b)^2 of it. It is at most that of the later half of the
        rows plus N_RECENT_ERRORS of its errors: a fall that has stopped does not come from the days until a collection.

        Args:
            posted_at: (n,) microseconds.
            label: (n,).
            collected_at: days since 1970.
            margin: share of the days from the first row (its 1 % quantile) to the collection.
        """
        days = posted_at / MICROSECONDS_A_DAY
        margin_days = margin * max(collected_at - float(np.quantile(days, 0.01)), 1.0)
        unfitted = cls(1.0, margin_days, collected_at, FLAT)
        term = unfitted._term(_days_until(collected_at, posted_at))
        coefficient = 0.0
        if len(days) >= 2 * N_PERIODS:
            robust, recent = clipped(label), days >= np.median(days)
            found, error = _slope(term, robust)
            kept = max(0.0, 1 - (N_ERRORS * error / found) ** 2) if found else 0.0
            later, later_error = _slope(term[recent], robust[recent])
            coefficient = float(np.clip(min(kept * found, later + N_RECENT_ERRORS * later_error), 0, 1))
        rest = Line.fit(posted_at, label - coefficient * term, shrink=False)
        return cls(coefficient, margin_days, collected_at, rest)

    def at(self, posted_at: Int64Array, days_after: Float64Array | None = None) -> Float64Array:
        """Returns the trend (n,) of posts.

        Args:
            posted_at: (n,) microseconds.
            days_after: (n,) days from the post until its count is read; None: until the collection.
        """
        days = _days_until(self.collected_at, posted_at) if days_after is None else np.maximum(days_after, 0.0)
        return self.coefficient * self._term(days) + self.rest.at(posted_at)

    def _term(self, days: Float64Array) -> Float64Array:
        term: Float64Array = np.log2(days + self.margin)
        return term


Member = Line | Level | Exposure
EXPOSURES = tuple(f"exposure_{margin:.0%}".rstrip("%") for margin in MARGINS)
CLASSES: Mapping[str, type[Member]] = {
    "line": Line,
    "longer_line": Line,
    "level": Level,
    **dict.fromkeys(EXPOSURES, Exposure),
}


@dataclass(frozen=True)
class Family:
    """The weighted mean of its members.

    Args:
        members: by name.
        weights: by name, with sum 1: equal, or 0.
        collected_at: days since 1970 on which the counts were read.
        median_exposure: days from post to collection, of the median train row.
    """

    members: Mapping[str, Member]
    weights: Mapping[str, float]
    collected_at: float
    median_exposure: float

    @classmethod
    def fit(cls, posted_at: Int64Array, label: Float64Array, collected_at: float) -> Family:
        """Returns the members fitted on all rows; one that loses clearly at every origin has no weight.

        Args:
            posted_at: (n,) microseconds.
            label: (n,).
            collected_at: days since 1970.
        """
        lost = _clear_losers(posted_at, label, collected_at)
        weights = {name: 0.0 if name in lost else 1 / (len(CLASSES) - len(lost)) for name in CLASSES}
        exposure = float(np.median(_days_until(collected_at, posted_at)))
        return cls(_fit_members(posted_at, label, collected_at), weights, collected_at, exposure)

    def members_at(self, posted_at: Int64Array) -> dict[str, Float64Array]:
        """Returns the trend (n,) of each member that has a weight, at the dates (n,)."""
        return {name: self.members[name].at(posted_at) for name in CLASSES if self.weights[name]}

    def at(self, posted_at: Int64Array, days_after: Float64Array | None = None) -> Float64Array:
        """Returns the trend (n,) of posts.

        Posts that are read at another time than the collection get the mean of the exposures alone: no other member
        tells the age of a post from its date. Where the exposures have no weight, the days do not count.

        Args:
            posted_at: (n,) microseconds.
            days_after: (n,) days from the post until its count is read; None or nan: until the collection.
        """
        mean: Float64Array = np.mean(list(self.members_at(posted_at).values()), axis=0)
        exposures = [self.members[name] for name in EXPOSURES if self.weights[name]]
        if days_after is None or not exposures:
            return mean
        others = [one.at(posted_at, days_after) for one in exposures if isinstance(one, Exposure)]
        return np.where(np.isnan(days_after), mean, np.mean(others, axis=0))

    @property
    def end(self) -> float:
        """The day from which the lines are forecasts."""
        line = self.members["line"]
        assert isinstance(line, Line)
        return line.end

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Family:
        """Returns the family that `dataclasses.asdict` described."""
        members = {name: _member(CLASSES[name], fields) for name, fields in content["members"].items()}
        return cls(members, content["weights"], content["collected_at"], content["median_exposure"])


def _days_until(collected_at: float, posted_at: Int64Array) -> Float64Array:
    return np.maximum(collected_at - posted_at / MICROSECONDS_A_DAY, 0.0)


def _fit_members(posted_at: Int64Array, label: Float64Array, collected_at: float) -> dict[str, Member]:
    exposures = [Exposure.fit(posted_at, label, collected_at, margin) for margin in MARGINS]
    return {
        "line": Line.fit(posted_at, label, REACH, shrink=False),
        "longer_line": Line.fit(posted_at, label, LONGER_REACH, shrink=False),
        "level": Level.fit(posted_at, label),
        **dict(zip(EXPOSURES, exposures, strict=True)),
    }


def _clear_losers(posted_at: Int64Array, label: Float64Array, collected_at: float) -> set[str]:
    """Names of the members whose mean error is CLEAR_LOSS times the least one, at every origin.

    The factor is large: splits at the test's distance often take the wrong one of two members that differ by less.
    """
    order = np.argsort(posted_at, kind="stable")
    losers = set(CLASSES)
    for origin in ORIGINS:
        before, after = np.split(order, [round(origin * len(order))])
        if min(len(before), len(after)) < MIN_ORIGIN:
            return set()
        truth, losses = clipped(label)[after], {}
        for name, member in _fit_members(posted_at[before], label[before], collected_at).items():
            centre = np.median(label[before] - member.at(posted_at[before]))
            losses[name] = float(np.abs(truth - member.at(posted_at[after]) - centre).mean())
        limit = CLEAR_LOSS * min(losses.values())
        losers &= {name for name, loss in losses.items() if loss > limit}
    return losers


def _slope(x: Float64Array, y: Float64Array) -> tuple[float, float]:
    """The least-squares slope of y (n,) on x (n,), and its standard error; 0 where x does not vary."""
    if x.min() == x.max():
        return 0.0, 0.0
    centred = x - x.mean()
    total = float(centred @ centred)
    slope = float(centred @ y) / total
    residual = y - y.mean() - slope * centred
    return slope, (float(residual @ residual) / max(len(x) - 2, 1) / total) ** 0.5


def _member(kind: type[Member], fields: Mapping[str, Any]) -> Member:
    if kind is Exposure:
        return Exposure(**{**fields, "rest": Line(**fields["rest"])})
    if kind is Level:
        return Level(tuple(fields["days"]), tuple(fields["values"]))
    return Line(**fields)
