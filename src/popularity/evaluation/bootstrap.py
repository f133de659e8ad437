"""Paired bootstrap over users: posts of one user are alike, so users are drawn, not posts.

Every model is scored on the same draws, so the difference of two models is taken draw by draw.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from popularity.core.metrics import FloatArray, fold_rows

# Cells of the (posts, draws) weight matrix that are in memory at once: 32 MiB of float64.
CELLS = 4_194_304


class _Ranks:
    """Average ranks of fixed values when each row occurs w times: one sort serves every draw."""

    def __init__(self, values: FloatArray) -> None:
        unique, self._place = np.unique(values, return_inverse=True)
        self._order = np.argsort(self._place, kind="stable")
        self._starts = np.searchsorted(self._place[self._order], np.arange(len(unique)))

    def centred(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Ranks minus their mean (n, draws), and their sum of squares (draws,), for weights (n, draws)."""
        tied = np.add.reduceat(weights[self._order], self._starts, axis=0)
        ranks = np.cumsum(tied, axis=0)
        total = ranks[-1].copy()
        ranks -= (tied + total) / 2
        return ranks[self._place], np.einsum("gd,gd,gd->d", tied, ranks, ranks)


class _Cut:
    """The posts of one cut, scored on draws of users."""

    def __init__(self, labels: FloatArray, predictions: FloatArray, users: npt.NDArray[np.int64], n_users: int) -> None:
        errors = predictions - labels[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(labels[:, None] == 0, np.nan, np.abs(errors) / np.abs(labels[:, None]))
        means = {"mae": np.abs(errors), "mape": relative, "bias": errors}
        self._users = users
        self._sums = {metric: _sum_by_user(values, users, n_users) for metric, values in means.items()}
        self._posts = np.bincount(users, minlength=n_users).astype(np.float64)
        self._label_ranks, self._model_ranks = _Ranks(labels), [_Ranks(column) for column in predictions.T]

    def score(self, counts: FloatArray) -> dict[str, FloatArray]:
        """Metric -> (draws, models), for counts (draws, n_users); NaN for a draw without a post of the cut."""
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
    labels: FloatArray,
    predictions: FloatArray,
    users: npt.NDArray[np.int64],
    *,
    resamples: int,
    seed: int,
    cuts: npt.NDArray[np.int64] | None = None,
) -> dict[str, FloatArray]:
    """Scores of every model on every draw: metric -> (resamples, models), NaN where undefined.

    A draw takes as many users as there are, with replacement, each with all posts.

    Args:
        labels: (n,).
        predictions: (n, models).
        users: (n,) index of each post's user, 0 to users - 1, all occurring.
        resamples: number of draws.
        seed: the same seed and number of users give the same draws.
        cuts: (n,) the cut that scores each post, None for one. Each is scored by itself, on the users that were drawn
            for all of them; a score is the mean over the cuts.
    """
    found = resample_cuts(labels, predictions, users, resamples=resamples, seed=seed, cuts=cuts)
    return {metric: np.mean(values, axis=0) for metric, values in found.items()}


def resample_cuts(
    labels: FloatArray,
    predictions: FloatArray,
    users: npt.NDArray[np.int64],
    *,
    resamples: int,
    seed: int,
    cuts: npt.NDArray[np.int64] | None = None,
) -> dict[str, FloatArray]:
    """What `resample` means over: metric -> (cuts, resamples, models)."""
    n_users = int(users.max()) + 1
    each = [_Cut(labels[rows], predictions[rows], users[rows], n_users) for rows in fold_rows(len(labels), cuts)]
    parts: list[dict[str, FloatArray]] = []
    for counts in _draws(users, resamples, seed):
        found = [cut.score(counts) for cut in each]
        parts.append({metric: np.stack([one[metric] for one in found]) for metric in found[0]})
    return {metric: np.concatenate([part[metric] for part in parts], axis=1) for metric in parts[0]}


def resample_means(values: FloatArray, users: npt.NDArray[np.int64], *, resamples: int, seed: int) -> FloatArray:
    """(resamples,) means of `values` (n,); draws as in `resample`."""
    n_users = int(users.max()) + 1
    sums = np.bincount(users, weights=values, minlength=n_users)
    posts = np.bincount(users, minlength=n_users)
    return np.concatenate([(counts @ sums) / (counts @ posts) for counts in _draws(users, resamples, seed)])


def _draws(users: npt.NDArray[np.int64], resamples: int, seed: int) -> Iterator[FloatArray]:
    """Draws of users, some at a time: how often each user is in them (draws, n_users)."""
    rng = np.random.default_rng(seed)
    n_users = int(users.max()) + 1
    step = max(1, CELLS // len(users))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(n_users, size=(size, n_users)) + np.arange(size)[:, None] * n_users
        counts = np.bincount(drawn.ravel(), minlength=size * n_users).reshape(size, n_users)
        yield counts.astype(np.float64)


def interval(draws: FloatArray, confidence: float) -> tuple[float | None, float | None]:
    """The percentile interval of (resamples,) scores; (None, None) when no draw has a score."""
    defined = draws[np.isfinite(draws)]
    if not len(defined):
        return None, None
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _sum_by_user(values: FloatArray, users: npt.NDArray[np.int64], n_users: int) -> FloatArray:
    """(n, models) -> (n_users, models)."""
    return np.stack([np.bincount(users, weights=column, minlength=n_users) for column in values.T], axis=1)
