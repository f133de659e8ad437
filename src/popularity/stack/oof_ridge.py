"""Out-of-fold ridge features: what a ridge regression on a dense block predicts.

Trees need many rows to find a direction in an embedding; a ridge finds it in few. The ridge is fitted on popularity, so
train rows get its out-of-fold predictions alone. The folds keep users apart, because most validation posts are by
users without a train row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import GroupKFold

from popularity.core.arrays import Float32Array, Float64Array, Int64Array, chunks
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
        predicted = np.empty(len(vectors), dtype=np.float32)
        for rows in chunks(np.arange(len(vectors))):
            predicted[rows] = _design(vectors[rows], self.mean, self.scale) @ self.weights
        return predicted


@dataclass(frozen=True)
class _Designs:
    """The standardised vectors of the posts that have one, made part by part: whole they take four times the vectors.

    Args:
        vectors: (n, d) of all posts.
        known: (k,) rows of the posts that have one.
        mean: (d,) of these.
        scale: (d,) of these.
        basis: (d, k) orthonormal columns that span them, where they are fewer than the columns; else None.
    """

    vectors: Float32Array
    known: Int64Array
    mean: Float32Array
    scale: Float32Array
    basis: Float64Array | None

    @classmethod
    def of(cls, vectors: Float32Array) -> _Designs:
        known = np.flatnonzero(~np.isnan(vectors).any(axis=1))
        sums = [vectors[rows].sum(axis=0, dtype=np.float64) for rows in chunks(known)]
        mean = sum(sums[1:], sums[0]) / len(known)
        squares = [np.square(vectors[rows] - mean).sum(axis=0) for rows in chunks(known)]
        scale = np.sqrt(sum(squares[1:], squares[0]) / len(known))
        found = cls(vectors, known, mean.astype(np.float32), np.maximum(scale, 1e-6).astype(np.float32), None)
        if len(known) >= vectors.shape[1]:
            return found
        design = _design(vectors[known], found.mean, found.scale)
        return replace(found, basis=np.linalg.qr(design[:, :-1].T)[0])

    def parts(self, rows: Int64Array) -> Iterator[tuple[Int64Array, Float64Array]]:
        """Positions among the known posts, and their designs (k, columns + 1), in the span where there is one.

        Args:
            rows: positions among the known posts.
        """
        for part in chunks(rows):
            design = _design(self.vectors[self.known[part]], self.mean, self.scale)
            if self.basis is not None:
                design = np.hstack([design[:, :-1] @ self.basis, design[:, -1:]])
            yield part, design

    def sums(self, rows: Int64Array, target: Float64Array) -> tuple[Float64Array, Float64Array]:
        """The normal equations of some of the known posts, whose labels are `target` (known,)."""
        # The product with a copy is another routine than that with itself, with other last bits.
        each = [(design.T @ design.copy(), design.T @ target[part]) for part, design in self.parts(rows)]
        return sum((gram for gram, _ in each[1:]), each[0][0]), sum((moment for _, moment in each[1:]), each[0][1])


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

    The normal equations of a fold are the sum over all rows minus those of the fold, added up part by part. With
    fewer rows than columns they are solved in the span of the rows, which always holds the weights of a ridge.

    Args:
        vectors: (n, d) of the train rows; a row of NaN is a post without a vector.
        label: (n,).
        groups: (n,) users; no user is on both sides of a fold.
        folds: the largest number of folds; fewer if there are fewer users.
        alphas: candidates for the penalty; the one of least squared error out-of-fold is used in all folds.
        seed: of the assignment of users to folds.
    """
    designs = _Designs.of(vectors)
    known, target = designs.known, label[designs.known]
    parts = [valid for _, valid in user_folds(groups[known], folds, seed)] or [np.arange(len(target))]
    each = [designs.sums(rows, target) for rows in parts]
    gram, moment = (sum(own[1:], own[0]) for own in zip(*each, strict=True))

    predictions = {alpha: np.empty(len(target)) for alpha in alphas}
    for rows, (own_gram, own_moment) in zip(parts, each, strict=True):
        weights = {alpha: solve_ridge(gram - own_gram, moment - own_moment, alpha) for alpha in alphas}
        for part, design in designs.parts(rows):
            for alpha in alphas:
                predictions[alpha][part] = design @ weights[alpha]
    best = min(alphas, key=lambda alpha: float(np.mean((predictions[alpha] - target) ** 2)))
    out_of_fold = np.full(len(label), np.nan, dtype=np.float32)
    out_of_fold[known] = predictions[best]
    chosen = solve_ridge(gram, moment, best)
    if designs.basis is not None:
        chosen = np.append(designs.basis @ chosen[:-1], chosen[-1])
    return BlockRidge(designs.mean, designs.scale, chosen), out_of_fold


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
