"""Paired bootstrap over users: posts of one user resemble one another, so users are drawn, not posts.

All models are scored on the same draws, so that the difference of two models is taken draw by draw.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from popularity.core.arrays import Float64Array, Int64Array
from popularity.core.metrics import fold_rows

MAX_CELLS = 4_194_304  # of the (posts, draws) weights in memory at once: 32 MiB of float64


class _Ranks:
    """Average ranks of fixed values whose rows occur several times; sorted once for all draws."""

    def __init__(self, values: Float64Array) -> None:
        unique, self._rank = np.unique(values, return_inverse=True)
        self._order = np.argsort(self._rank, kind="stable")
        self._starts = np.searchsorted(self._rank[self._order], np.arange(len(unique)))

    def centred(self, weights: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Ranks minus their mean (n, draws), and their sum of squares (draws,), for weights (n, draws)."""
        tied = np.add.reduceat(weights[self._order], self._starts, axis=0)
        ranks = np.cumsum(tied, axis=0)
        total = ranks[-1].copy()
        ranks -= (tied + total) / 2
        return ranks[self._rank], np.einsum("gd,gd,gd->d", tied, ranks, ranks)


class _Fold:
    """The posts of one fold, scored on draws of users."""

    def __init__(self, labels: Float64Array, predictions: Float64Array, users: Int64Array, n_users: int) -> None:
        errors = predictions - labels[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(labels[:, None] == 0, np.nan, np.abs(errors) / np.abs(labels[:, None]))
        means = {"mae": np.abs(errors), "mape": relative, "bias": errors}
        self._users = users
        self._sums = {metric: _sum_by_user(values, users, n_users) for metric, values in means.items()}
        self._posts = np.bincount(users, minlength=n_users).astype(np.float64)
        self._label_ranks, self._model_ranks = _Ranks(labels), [_Ranks(column) for column in predictions.T]

    def score(self, counts: Float64Array) -> dict[str, Float64Array]:
        """Metric -> (draws, models), for counts (draws, n_users); NaN for a draw without a post of the fold."""
        with np.errstate(divide="ignore", invalid="ignore"):
            posts = counts @ self._posts
            scores = {metric: (counts @ sums) / posts[:, None] for metric, sums in self._sums.items()}
            weights = np.ascontiguousarray(counts.T)[self._users]  # (n, draws)
            ranks, squares = self._label_ranks.centred(weights)
            ranks *= weights
            src = []
            for model in self._model_ranks:
                other_ranks, other_squares = model.centred(weights)
                norm = np.sqrt(squares) * np.sqrt(other_squares)
                src.append(np.where(norm > 0, np.einsum("nd,nd->d", ranks, other_ranks) / norm, np.nan))
        return {"src": np.stack(src, axis=1), **scores}


def resample(
    labels: Float64Array,
    predictions: Float64Array,
    users: Int64Array,
    *,
    resamples: int,
    seed: int,
    folds: Int64Array | None = None,
) -> dict[str, Float64Array]:
    """Returns the scores of every model on every bootstrap draw: metric -> (resamples, models), NaN where undefined.

    A draw takes as many users as there are, with replacement, each with all posts.

    Args:
        labels: (n,).
        predictions: (n, models).
        users: (n,) index of each post's user, 0 to users - 1, all occurring.
        resamples: number of draws.
        seed: the same seed and number of users give the same draws.
        folds: (n,) the fold of each post; None: one fold. Each fold is scored alone, all on the same drawn users; a
            score is the mean over the folds.
    """
    found = resample_folds(labels, predictions, users, resamples=resamples, seed=seed, folds=folds)
    return {metric: np.mean(values, axis=0) for metric, values in found.items()}


def resample_folds(
    labels: Float64Array,
    predictions: Float64Array,
    users: Int64Array,
    *,
    resamples: int,
    seed: int,
    folds: Int64Array | None = None,
) -> dict[str, Float64Array]:
    """Returns the scores that `resample` averages: metric -> (folds, resamples, models)."""
    n_users = int(users.max()) + 1
    scored = [_Fold(labels[rows], predictions[rows], users[rows], n_users) for rows in fold_rows(len(labels), folds)]
    batches: list[dict[str, Float64Array]] = []
    for counts in _draws(users, resamples, seed):
        scores = [fold.score(counts) for fold in scored]
        batches.append({metric: np.stack([one[metric] for one in scores]) for metric in scores[0]})
    return {metric: np.concatenate([batch[metric] for batch in batches], axis=1) for metric in batches[0]}


def resample_means(values: Float64Array, users: Int64Array, *, resamples: int, seed: int) -> Float64Array:
    """Returns (resamples,) means of `values` (n,); the draws are those of `resample`."""
    n_users = int(users.max()) + 1
    sums = np.bincount(users, weights=values, minlength=n_users)
    posts = np.bincount(users, minlength=n_users)
    return np.concatenate([(counts @ sums) / (counts @ posts) for counts in _draws(users, resamples, seed)])


def _draws(users: Int64Array, resamples: int, seed: int) -> Iterator[Float64Array]:
    """Yields draws of users in batches: how often each user is in each draw (draws, n_users)."""
    rng = np.random.default_rng(seed)
    n_users = int(users.max()) + 1
    step = max(1, MAX_CELLS // len(users))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(n_users, size=(size, n_users)) + np.arange(size)[:, None] * n_users
        counts = np.bincount(drawn.ravel(), minlength=size * n_users).reshape(size, n_users)
        yield counts.astype(np.float64)


def interval(draws: Float64Array, confidence: float) -> tuple[float | None, float | None]:
    """Returns the percentile interval of (resamples,) scores; (None, None) when no draw has a score."""
    defined = draws[np.isfinite(draws)]
    if not len(defined):
        return None, None
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _sum_by_user(values: Float64Array, users: Int64Array, n_users: int) -> Float64Array:
    """(n, models) -> (n_users, models)."""
    return np.stack([np.bincount(users, weights=column, minlength=n_users) for column in values.T], axis=1)
