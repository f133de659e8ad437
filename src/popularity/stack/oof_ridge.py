"""A linear head on a dense block: what a ridge regression reads from it, out of fold on the fit rows.

Trees need many rows to find a direction in an embedding; a ridge finds it in few. Its prediction is fitted
to popularity, so on fit rows it enters the trees only out of fold, and the folds keep users apart because
most scored posts are by users never seen (method.md, "Two traps").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import GroupKFold

from popularity.stack.ridge import solve_ridge

FloatArray = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RidgeHead:
    """weights (d + 1,) on the standardised vector and a constant; mean and scale (d,) of the fit rows."""

    mean: FloatArray
    scale: FloatArray
    weights: Array

    def predict(self, vectors: FloatArray) -> FloatArray:
        """(n,) predicted labels of (n, d) vectors; NaN where a vector is missing."""
        return (_design(vectors, self.mean, self.scale) @ self.weights).astype(np.float32)


def fit_head(
    vectors: FloatArray,
    label: Array,
    groups: npt.NDArray[np.object_],
    *,
    folds: int,
    penalties: Sequence[float],
    seed: int,
) -> tuple[RidgeHead, FloatArray]:
    """The head fitted on all rows, and its out-of-fold predictions (n,) of those same rows.

    Args:
        vectors: (n, d) of the fit rows; a row of NaN is a post without a vector.
        label: (n,).
        groups: (n,) users; no user is on both sides of a fold.
        folds: at most; fewer when there are fewer users.
        penalties: candidates for the ridge penalty; the one with the least out-of-fold squared error is
            taken, for all rows alike.

    Each fold's normal equations are the sum over all rows minus the fold's own, so the rows are read once. With
    fewer rows than columns they are solved in the rows' own span, where a ridge's weights always lie.
    """
    known = ~np.isnan(vectors).any(axis=1)
    mean = vectors[known].mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = np.maximum(vectors[known].std(axis=0, dtype=np.float64), 1e-6).astype(np.float32)
    design, target = _design(vectors[known], mean, scale), label[known]
    width = design.shape[1] - 1
    basis = np.linalg.qr(design[:, :-1].T)[0] if len(design) < width else None
    if basis is not None:
        design = np.hstack([design[:, :-1] @ basis, design[:, -1:]])
    parts = [own for _, own in user_folds(groups[known], folds, seed)] or [np.arange(len(target))]
    grams = [design[rows].T @ design[rows] for rows in parts]
    moments = [design[rows].T @ target[rows] for rows in parts]
    gram, moment = sum(grams[1:], grams[0]), sum(moments[1:], moments[0])

    predictions = {penalty: np.empty(len(target)) for penalty in penalties}
    for rows, own_gram, own_moment in zip(parts, grams, moments, strict=True):
        for penalty in penalties:
            weights = solve_ridge(gram - own_gram, moment - own_moment, penalty)
            predictions[penalty][rows] = design[rows] @ weights
    best = min(penalties, key=lambda penalty: float(np.mean((predictions[penalty] - target) ** 2)))
    out_of_fold = np.full(len(label), np.nan, dtype=np.float32)
    out_of_fold[known] = predictions[best]
    weights = solve_ridge(gram, moment, best)
    if basis is not None:
        weights = np.append(basis @ weights[:-1], weights[-1])
    return RidgeHead(mean, scale, weights), out_of_fold


def user_folds(groups: npt.NDArray[np.object_], folds: int, seed: int) -> list[tuple[Rows, Rows]]:
    """(rows fitted on, rows predicted) of each fold: no user is on both sides. None at all if there is one user."""
    different, users = np.unique(groups, return_inverse=True)  # numbers: splitting by names takes users x rows
    count = min(folds, len(different))
    if count < 2:
        return []
    return list(GroupKFold(count, shuffle=True, random_state=seed).split(users, groups=users))


def _design(vectors: FloatArray, mean: FloatArray, scale: FloatArray) -> Array:
    """(n, d + 1): standardised vectors and a column of ones."""
    design = np.ones((len(vectors), vectors.shape[1] + 1))
    design[:, :-1] = (vectors - mean) / scale
    return design
