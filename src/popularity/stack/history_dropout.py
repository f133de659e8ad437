"""History dropout: some train rows are read as if no older train row were of their user, as posts of unseen users are.

The learners then rely less on a past of few posts, and know what the other columns are worth without one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from popularity.core.arrays import Int64Array
from popularity.features import FeatureColumn
from popularity.stack.matrix import Matrix

PAST = "uid_target_posts"


def drop_histories(matrix: Matrix, posted_at: Int64Array, share: float, seed: int = 0) -> Matrix:
    """The matrix with the columns of the user's past, in a share of the rows that have one, as without a past.

    Such a row takes these columns from the nearest row in time whose user has no past: they are the same for all posts
    of one as-of date. Where every row has a past, or the matrix has no columns of it, nothing changes.

    Args:
        matrix: of n train rows.
        posted_at: (n,) microseconds.
        share: 0 to 1, `stack.history_dropout`.
        seed: of the draw.
    """
    if not share or PAST not in matrix.names:
        return matrix
    columns = np.flatnonzero([FeatureColumn.named(name).of_user_past for name in matrix.names])
    has_past = matrix.values[:, matrix.names.index(PAST)] > 0
    rows, others = np.flatnonzero(has_past), np.flatnonzero(~has_past)
    if not len(others):
        return matrix
    hidden = np.random.default_rng(seed).permutation(rows)[: round(share * len(rows))]
    others = others[np.argsort(posted_at[others], kind="stable")]
    after = np.searchsorted(posted_at[others], posted_at[hidden])
    sides = np.stack([others[np.maximum(after - 1, 0)], others[np.minimum(after, len(others) - 1)]])
    nearer = np.abs(posted_at[sides] - posted_at[hidden]).argmin(axis=0)
    values = matrix.values.copy()
    values[np.ix_(hidden, columns)] = matrix.values[np.ix_(sides[nearer, np.arange(len(hidden))], columns)]
    return replace(matrix, values=values)
