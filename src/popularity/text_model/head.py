"""The head's first weights: a ridge on the vectors of the untouched encoder and the numbers (LP-FT).

A head that starts at random sends random gradients into layers that are good already; one that is fitted first changes
them less, and needs fewer epochs (Kumar et al., 2022, "Fine-Tuning can Distort Pretrained Features").
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import Ridge

from popularity.core.arrays import Float32Array, Float64Array, Int64Array

ALPHAS = (100.0, 300.0, 1000.0, 3000.0, 10000.0, 30000.0)
LATE_FRACTION = 0.3  # of the posts, the last in time: they choose the penalty


def fit_ridge(design: Float32Array, target: Float64Array, posted_at: Int64Array) -> Ridge:
    """The ridge on n posts, with the penalty of least absolute error on the latest posts, fitted on those before them.

    Args:
        design: (n, d), columns of length about 1.
        target: (n,).
        posted_at: (n,) microseconds.
    """
    late = posted_at >= np.quantile(posted_at, 1 - LATE_FRACTION)
    early = ~late
    if not early.any():  # all of one date
        return Ridge(alpha=ALPHAS[-1]).fit(design, target)
    errors = []
    for alpha in ALPHAS:
        ridge = Ridge(alpha=alpha * early.mean()).fit(design[early], target[early])
        errors.append(np.abs(target[late] - ridge.predict(design[late])).mean())
    return Ridge(alpha=ALPHAS[int(np.argmin(errors))]).fit(design, target)
