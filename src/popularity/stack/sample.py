"""What a learner is given of the train rows of a fold, and what it returns from the inner CV."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from popularity.core.arrays import Float64Array, Int64Array
from popularity.stack.matrix import Matrix
from popularity.validation.inner_cv import MICROSECONDS_A_DAY


@dataclass(frozen=True)
class Sample:
    """The train rows of a fold.

    Args:
        matrix: (n, columns).
        target: (n,) what is fitted.
        weight: (n,) sample_weight; None: all rows count alike.
    """

    matrix: Matrix
    target: Float64Array
    weight: Float64Array | None


@dataclass(frozen=True)
class Learned:
    """What the inner CV found for a learner.

    Args:
        chosen: the setting of least mean error over the inner splits: rounds, or the position of a penalty.
        out_of_fold: (m,) predictions of the valid rows of the inner splits with that setting, split after split; m is 0
            if there are no inner splits.
    """

    chosen: int
    out_of_fold: Float64Array


def recency_sample_weight(posted_at: Int64Array, half_life_days: float) -> Float64Array | None:
    """(n,) sample_weight of mean 1 that halves with every `half_life_days` before the end; None if that is 0.

    The label has a trend and trees do not extrapolate, so recent rows count for more. The end is the 99 % quantile of
    the dates: one post dated far ahead must not make all others weightless.

    Args:
        posted_at: (n,) microseconds.
        half_life_days: `stack.sample_weight_half_life_days`; 0: all rows count alike.
    """
    if half_life_days == 0:
        return None
    end = np.quantile(posted_at, 0.99)
    age_days = np.maximum(end - posted_at, 0.0) / MICROSECONDS_A_DAY
    weights = 0.5 ** (age_days / half_life_days)
    normalised: Float64Array = weights / weights.mean()
    return normalised
