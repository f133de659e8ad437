"""Detrend: the label's trend leaves it before the learners fit, and returns at the date of a prediction.

Views fall or rise with the date, and trees predict a later date as they predict the last days of the train rows. So a
trend is fitted on the train rows, the learners fit the label less that trend, and a prediction gets the trend back at
the post's own date. What trend and learners miss together is estimated on the inner CV: predictions for dates after the
train rows are shifted by it.

    none              the learners fit the label
    linear            a line through time (`line`)
    family            the mean of several forecasts (`family`)
    collection_order  means along the order of collection, which takes the place of the date (`collection_order`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.stats import t as student

from popularity.core.arrays import Float64Array, Int64Array
from popularity.target.collection_order import CollectionOrder
from popularity.target.family import Family
from popularity.target.line import FLAT, Line
from popularity.validation.inner_cv import MICROSECONDS_A_DAY, InnerSplit

Detrend = Literal["none", "linear", "family", "collection_order"]

FORECAST_CONFIDENCE = 0.9  # of the interval of a forecast


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

    Where the kind is collection_order, `posted_at` of every method stands for the numbers of the Pids (`along`).

    Args:
        kind: of the trend.
        line: through time; FLAT for any kind but linear.
        family: None for any kind but family.
        order: of collection; None for any other kind.
        shift: of predictions for dates after the train rows.
    """

    kind: Detrend
    line: Line
    family: Family | None
    order: CollectionOrder | None
    shift: Shift

    @classmethod
    def fit(cls, posted_at: Int64Array, label: Float64Array, kind: Detrend, collected_at: float | None = None) -> Trend:
        """Returns the trend of the train rows, without a shift.

        Args:
            posted_at: (n,) microseconds.
            label: (n,).
            kind: of the trend.
            collected_at: days since 1970 on which the counts were read; None: on the last of the dates.
        """
        if kind == "collection_order":  # without a shift: later posts do not lie beyond the train rows
            return cls(kind, FLAT, None, CollectionOrder.fit(posted_at, label), Shift(0.0, FLAT.end, None, 0))
        line = Line.fit(posted_at, label)
        family = None
        if kind == "family":
            last = float(posted_at.max()) / MICROSECONDS_A_DAY
            family = Family.fit(posted_at, label, last if collected_at is None else collected_at)
        return cls(kind, line if kind == "linear" else FLAT, family, None, Shift(0.0, line.end, None, 0))

    def at(self, posted_at: Int64Array, days_after: Float64Array | None = None) -> Float64Array:
        """Returns the trend (n,), without the shift.

        Args:
            posted_at: (n,) microseconds.
            days_after: (n,) days from the post until its count is read; None or nan: until the collection. Only a
                family tells them apart.
        """
        if self.order is not None:
            return self.order.at(posted_at)
        return self.line.at(posted_at) if self.family is None else self.family.at(posted_at, days_after)

    def members_at(self, posted_at: Int64Array) -> dict[str, Float64Array]:
        """Returns the trend (n,) of every member by its name, at the dates (n,); how far they differ is not known.

        Args:
            posted_at: (n,) microseconds.
        """
        return {self.kind: self.at(posted_at)} if self.family is None else self.family.members_at(posted_at)

    def detrend(self, label: Float64Array, posted_at: Int64Array) -> Float64Array:
        """Returns labels (n,) less the trend at their dates (n,)."""
        return label - self.at(posted_at)

    def retrend(
        self, predicted: Float64Array, posted_at: Int64Array, days_after: Float64Array | None = None
    ) -> Float64Array:
        """Returns labels (n,): the learners' predictions (n,) plus trend and shift.

        Args:
            predicted: (n,).
            posted_at: (n,) microseconds.
            days_after: (n,) days from the post until its count is read; None or nan: until the collection. A family's
                other predictions have no shift: it is what those missed that were read at the collection.
        """
        shift = self.shift.at(posted_at)
        if days_after is not None and self.family is not None:
            shift = np.where(np.isnan(days_after), shift, 0.0)
        label: Float64Array = predicted + self.at(posted_at, days_after) + shift
        return label

    @property
    def shifts(self) -> bool:
        """Whether predictions are shifted, so that an error that all of them share does not count."""
        return self.kind in ("linear", "family")

    def shifted(self, errors: Sequence[Float64Array]) -> Trend:
        """Returns the trend with the shift of `errors`, see Shift.fit; itself for other kinds."""
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
        family = None if content["family"] is None else Family.from_json(content["family"])
        order = content["order"]
        if order is not None:
            order = CollectionOrder(tuple(order["numbers"]), tuple(order["values"]))
        return cls(content["kind"], Line(**content["line"]), family, order, Shift(**content["shift"]))


def inner_trends(
    posted_at: Int64Array,
    label: Float64Array,
    splits: Sequence[InnerSplit],
    kind: Detrend,
    collected_at: float | None = None,
) -> Float64Array:
    """Returns (m,) the trend at the valid rows of every inner split, fitted on the split's train rows alone.

    Args:
        posted_at: (n,) microseconds.
        label: (n,).
        splits: of `inner_splits`.
        kind: of the trend.
        collected_at: days since 1970 on which the counts were read; None: on the last of the n dates.
    """
    if collected_at is None and len(posted_at):
        collected_at = float(posted_at.max()) / MICROSECONDS_A_DAY
    trends = [
        Trend.fit(posted_at[train], label[train], kind, collected_at).at(posted_at[valid]) for train, valid in splits
    ]
    return np.concatenate(trends) if trends else np.empty(0)
