"""Ridge regression: dense from normal equations, sparse by conjugate gradients. The intercept is never penalised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve
from sklearn.linear_model import Ridge

from popularity.core.arrays import Float64Array

INTERCEPT_ALPHA = 1e-9  # as good as no penalty, and the equations stay solvable
TOLERANCE = 1e-4  # of the conjugate gradients


def solve_ridge(gram: Float64Array, moment: Float64Array, alpha: float) -> Float64Array:
    """The weights (d,) that minimise the squared error plus `alpha` times their squared length (Hoerl, Kennard 1970).

    Args:
        gram: (d, d) X^T X of a design whose last column is the intercept.
        moment: (d,) X^T y.
        alpha: penalty of every weight but the intercept.

    Raises:
        LinAlgError: the equations have no single solution.
    """
    diagonal = np.full(len(gram), alpha)
    diagonal[-1] = INTERCEPT_ALPHA
    weights: Float64Array = cho_solve(cho_factor(gram + np.diag(diagonal)), moment)
    return weights


def fit_sparse_ridges(design: sparse.csr_matrix, label: Float64Array, alphas: Sequence[float]) -> Ridge:
    """A ridge for each alpha, as one model with as many outputs.

    Args:
        design: (n, d), without an intercept, which is fitted too.
        label: (n,).
        alphas: penalties of every weight but the intercept.
    """
    ridge = Ridge(alpha=np.asarray(alphas), solver="sparse_cg", tol=TOLERANCE)
    return ridge.fit(design, np.tile(label[:, None], len(alphas)))
