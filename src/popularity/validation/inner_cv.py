"""Cross-validation in time inside the train rows of a fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from popularity.core.arrays import Int64Array
from popularity.core.config import Section

InnerSplit = tuple[Int64Array, Int64Array]  # positions of the train rows and of the valid rows

MICROSECONDS_A_DAY = 86_400e6


@dataclass(frozen=True)
class InnerCvParams(Section):
    """The splits in time inside a fold's train rows.

    Args:
        n_splits: how many splits.
        valid_fraction: of the train rows, valid in each split.
    """

    n_splits: Annotated[int, Field(ge=1)]
    valid_fraction: Annotated[float, Field(gt=0, lt=1)]


def inner_splits(posted_at: Int64Array, params: InnerCvParams) -> list[InnerSplit]:
    """Returns the inner CV: (rows before a slice of time, rows of the slice) of the last `n_splits` slices.

    Each slice is `valid_fraction` of the n rows; the last slice comes first. There are fewer splits, down to none,
    where fewer train rows than valid rows would be left. There are several because one split is too noisy.

    Args:
        posted_at: (n,) microseconds.
        params: section stack.inner_cv.
    """
    order = np.argsort(posted_at, kind="stable")
    length = max(1, round(len(order) * params.valid_fraction))
    starts = [len(order) - length * split for split in range(1, params.n_splits + 1)]
    return [(np.sort(order[:start]), np.sort(order[start : start + length])) for start in starts if start >= length]


def valid_rows(splits: Sequence[InnerSplit]) -> Int64Array:
    """Returns (m,) the valid rows of all splits, in the order of `Learned.out_of_fold`; none occurs twice."""
    return np.concatenate([valid for _, valid in splits]) if splits else np.empty(0, dtype=np.int64)
