"""Cross-validation in time inside the training rows of a fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from popularity.core.config import Section

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Cut = tuple[Rows, Rows]

MICROSECONDS_A_DAY = 86_400e6


@dataclass(frozen=True)
class InnerCvParams(Section):
    """How many splits in time a fold's training rows have, and which share of them each validates on."""

    n_splits: Annotated[int, Field(ge=1)]
    valid_fraction: Annotated[float, Field(gt=0, lt=1)]


def inner_splits(posted_at: npt.NDArray[np.int64], params: InnerCvParams) -> list[Cut]:
    """(rows before a slice of time, rows of the slice) of the last `n_splits` slices, each `valid_fraction` of the n rows.

    Fewer, down to none, where less than a slice would be left to fit on. A single cut is too noisy a judge.
    """
    order = np.argsort(posted_at, kind="stable")
    length = max(1, round(len(order) * params.valid_fraction))
    starts = [len(order) - length * cut for cut in range(1, params.n_splits + 1)]
    return [(np.sort(order[:start]), np.sort(order[start : start + length])) for start in starts if start >= length]


def scored_rows(cuts: Sequence[Cut]) -> Rows:
    """(m,) the rows that the cuts score, in the order of `Learned.out_of_fold`; none occurs twice."""
    return np.concatenate([scored for _, scored in cuts]) if cuts else np.empty(0, dtype=np.int64)
