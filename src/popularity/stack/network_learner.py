"""The network's head as a learner: its column of the matrix, moved and stretched to what is fitted.

The column holds what the head says without having seen the post's user; a line through it is all that is left to learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from popularity.files import atomic_path
from popularity.stack.inner import Array, Cut, Learned, Rows, Sample
from popularity.stack.matrix import Matrix
from popularity.stack.network_head import NAME
from popularity.stack.params import StackParams

SUFFIX = "npz"


@dataclass(frozen=True)
class Line:
    """Two numbers, each (): prediction = constant + slope * column."""

    constant: Array
    slope: Array


def learn(sample: Sample, cuts: Sequence[Cut], params: StackParams) -> Learned:  # noqa: ARG001  as other learners
    """Out-of-fold predictions of the inner cuts; nothing is chosen."""
    parts = [predict(_line(sample, rows), sample.matrix)[scored] for rows, scored in cuts]
    return Learned(0, np.concatenate([np.empty(0), *parts]))


def fit(sample: Sample, chosen: int, params: StackParams, seed: int) -> Line:  # noqa: ARG001  it draws nothing
    """The line through all rows; the same for every seed."""
    return _line(sample, np.arange(len(sample.target)))


def predict(model: Line, matrix: Matrix) -> Array:
    """(n,) in the scale that was fitted."""
    return model.constant + model.slope * _column(matrix)


def contributions(model: Line, matrix: Matrix) -> Array:
    """(n, columns + 1) what each column adds to a prediction, and last what all posts share, the constant."""
    result = np.zeros((len(matrix.values), len(matrix.names) + 1))
    if NAME in matrix.names:
        result[:, matrix.names.index(NAME)] = model.slope * _column(matrix)
    result[:, -1] = model.constant
    return result


def save(model: Line, path: Path) -> None:
    """Writes the two numbers."""
    with atomic_path(path) as partial, partial.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **vars(model))


def load(path: Path) -> Line:
    """The line that `save` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return Line(**{name: arrays[name] for name in arrays.files})


def _column(matrix: Matrix) -> Array:
    """(n,) the head's predictions; zeros in a matrix without them, as the baseline `metadata` has."""
    if NAME not in matrix.names:
        return np.zeros(len(matrix.values))
    return matrix.values[:, matrix.names.index(NAME)].astype(np.float64)


def _line(sample: Sample, rows: Rows) -> Line:
    """Least squares, weighted as the rows are."""
    weight = np.ones(len(rows)) if sample.weight is None else sample.weight[rows]
    column, target = _column(sample.matrix)[rows], sample.target[rows]
    centre, mean = np.average(column, weights=weight), np.average(target, weights=weight)
    spread = np.average((column - centre) ** 2, weights=weight)
    slope = np.average((column - centre) * (target - mean), weights=weight) / spread if spread > 0 else 0.0
    return Line(np.array(mean - slope * centre), np.array(slope))
