"""The ridge that the head starts from: its penalty is the one that the latest posts choose."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import Ridge

from popularity.text_model.head import ALPHAS, fit_ridge

POSTS, COLUMNS = 400, 20


def test_noise_asks_for_a_larger_penalty() -> None:
    rng = np.random.default_rng(0)
    design = rng.normal(size=(POSTS, COLUMNS)).astype(np.float32)
    days = np.arange(POSTS) * 86_400_000_000
    signal = design @ rng.normal(size=COLUMNS)
    assert fit_ridge(design, signal, days).alpha == ALPHAS[0]
    assert fit_ridge(design, rng.normal(size=POSTS), days).alpha > ALPHAS[0]


def test_the_latest_posts_choose_and_all_are_fitted() -> None:
    """The signal reverses in the last posts: what is learned before them is wrong there, so little of it is kept."""
    rng = np.random.default_rng(0)
    design = rng.normal(size=(POSTS, COLUMNS)).astype(np.float32)
    days = rng.permutation(POSTS) * 86_400_000_000
    late = days >= np.quantile(days, 0.7)
    target = design @ rng.normal(size=COLUMNS) * np.where(late, -0.2, 1)
    ridge = fit_ridge(design, target, days)
    assert ridge.alpha == ALPHAS[-1]
    np.testing.assert_allclose(ridge.coef_, Ridge(alpha=ALPHAS[-1]).fit(design, target).coef_)


def test_posts_of_one_date_have_a_ridge_too() -> None:
    design, target = np.eye(3, dtype=np.float32), np.array([0.0, 1.0, 2.0])
    assert np.isfinite(fit_ridge(design, target, np.zeros(3, dtype=np.int64)).coef_).all()
