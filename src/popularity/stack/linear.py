"""The linear learner: a ridge regression on the standardised matrix, categories as indicators.

It sees what a tree cannot, a direction in many columns at once, and extrapolates where a tree stops.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from popularity.core.arrays import Float64Array, Int64Array
from popularity.core.atomic import atomic_path, reading
from popularity.stack.matrix import Matrix
from popularity.stack.params import StackParams
from popularity.stack.ridge import solve_ridge
from popularity.stack.sample import Learned, Sample
from popularity.validation.inner_cv import InnerSplit

SUFFIX = "npz"
MAX_ABS_Z = 3.0  # standard deviations at which a value ends: counts and lengths have long tails
CHUNK = 16_384  # rows of the design in memory at once
INDICATORS = 1_000  # of a column of codes, its largest ones: with 70,000 users the normal equations would take 40 GB


@dataclass(frozen=True)
class RidgeModel:
    """Weights on standardised numbers and on indicators of categories.

    Args:
        mean: (columns,) of the fit rows; 0 for a column of codes.
        scale: (columns,) likewise; 1 for a column of codes.
        code_places: (indicators,) the column of codes that an indicator reads.
        codes: (indicators,) the code that it stands for.
        weights: (columns + indicators + 1,); columns of codes have weight 0, and the last is the constant.
    """

    mean: Float64Array
    scale: Float64Array
    code_places: Float64Array
    codes: Float64Array
    weights: Float64Array

    def design(self, matrix: Matrix, rows: Int64Array) -> Float64Array:
        """(rows, columns + indicators + 1): a missing number is the mean, an unknown category has no indicator."""
        values = matrix.values[rows].astype(np.float64)
        numbers = np.clip((values - self.mean) / self.scale, -MAX_ABS_Z, MAX_ABS_Z)
        numbers[np.isnan(numbers)] = 0.0
        numbers[:, list(matrix.categorical)] = 0.0
        indicators = values[:, self.code_places.astype(np.int64)] == self.codes
        return np.hstack([numbers, indicators, np.ones((len(rows), 1))])


def learn(sample: Sample, cuts: Sequence[InnerSplit], params: StackParams) -> Learned:
    """The penalty of the least mean squared error over the inner cuts, and their out-of-fold predictions.

    Without a cut the strongest. `chosen` is its position among `stack.linear.alphas`.
    """
    penalties = params.linear.alphas
    if not cuts:
        return Learned(int(np.argmax(penalties)), np.empty(0))
    each = [
        [predict_rows(model, sample.matrix, scored) for model in _fit(sample, rows, penalties)] for rows, scored in cuts
    ]
    errors = np.array(
        [
            [np.average((sample.target[scored] - own) ** 2, weights=_weights(sample, scored)) for own in predicted]
            for predicted, (_, scored) in zip(each, cuts, strict=True)
        ]
    )  # (cuts, penalties)
    chosen = int(np.argmin(errors.mean(axis=0)))
    return Learned(chosen, np.concatenate([predicted[chosen] for predicted in each]))


def fit(sample: Sample, chosen: int, params: StackParams, seed: int) -> RidgeModel:  # noqa: ARG001  it draws nothing
    """The model of all rows; the same for every seed."""
    return _fit(sample, np.arange(len(sample.target)), [params.linear.alphas[chosen]])[0]


def predict(model: RidgeModel, matrix: Matrix) -> Float64Array:
    """(n,) in the scale that was fitted."""
    return predict_rows(model, matrix, np.arange(len(matrix.values)))


def predict_rows(model: RidgeModel, matrix: Matrix, rows: Int64Array) -> Float64Array:
    """(rows,) likewise, of some rows."""
    parts = [model.design(matrix, part) @ model.weights for part in _chunks(rows)]
    return np.concatenate(parts) if parts else np.empty(0)


def contributions(model: RidgeModel, matrix: Matrix) -> Float64Array:
    """(n, columns + 1) what each column adds to a prediction, and last what all posts share, the constant."""
    columns = matrix.values.shape[1]
    result = np.empty((len(matrix.values), columns + 1))
    for rows in _chunks(np.arange(len(matrix.values))):
        added = model.design(matrix, rows) * model.weights
        result[rows, :columns] = added[:, :columns]
        result[rows, -1] = added[:, -1]
        for place in matrix.categorical:
            own = columns + np.flatnonzero(model.code_places == place)
            result[rows, place] = added[:, own].sum(axis=1)
    return result


def save(model: RidgeModel, path: Path) -> None:
    """Writes the arrays."""
    with atomic_path(path) as partial, partial.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **vars(model))


def load(path: Path) -> RidgeModel:
    """The model that `save` wrote."""
    with reading(path), np.load(path, allow_pickle=False) as arrays:
        return RidgeModel(**{name: arrays[name] for name in arrays.files})


def _fit(sample: Sample, rows: Int64Array, penalties: Sequence[float]) -> list[RidgeModel]:
    """A model a penalty, of some rows: means and scales too are theirs alone."""
    empty = _standardised(sample.matrix, rows)
    width = len(empty.mean) + len(empty.codes) + 1
    gram, moment = np.zeros((width, width)), np.zeros(width)
    for part in _chunks(rows):
        design = empty.design(sample.matrix, part)
        weighted = design * _weights(sample, part)[:, None]
        gram += design.T @ weighted
        moment += weighted.T @ sample.target[part]
    models = []
    for penalty in penalties:
        weights = solve_ridge(gram, moment, penalty)
        models.append(RidgeModel(empty.mean, empty.scale, empty.code_places, empty.codes, weights))
    return models


def _standardised(matrix: Matrix, rows: Int64Array) -> RidgeModel:
    """A model without weights: what the rows say of means, scales and categories."""
    columns = matrix.values.shape[1]
    mean, scale = np.zeros(columns), np.ones(columns)
    places: list[int] = []
    codes: list[float] = []
    for place in range(columns):
        values = matrix.values[rows, place].astype(np.float64)
        values = values[~np.isnan(values)]
        if place in matrix.categorical:
            known, posts = np.unique(values, return_counts=True)
            found = np.sort(known[np.argsort(-posts, kind="stable")[:INDICATORS]]).tolist()
            codes += found
            places += [place] * len(found)
        elif len(values):
            mean[place] = values.mean()
            scale[place] = values.std() if values.std() > 1e-6 * max(1.0, abs(mean[place])) else np.inf
    return RidgeModel(mean, scale, np.array(places, dtype=np.float64), np.array(codes), np.empty(0))


def _weights(sample: Sample, rows: Int64Array) -> Float64Array:
    return np.ones(len(rows)) if sample.weight is None else sample.weight[rows]


def _chunks(rows: Int64Array) -> Iterator[Int64Array]:
    for start in range(0, len(rows), CHUNK):
        yield rows[start : start + CHUNK]
