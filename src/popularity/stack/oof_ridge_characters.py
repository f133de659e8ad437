"""The out-of-fold ridge feature `characters`: what a ridge regression on character n-grams of the texts predicts.

N-grams of one to four characters are robust where words are rare: spelling, endings, other languages, joined tags. A
hash that is fitted to nothing maps them to N_HASHED columns, and a ridge reads the logarithms of their counts. As in
`oof_ridge`, train rows get its out-of-fold predictions, with users kept apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer

from popularity.core.arrays import Float32Array, Float64Array
from popularity.stack.oof_ridge import user_folds
from popularity.stack.ridge import fit_sparse_ridges

COLUMN = "characters_oof_ridge"
MAX_NGRAM = 4  # characters; an n-gram ends with its word
N_HASHED = 2**18


@dataclass(frozen=True)
class CharacterRidge:
    """A ridge on character n-grams.

    Args:
        weights: (N_HASHED,) of the logarithms of counts.
        intercept: added to every prediction.
    """

    weights: Float32Array
    intercept: float

    def predict(self, texts: Sequence[str]) -> Float32Array:
        """(n,) predicted labels of n texts."""
        values: Float32Array = (log_counts(texts) @ self.weights + self.intercept).astype(np.float32)
        return values


def log_counts(texts: Sequence[str]) -> sparse.csr_matrix:
    """(n, N_HASHED) log(1 + count) of every character n-gram of n texts, case ignored."""
    hashing = HashingVectorizer(
        analyzer="char_wb", ngram_range=(1, MAX_NGRAM), n_features=N_HASHED, norm=None, alternate_sign=False
    )
    counts = sparse.csr_matrix(hashing.transform(texts))
    counts.data = np.log1p(counts.data)
    return counts


def fit_oof_ridge_characters(
    texts: Sequence[str],
    label: Float64Array,
    groups: npt.NDArray[np.object_],
    *,
    folds: int,
    alphas: Sequence[float],
    seed: int,
) -> tuple[CharacterRidge, Float32Array]:
    """The ridge fitted on all rows, and its out-of-fold predictions (n,) of the same rows.

    Args:
        texts: n of the train rows.
        label: (n,).
        groups: (n,) users; no user is on both sides of a fold.
        folds: the largest number of folds; fewer if there are fewer users.
        alphas: candidates for the penalty, on rows whose mean square is 1; the one of least squared error out-of-fold
            is used.
        seed: of the assignment of users to folds.
    """
    counts = log_counts(texts)
    scale = 1 / np.sqrt(max(float(counts.multiply(counts).sum(axis=1).mean()), 1e-12))
    design = counts * scale
    predictions = np.full((len(alphas), len(label)), label.mean())
    for train, valid in user_folds(groups, folds, seed):
        fitted = fit_sparse_ridges(design[train], label[train], alphas)
        predictions[:, valid] = fitted.predict(design[valid]).reshape(len(valid), -1).T
    best = int(np.argmin(((predictions - label) ** 2).mean(axis=1)))
    chosen = fit_sparse_ridges(design, label, alphas[best : best + 1])
    weights = (np.ravel(chosen.coef_) * scale).astype(np.float32)
    ridge = CharacterRidge(weights, float(np.ravel(chosen.intercept_)[0]))
    return ridge, predictions[best].astype(np.float32)
