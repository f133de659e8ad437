"""Dense and sparse ridges against the textbook's, with a constant that no alpha shrinks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import sparse
from sklearn.linear_model import Ridge

from popularity.stack.ridge import fit_sparse_ridges, solve_ridge

Floats = npt.NDArray[np.float64]


def problem() -> tuple[Floats, Floats]:
    """A design (n, d) of columns that are not centred, and labels far from 0."""
    rng = np.random.default_rng(0)
    design = rng.normal(2, 1, (120, 6))
    return design, 50 + design @ rng.normal(size=6) + rng.normal(0, 0.5, 120)


@pytest.mark.parametrize("alpha", [1e-3, 10.0, 1e6])
def test_the_solution_of_the_normal_equations_is_that_of_scikit_learn(alpha: float) -> None:
    design, label = problem()
    with_constant = np.column_stack([design, np.ones(len(design))])
    found = solve_ridge(with_constant.T @ with_constant, with_constant.T @ label, alpha)
    expected = Ridge(alpha).fit(design, label)
    np.testing.assert_allclose(found, [*expected.coef_, expected.intercept_], rtol=1e-5, atol=1e-6)


def test_a_sparse_ridge_has_an_output_for_each_penalty() -> None:
    design, label = problem()
    alphas = (1.0, 100.0)
    found = fit_sparse_ridges(sparse.csr_matrix(design), label, alphas).predict(design)
    for column, alpha in zip(found.T, alphas, strict=True):
        np.testing.assert_allclose(column, Ridge(alpha).fit(design, label).predict(design), rtol=1e-3)
