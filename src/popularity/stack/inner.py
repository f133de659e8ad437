"""What a learner is shown of the fit rows, and the cuts in time inside them on which rounds, weights of the blend and
the scale of the error are learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from popularity.stack.matrix import Matrix

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Cut = tuple[Rows, Rows]

MICROSECONDS_A_DAY = 86_400e6


@dataclass(frozen=True)
class Sample:
    """The fit rows of a fold as a learner sees them.

    Args:
        matrix: (n, columns).
        target: (n,) what is fitted.
        weight: (n,) or None, all alike.
    """

    matrix: Matrix
    target: Array
    weight: Array | None


@dataclass(frozen=True)
class Learned:
    """What the inner cuts say of a learner.

    Args:
        chosen: at which its mean error over the cuts is least: rounds, or the position of a penalty.
        out_of_fold: (m,) its predictions of the cuts' scored rows at that, cut after cut; m is 0 where there was no
            room for a cut.
    """

    chosen: int
    out_of_fold: Array


def inner_cuts(posted_at: npt.NDArray[np.int64], cuts: int, share: float) -> list[Cut]:
    """(rows before a slice of time, rows of the slice) of the last `cuts` slices, each `share` of the n rows.

    Fewer, down to none, where less than a slice would be left to fit on. A single cut is too noisy a judge.
    """
    order = np.argsort(posted_at, kind="stable")
    length = max(1, round(len(order) * share))
    starts = [len(order) - length * cut for cut in range(1, cuts + 1)]
    return [(np.sort(order[:start]), np.sort(order[start : start + length])) for start in starts if start >= length]


def scored_rows(cuts: Sequence[Cut]) -> Rows:
    """(m,) the rows that the cuts score, in the order of `Learned.out_of_fold`; none occurs twice."""
    return np.concatenate([scored for _, scored in cuts]) if cuts else np.empty(0, dtype=np.int64)


def recency_weights(posted_at: npt.NDArray[np.int64], half_life_days: float) -> Array | None:
    """(n,) weights of mean 1 that halve with every `half_life_days` before the end; None (all alike) for 0.

    The label's level drifts and trees do not extrapolate, so the present counts for more. The end is the 99 %
    quantile of the dates: one post dated far ahead must not make all others weightless.
    """
    if half_life_days == 0:
        return None
    end = np.quantile(posted_at, 0.99)
    age_days = np.maximum(end - posted_at, 0.0) / MICROSECONDS_A_DAY
    weights = 0.5 ** (age_days / half_life_days)
    normalised: Array = weights / weights.mean()
    return normalised
