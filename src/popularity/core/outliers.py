"""Labels that no fit believes: one that lies absurdly far from all others counts as one at their edge.

A wrong number (a count with digits too many, a date in its place) bends squared errors, means and error scales alike.
So every fit and every target statistic reads the labels of the train rows clipped. Scores take labels as they are.
"""

from __future__ import annotations

import numpy as np

from popularity.core.arrays import Float64Array

TAIL = 0.01  # share of the labels at either end, outside of the range that counts; at least one
MIN_WIDTH = 4.0  # label units: of that range, where almost all labels are equal


def clipped_labels(label: Float64Array) -> Float64Array:
    """Returns the labels (n,); those that lie farther from the range of the middle 98 % than it is wide, at its ends.

    A normal distribution has one in 10^11 so far out. Fewer than three labels stay as they are.

    Args:
        label: (n,).
    """
    if len(label) < 3:
        return label
    low, high = np.quantile(label, TAIL, method="higher"), np.quantile(label, 1 - TAIL, method="lower")
    spare = max(MIN_WIDTH - (high - low), 0.0) / 2
    low, high = low - spare, high + spare
    width = high - low
    return np.where(label > high + width, high, np.where(label < low - width, low, label))
