"""Valid rows whose Pids are spread in the order of collection as those of the test posts: others are excluded.

Where the test posts come late in the collection and the label falls along it, valid rows of all of the collection
would score a model that does not know of it too well. Rows are left out and not weighted, so that every score, and
the search with them, sees the same rows.
"""

from __future__ import annotations

import numpy as np

from popularity.core.arrays import BoolArray, Float64Array, Int64Array

N_BINS = 10  # with equal numbers of test posts
MIN_KEPT = 1 / 3  # of the valid rows, however far their Pids are from those of the test posts
MAX_MISS = 0.05  # share of the rows kept that would have to lie elsewhere; a larger one is said


def rows_to_keep(valid: Int64Array, test: Int64Array, rng: np.random.Generator) -> tuple[BoolArray, str]:
    """Returns which valid rows (n,) stay, and how far they miss the spread of the test posts; empty if they do not.

    As many stay as have the test posts' shares of the bins, but at least MIN_KEPT.

    Args:
        valid: (n,) numbers of the valid rows' Pids.
        test: (m,) those of the test posts.
        rng: draws the rows of a bin.
    """
    edges = np.quantile(test, np.linspace(0, 1, N_BINS + 1)[1:-1])
    shares = _counts(test, edges) / len(test)
    counts, bins = _counts(valid, edges), np.searchsorted(edges, valid, side="right")
    has_test = shares > 0
    totals = np.append(0.0, np.sort(counts[has_test] / shares[has_test]))  # at each the next bin has no more rows
    kept = np.minimum(counts, totals[:, None] * shares).sum(axis=1)
    total = max(totals[1], float(np.interp(MIN_KEPT * len(valid), kept, totals)))
    wanted = np.rint(np.minimum(counts, total * shares))
    keep = np.zeros(len(valid), dtype=np.bool_)
    for index, count in enumerate(wanted.astype(int)):
        keep[rng.permutation(np.flatnonzero(bins == index))[:count]] = True
    miss = float(np.abs(wanted / max(wanted.sum(), 1) - shares).sum()) / 2
    if miss <= MAX_MISS:
        return keep, ""
    return keep, f"{100 * miss:.0f} % of the valid posts lie elsewhere in the order of collection than the test posts"


def _counts(numbers: Int64Array, edges: Float64Array) -> Float64Array:
    """Rows in each of N_BINS bins."""
    return np.bincount(np.searchsorted(edges, numbers, side="right"), minlength=N_BINS).astype(np.float64)
