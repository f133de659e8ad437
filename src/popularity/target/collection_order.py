"""The trend along the order of collection: means of the label in bins of the Pids' numbers.

The test part's Pids lie among those of the training part, so this trend is read between its bins, and no forecast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from popularity.core.arrays import Float64Array, Int64Array
from popularity.core.collection_order import NOT_COLLECTED, pid_numbers
from popularity.core.errors import ConfigError
from popularity.target.line import clipped

N_BINS = 20  # at most, with equal numbers of posts
MIN_BIN = 20  # posts


@dataclass(frozen=True)
class CollectionOrder:
    """Mean labels of bins, with straight lines between their middles; the first and the last one go on.

    Args:
        numbers: of Pids, rising: the medians of the bins.
        values: label units.
    """

    numbers: tuple[float, ...]
    values: tuple[float, ...]

    @classmethod
    def fit(cls, number: Int64Array, label: Float64Array) -> CollectionOrder:
        """Returns the bins of the train rows; fewer than N_BINS where a bin would have fewer than MIN_BIN posts.

        Args:
            number: (n,) of `pid_numbers`.
            label: (n,).

        Raises:
            ConfigError: no Pid is a number.
        """
        known = np.flatnonzero(number != NOT_COLLECTED)
        if not len(known):
            raise ConfigError("detrend: collection_order: no Pid is a number; expected family, linear or none")
        order = known[np.argsort(number[known], kind="stable")]
        n_bins = max(1, min(N_BINS, len(order) // MIN_BIN))
        label = clipped(label) if len(label) >= MIN_BIN else label
        bins = np.array_split(order, n_bins)
        return cls(
            tuple(float(np.median(number[rows])) for rows in bins), tuple(float(label[rows].mean()) for rows in bins)
        )

    def at(self, number: Int64Array) -> Float64Array:
        """Returns the trend (n,) at the numbers (n,) of Pids."""
        return np.interp(number.astype(np.float64), self.numbers, self.values)


def along(kind: str, pids: Sequence[str] | pl.Series, posted_at: Int64Array) -> Int64Array:
    """Returns where posts lie on the axis of a trend (n,): their dates, or the numbers of their Pids.

    Args:
        kind: of the trend, `popularity.target.trend.Detrend`.
        pids: n.
        posted_at: (n,) microseconds.
    """
    return pid_numbers(pids) if kind == "collection_order" else posted_at
