"""Ridge regression: dense from normal equations, sparse by conjugate gradients. The constant is never penalised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve
from sklearn.linear_model import Ridge

Array = npt.NDArray[np.float64]

FREE = 1e-9  # penalty of the constant: none, but the equations stay solvable
TOLERANCE = 1e-4  # of the conjugate gradients


def solve_ridge(gram: Array, moment: Array, penalty: float) -> Array:
    """The weights (d,) that minimise the squared error plus `penalty` times their squared length (Hoerl, Kennard 1970).

    Args:
        gram: (d, d) X^T X of a design whose last column is the constant.
        moment: (d,) X^T y.
        penalty: of every weight but the constant's.

    Raises:
        LinAlgError: the equations have no single solution.
    """
    diagonal = np.full(len(gram), penalty)
    diagonal[-1] = FREE
    weights: Array = cho_solve(cho_factor(gram + np.diag(diagonal)), moment)
    return weights


def fit_sparse_ridges(design: sparse.csr_matrix, label: Array, penalties: Sequence[float]) -> Ridge:
    """A ridge for each of the penalties, in one model with as many outputs.

    Args:
        design: (n, d), without a constant, which is fitted too.
        label: (n,).
        penalties: of every weight but the constant's.
    """
    ridge = Ridge(alpha=np.asarray(penalties), solver="sparse_cg", tol=TOLERANCE)
    return ridge.fit(design, np.tile(label[:, None], len(penalties)))
