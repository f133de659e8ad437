"""A linear head on the characters of a post's texts: which pieces of words go with popularity.

Pieces of one to four characters are robust where words are rare: spelling, endings, other languages, joined tags. They
are counted into WIDTH places by a hash that is fitted to nothing; a ridge on the logarithms of the counts reads them.
As a ridge on a dense block does (`heads`), it enters the fit rows out of fold, by user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer

from popularity.stack.oof_ridge import Array, FloatArray, user_folds
from popularity.stack.ridge import fit_sparse_ridges

NAME = "characters_head"  # of the column
LONGEST = 4  # characters of a piece; pieces end with their word
WIDTH = 2**18


@dataclass(frozen=True)
class CharacterHead:
    """weights (WIDTH,) of the logarithms of counts, and a constant."""

    weights: FloatArray
    constant: float

    def predict(self, texts: Sequence[str]) -> FloatArray:
        """(n,) predicted labels of n texts."""
        values: FloatArray = (counted(texts) @ self.weights + self.constant).astype(np.float32)
        return values


def counted(texts: Sequence[str]) -> sparse.csr_matrix:
    """(n, WIDTH) log(1 + count) of every piece, case ignored."""
    hashing = HashingVectorizer(
        analyzer="char_wb", ngram_range=(1, LONGEST), n_features=WIDTH, norm=None, alternate_sign=False
    )
    counts = sparse.csr_matrix(hashing.transform(texts))
    counts.data = np.log1p(counts.data)
    return counts


def fit_character_head(
    texts: Sequence[str],
    label: Array,
    groups: npt.NDArray[np.object_],
    *,
    folds: int,
    penalties: Sequence[float],
    seed: int,
) -> tuple[CharacterHead, FloatArray]:
    """The head fitted on all rows, and its out-of-fold predictions (n,) of those same rows.

    Args:
        texts: n of the fit rows.
        label: (n,).
        groups: (n,) users; no user is on both sides of a fold.
        folds: at most; fewer when there are fewer users.
        penalties: candidates for the ridge penalty, of rows whose mean square is 1; the one with the least out-of-fold
            squared error is taken.
    """
    counts = counted(texts)
    scale = 1 / np.sqrt(max(float(counts.multiply(counts).sum(axis=1).mean()), 1e-12))
    design = counts * scale
    predictions = np.full((len(penalties), len(label)), label.mean())
    for rows, own in user_folds(groups, folds, seed):
        fitted = fit_sparse_ridges(design[rows], label[rows], penalties)
        predictions[:, own] = fitted.predict(design[own]).reshape(len(own), -1).T
    best = int(np.argmin(((predictions - label) ** 2).mean(axis=1)))
    chosen = fit_sparse_ridges(design, label, penalties[best : best + 1])
    weights = (np.ravel(chosen.coef_) * scale).astype(np.float32)
    head = CharacterHead(weights, float(np.ravel(chosen.intercept_)[0]))
    return head, predictions[best].astype(np.float32)
