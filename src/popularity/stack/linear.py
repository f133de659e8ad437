"""The linear learner: a ridge regression on the standardised matrix, with indicators of categories.

It finds a direction in many columns at once, which trees cannot, and it extrapolates, which trees do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from popularity.core.arrays import Float64Array, Int64Array, chunks
from popularity.core.atomic import atomic_path, reading
from popularity.stack.matrix import Matrix
from popularity.stack.params import StackParams
from popularity.stack.ridge import solve_ridge
from popularity.stack.sample import Learned, Sample
from popularity.validation.inner_cv import InnerSplit

SUFFIX = "npz"
MAX_ABS_Z = 3.0  # standard deviations to which values are clipped: counts and lengths have long tails
MAX_INDICATORS = 1_000  # of a categorical column, its largest values: 70,000 users would take 40 GB


@dataclass(frozen=True)
class RidgeModel:
    """Weights of standardised numbers and of indicators of categories.

    Args:
        mean: (columns,) of the train rows; 0 for a categorical column.
        scale: (columns,) standard deviations of the train rows; 1 for a categorical column.
        code_columns: (indicators,) the column that an indicator reads.
        codes: (indicators,) the category that it stands for.
        weights: (columns + indicators + 1,); 0 for categorical columns, and the intercept last.
    """

    mean: Float64Array
    scale: Float64Array
    code_columns: Float64Array
    codes: Float64Array
    weights: Float64Array

    def design(self, matrix: Matrix, rows: Int64Array) -> Float64Array:
        """(rows, columns + indicators + 1) the design; a missing number is the mean, an unknown category is 0."""
        values = matrix.values[rows].astype(np.float64)
        numbers = np.clip((values - self.mean) / self.scale, -MAX_ABS_Z, MAX_ABS_Z)
        numbers[np.isnan(numbers)] = 0.0
        numbers[:, list(matrix.categorical)] = 0.0
        indicators = values[:, self.code_columns.astype(np.int64)] == self.codes
        return np.hstack([numbers, indicators, np.ones((len(rows), 1))])


def learn(sample: Sample, splits: Sequence[InnerSplit], params: StackParams) -> Learned:
    """The penalty of least mean squared error on the inner CV, and out-of-fold predictions.

    `chosen` is its position among `stack.linear.alphas`. Without a split: the largest penalty, and no prediction.
    """
    alphas = params.linear.alphas
    if not splits:
        return Learned(int(np.argmax(alphas)), np.empty(0))
    each = [
        [predict_rows(model, sample.matrix, valid) for model in _fit(sample, train, alphas)] for train, valid in splits
    ]
    errors = np.array(
        [
            [np.average((sample.target[valid] - own) ** 2, weights=_weights(sample, valid)) for own in predicted]
            for predicted, (_, valid) in zip(each, splits, strict=True)
        ]
    )  # (splits, alphas)
    chosen = int(np.argmin(errors.mean(axis=0)))
    return Learned(chosen, np.concatenate([predicted[chosen] for predicted in each]))


def fit(sample: Sample, chosen: int, params: StackParams, seed: int) -> RidgeModel:  # noqa: ARG001  it draws nothing
    """The model fitted on all rows; the same for every seed."""
    return _fit(sample, np.arange(len(sample.target)), [params.linear.alphas[chosen]])[0]


def predict(model: RidgeModel, matrix: Matrix) -> Float64Array:
    """(n,) predictions in the unit of the fitted target."""
    return predict_rows(model, matrix, np.arange(len(matrix.values)))


def predict_rows(model: RidgeModel, matrix: Matrix, rows: Int64Array) -> Float64Array:
    """(rows,) predictions of some rows of the matrix."""
    parts = [model.design(matrix, part) @ model.weights for part in chunks(rows)]
    return np.concatenate(parts) if parts else np.empty(0)


def describe(model: RidgeModel) -> str:  # noqa: ARG001  as the other learners
    """Nothing: a ridge has no rounds."""
    return ""


def shap_values(model: RidgeModel, matrix: Matrix) -> Float64Array:
    """(n, columns + 1) SHAP values of the columns, and the expected value last, which is the intercept."""
    columns = matrix.values.shape[1]
    result = np.empty((len(matrix.values), columns + 1))
    for rows in chunks(np.arange(len(matrix.values))):
        terms = model.design(matrix, rows) * model.weights
        result[rows, :columns] = terms[:, :columns]
        result[rows, -1] = terms[:, -1]
        for column in matrix.categorical:
            own = columns + np.flatnonzero(model.code_columns == column)
            result[rows, column] = terms[:, own].sum(axis=1)
    return result


def save(model: RidgeModel, path: Path) -> None:
    """Writes the arrays."""
    with atomic_path(path) as partial, partial.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **vars(model))


def load(path: Path) -> RidgeModel:
    """The model that `save` wrote.

    Raises:
        ContractError: the file is damaged.
    """
    with reading(path), np.load(path, allow_pickle=False) as arrays:
        return RidgeModel(**{name: arrays[name] for name in arrays.files})


def _fit(sample: Sample, rows: Int64Array, alphas: Sequence[float]) -> list[RidgeModel]:
    """A model for each alpha, with means and scales of the given rows alone."""
    empty = _standardised(sample.matrix, rows)
    width = len(empty.mean) + len(empty.codes) + 1
    gram, moment = np.zeros((width, width)), np.zeros(width)
    for chunk in chunks(rows):
        design = empty.design(sample.matrix, chunk)
        weighted = design * _weights(sample, chunk)[:, None]
        gram += design.T @ weighted
        moment += weighted.T @ sample.target[chunk]
    models = []
    for alpha in alphas:
        weights = solve_ridge(gram, moment, alpha)
        models.append(RidgeModel(empty.mean, empty.scale, empty.code_columns, empty.codes, weights))
    return models


def _standardised(matrix: Matrix, rows: Int64Array) -> RidgeModel:
    """A model without weights: means, scales and categories of the rows."""
    columns = matrix.values.shape[1]
    mean, scale = np.zeros(columns), np.ones(columns)
    code_columns: list[int] = []
    codes: list[float] = []
    for column in range(columns):
        values = matrix.values[rows, column].astype(np.float64)
        values = values[~np.isnan(values)]
        if column in matrix.categorical:
            known, posts = np.unique(values, return_counts=True)
            found = np.sort(known[np.argsort(-posts, kind="stable")[:MAX_INDICATORS]]).tolist()
            codes += found
            code_columns += [column] * len(found)
        elif len(values):
            mean[column] = values.mean()
            scale[column] = values.std() if values.std() > 1e-6 * max(1.0, abs(mean[column])) else np.inf
    return RidgeModel(mean, scale, np.array(code_columns, dtype=np.float64), np.array(codes), np.empty(0))


def _weights(sample: Sample, rows: Int64Array) -> Float64Array:
    return np.ones(len(rows)) if sample.weight is None else sample.weight[rows]
