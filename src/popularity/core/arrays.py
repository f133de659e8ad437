"""Array types that all modules share, row normalisation, and rounding for reports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Float16Array = npt.NDArray[np.float16]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

CHUNK_ROWS = 16_384  # rows in memory at once of what has many columns; another number changes sums in their last bits


def chunks(rows: Int64Array) -> Iterator[Int64Array]:
    """The rows (n,) in parts of at most CHUNK_ROWS."""
    for start in range(0, len(rows), CHUNK_ROWS):
        yield rows[start : start + CHUNK_ROWS]


def normalize_rows(
    vectors: npt.NDArray[Any], *, dtype: npt.DTypeLike | None = None, min_norm: float = 0.0
) -> npt.NDArray[Any]:
    """The vectors scaled to length 1 (L2); a zero vector stays zero.

    Args:
        vectors: (..., d), each along the last axis.
        dtype: in which lengths and quotients are computed and returned; by default that of `vectors`.
        min_norm: a vector shorter than this is divided by it, and so stays shorter than 1.

    Returns:
        (..., d) of `dtype`.
    """
    values = np.asarray(vectors, dtype=dtype)
    norm = np.linalg.norm(values, axis=-1, keepdims=True)
    if min_norm:
        norm = np.maximum(norm, min_norm)
    return np.asarray(values / np.where(norm > 0, norm, 1), dtype=dtype)


def rounded(value: Any, digits: int) -> float | None:
    """`value` with `digits` decimals, for a report; None stays None and -0.0 becomes 0.0."""
    return None if value is None else round(float(value), digits) + 0.0
