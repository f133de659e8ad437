"""Out-of-fold ridge features: what a ridge regression on a dense block predicts.

Trees need many rows to find a direction in an embedding; a ridge finds it in few. The ridge is fitted on popularity, so
train rows get its out-of-fold predictions alone. The folds keep users apart, because most validation posts are by
users without a train row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import GroupKFold

from popularity.core.arrays import Float32Array, Float64Array, Int64Array
from popularity.stack.ridge import solve_ridge


@dataclass(frozen=True)
class BlockRidge:
    """A ridge on the standardised vectors of a block.

    Args:
        mean: (d,) of the train rows.
        scale: (d,) standard deviations of the train rows.
        weights: (d + 1,) with the intercept last.
    """

    mean: Float32Array
    scale: Float32Array
    weights: Float64Array

    def predict(self, vectors: Float32Array) -> Float32Array:
        """(n,) predicted labels of (n, d) vectors; NaN where a vector is missing."""
        return (_design(vectors, self.mean, self.scale) @ self.weights).astype(np.float32)


def fit_oof_ridge(
    vectors: Float32Array,
    label: Float64Array,
    groups: npt.NDArray[np.object_],
    *,
    folds: int,
    alphas: Sequence[float],
    seed: int,
) -> tuple[BlockRidge, Float32Array]:
    """The ridge fitted on all rows, and its out-of-fold predictions (n,) of the same rows.

    The normal equations of a fold are the sum over all rows minus those of the fold, so the rows are read once. With
    fewer rows than columns they are solved in the span of the rows, which always holds the weights of a ridge.

    Args:
        vectors: (n, d) of the train rows; a row of NaN is a post without a vector.
        label: (n,).
        groups: (n,) users; no user is on both sides of a fold.
        folds: the largest number of folds; fewer if there are fewer users.
        alphas: candidates for the penalty; the one of least squared error out-of-fold is used in all folds.
        seed: of the assignment of users to folds.
    """
    known = ~np.isnan(vectors).any(axis=1)
    mean = vectors[known].mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = np.maximum(vectors[known].std(axis=0, dtype=np.float64), 1e-6).astype(np.float32)
    design, target = _design(vectors[known], mean, scale), label[known]
    width = design.shape[1] - 1
    basis = np.linalg.qr(design[:, :-1].T)[0] if len(design) < width else None
    if basis is not None:
        design = np.hstack([design[:, :-1] @ basis, design[:, -1:]])
    parts = [valid for _, valid in user_folds(groups[known], folds, seed)] or [np.arange(len(target))]
    grams = [design[rows].T @ design[rows] for rows in parts]
    moments = [design[rows].T @ target[rows] for rows in parts]
    gram, moment = sum(grams[1:], grams[0]), sum(moments[1:], moments[0])

    predictions = {alpha: np.empty(len(target)) for alpha in alphas}
    for rows, own_gram, own_moment in zip(parts, grams, moments, strict=True):
        for alpha in alphas:
            weights = solve_ridge(gram - own_gram, moment - own_moment, alpha)
            predictions[alpha][rows] = design[rows] @ weights
    best = min(alphas, key=lambda alpha: float(np.mean((predictions[alpha] - target) ** 2)))
    out_of_fold = np.full(len(label), np.nan, dtype=np.float32)
    out_of_fold[known] = predictions[best]
    weights = solve_ridge(gram, moment, best)
    if basis is not None:
        weights = np.append(basis @ weights[:-1], weights[-1])
    return BlockRidge(mean, scale, weights), out_of_fold


def user_folds(groups: npt.NDArray[np.object_], folds: int, seed: int) -> list[tuple[Int64Array, Int64Array]]:
    """(train rows, valid rows) of each fold, with no user on both sides; no fold at all if there is one user.

    Args:
        groups: (n,) users.
        folds: the largest number of folds.
        seed: of the assignment of users to folds.
    """
    different, users = np.unique(groups, return_inverse=True)  # numbers: splitting by names takes users x rows
    count = min(folds, len(different))
    if count < 2:
        return []
    return list(GroupKFold(count, shuffle=True, random_state=seed).split(users, groups=users))


def _design(vectors: Float32Array, mean: Float32Array, scale: Float32Array) -> Float64Array:
    """(n, d + 1): standardised vectors and a column of ones."""
    design = np.ones((len(vectors), vectors.shape[1] + 1))
    design[:, :-1] = (vectors - mean) / scale
    return design
