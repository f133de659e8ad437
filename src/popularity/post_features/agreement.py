"""How well picture and text of a post fit, in a space that a linear map without labels makes them share (ours)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, eigh, solve_triangular

Float32Array = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Read = Callable[[Int64Array], tuple[Float32Array, Float32Array]]

CHUNK = 8192  # posts whose vectors are in memory at once
FOLDS = 5


@dataclass(frozen=True)
class _Moments:
    """Of n pairs, written side by side as (n, d): their number, sum (d,) and sum of products (d, d)."""

    count: int
    total: Array
    products: Array

    def __sub__(self, other: _Moments) -> _Moments:
        return _Moments(self.count - other.count, self.total - other.total, self.products - other.products)

    def __add__(self, other: _Moments) -> _Moments:
        return _Moments(self.count + other.count, self.total + other.total, self.products + other.products)


def linear_agreement(
    read: Read,
    fitted: Int64Array,
    others: Int64Array,
    users: Int64Array,
    shrinkage: float,
    wanted: BoolArray | None = None,
) -> Array:
    """(n + m,) agreements in [-1, 1] of the posts `fitted` (n,), then of the posts `others` (m,).

    Canonical correlation analysis: the cosine of picture and text in the space of canonical directions, each
    weighted by its correlation; closed form. No post is read by a map that was fitted on it or on posts of its user:
    the fitted ones by maps of the other folds of users, the others by that of all. Coordinates of different maps would
    not compare, cosines do. NaN where fewer than two pairs are there to fit.

    Args:
        read: rows (b,) -> picture vectors (b, d_I) and text vectors (b, d_T).
        fitted: rows that the maps may be fitted on.
        others: rows that are only read.
        users: (n,) numbers of the users of `fitted`.
        shrinkage: of the mean variance, added to every variance, so that few posts do not make correlations of chance.
        wanted: (n + m,) the posts whose agreement is asked for, NaN for the rest; a map that none of them needs is not
            made. By default all.
    """
    asked = np.ones(len(fitted) + len(others), np.bool_) if wanted is None else wanted
    _, number = np.unique(users, return_inverse=True)
    fold = np.random.default_rng(0).permutation(number.max(initial=-1) + 1)[number] % FOLDS
    moments = [_moments(read, fitted[fold == part]) for part in range(FOLDS)]
    whole = moments[0]
    for other in moments[1:]:
        whole = whole + other
    found = np.full(len(fitted) + len(others), np.nan)
    for part, own in enumerate(moments):
        rows = (fold == part) & asked[: len(fitted)]
        found[: len(fitted)][rows] = _agreements(read, fitted[rows], whole - own, shrinkage)
    rest = asked[len(fitted) :]
    found[len(fitted) :][rest] = _agreements(read, others[rest], whole, shrinkage)
    return found


def _chunks(read: Read, rows: Int64Array) -> Iterator[tuple[Float32Array, Float32Array]]:
    for start in range(0, len(rows), CHUNK):
        yield read(rows[start : start + CHUNK])


def _moments(read: Read, rows: Int64Array) -> _Moments:
    image, text = read(rows[:0])
    width = image.shape[1] + text.shape[1]
    moments = _Moments(0, np.zeros(width), np.zeros((width, width)))
    for pair in _chunks(read, rows):
        side_by_side = np.hstack(pair).astype(np.float64)
        moments += _Moments(len(side_by_side), side_by_side.sum(axis=0), side_by_side.T @ side_by_side)
    return moments


def _agreements(read: Read, rows: Int64Array, moments: _Moments, shrinkage: float) -> Array:
    """(b,) of the posts `rows`, by the map fitted on `moments`."""
    if moments.count < 2 or not len(rows):
        return np.full(len(rows), np.nan)
    width = read(rows[:0])[0].shape[1]
    mean = moments.total / moments.count
    covariance = moments.products / moments.count - np.outer(mean, mean)
    of_image, of_text = (
        cholesky(own + shrinkage * max(np.trace(own) / len(own), 1e-12) * np.eye(len(own)), lower=True)
        for own in (covariance[:width, :width], covariance[width:, width:])
    )
    # With M = L_I^-1 C L_T^-T = U diag(s) W^T the canonical coordinates are U^T L_I^-1 x and W^T L_T^-1 h. Times s and
    # turned by W, which changes no cosine, they are M^T L_I^-1 x and (M^T M)^1/2 L_T^-1 h.
    half = solve_triangular(of_image, covariance[:width, width:], lower=True)
    whitened = solve_triangular(of_text, half.T, lower=True).T  # M, (d_I, d_T)
    squares, axes = eigh(whitened.T @ whitened)
    root = (axes * np.sqrt(np.maximum(squares, 0))) @ axes.T
    image_map = solve_triangular(of_image, whitened, lower=True, trans="T")  # (d_I, d_T)
    text_map = solve_triangular(of_text, root, lower=True, trans="T")  # (d_T, d_T)
    found = []
    for image, text in _chunks(read, rows):
        pictured, written = (image - mean[:width]) @ image_map, (text - mean[width:]) @ text_map
        lengths = np.linalg.norm(pictured, axis=1) * np.linalg.norm(written, axis=1)
        found.append((pictured * written).sum(axis=1) / np.maximum(lengths, 1e-12))
    return np.concatenate(found)
