"""What a learner is shown of the training rows of a fold, and what it learned there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from popularity.stack.matrix import Matrix
from popularity.validation.inner_cv import MICROSECONDS_A_DAY, Array


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


def recency_weights(posted_at: npt.NDArray[np.int64], sample_weight_half_life_days: float) -> Array | None:
    """(n,) weights of mean 1 that halve with every `sample_weight_half_life_days` before the end; None (all alike) for 0.

    The label's level drifts and trees do not extrapolate, so the present counts for more. The end is the 99 %
    quantile of the dates: one post dated far ahead must not make all others weightless.
    """
    if sample_weight_half_life_days == 0:
        return None
    end = np.quantile(posted_at, 0.99)
    age_days = np.maximum(end - posted_at, 0.0) / MICROSECONDS_A_DAY
    weights = 0.5 ** (age_days / sample_weight_half_life_days)
    normalised: Array = weights / weights.mean()
    return normalised
