"""The expected size of the error: what it follows, where it ends, as stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from popularity.stack.columns import MatrixColumn, metadata_columns
from popularity.stack.error_scale import MIN_RELATIVE_SCALE, MIN_SCALE, ErrorScale
from popularity.stack.matrix import Matrix

Floats = npt.NDArray[np.float64]
N = 900
ROWS = np.arange(100, N)
COMPONENT = MatrixColumn("image_component_000", "image", "component", None, fitted_on_labels=False)


def problem() -> tuple[Matrix, Floats, Floats]:
    """A matrix whose first metadata column says how noisy a label is, predictions of ROWS, and labels."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(N, 4)).astype(np.float32)
    values[:, 0] = rng.integers(3, size=N)
    (category, noise, other) = (
        *metadata_columns(["category"], "category"),
        *metadata_columns(["noise", "other"], "number"),
    )
    expected = rng.uniform(2, 9, N)
    label = expected + rng.normal(size=N) * np.where(values[:, 1] > 0, 2.0, 0.3)
    return (
        Matrix(values, [f"{row:04d}" for row in range(N)], (category, noise, COMPONENT, other)),
        expected[ROWS],
        label,
    )


def fitted() -> tuple[ErrorScale, Matrix, Floats]:
    matrix, prediction, label = problem()
    return ErrorScale.fit(matrix, ROWS, prediction, label, seed=1, num_threads=1), matrix, np.full(N, 5.0)


def test_scale_is_the_expected_size_of_the_error() -> None:
    model, matrix, prediction = fitted()
    scale = model.predict(matrix, prediction)
    noisy = matrix.values[:, 1] > 0
    mean = (2 / np.pi) ** 0.5  # of |a standard normal draw|
    assert abs(scale[noisy].mean() / (2.0 * mean) - 1) < 0.2
    assert abs(scale[~noisy].mean() / (0.3 * mean) - 1) < 0.6
    assert scale[noisy].min() > scale[~noisy].max()


def test_columns_of_dense_blocks_and_labels_of_other_rows_are_not_read() -> None:
    model, matrix, prediction = fitted()
    scale = model.predict(matrix, prediction)
    _, out_of_fold, label = problem()
    label[:100] = 77.0
    matrix.values[:, 2] = -9
    again = ErrorScale.fit(matrix, ROWS, out_of_fold, label, seed=1, num_threads=1)
    np.testing.assert_array_equal(again.predict(matrix, prediction), scale)


def test_scale_stays_away_from_zero() -> None:
    matrix, prediction, label = problem()
    sure = np.where(matrix.values[ROWS, 1] > 0, prediction, label[ROWS])  # half of the rows without any error
    model = ErrorScale.fit(matrix, ROWS, sure, label, seed=1, num_threads=1)
    scale = model.predict(matrix, np.full(N, 5.0))
    assert scale.min() == MIN_RELATIVE_SCALE * model.mean
    exact = ErrorScale.fit(matrix, ROWS, label[ROWS], label, seed=1, num_threads=1)
    assert exact.predict(matrix, np.full(N, 5.0)).tolist() == [MIN_SCALE] * N


def test_without_inner_cuts_the_scale_is_the_same_for_all() -> None:
    matrix, _, label = problem()
    model = ErrorScale.fit(matrix, np.empty(0, dtype=np.int64), np.empty(0), label, seed=1, num_threads=1)
    mean = float(np.abs(label - np.median(label)).mean())
    assert model.predict(matrix, label).tolist() == [mean] * N


def test_few_rows_and_no_metadata() -> None:
    matrix, prediction, label = problem()
    few = ErrorScale.fit(matrix, ROWS[:3], prediction[:3], label, seed=1, num_threads=1)
    assert (few.predict(matrix, np.full(N, 5.0)) > 0).all()
    dense = Matrix(matrix.values[:, 1:2], matrix.pids, (COMPONENT,))
    alone = ErrorScale.fit(dense, ROWS, prediction, label, seed=1, num_threads=1)
    assert alone.predict(dense, label).shape == (N,)


def test_stored_scale_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    model, matrix, prediction = fitted()
    for name, one in (("trees", model), ("constant", ErrorScale(None, 0.7))):
        folder = tmp_path / name
        folder.mkdir()
        one.save(folder)
        again = ErrorScale.load(folder)
        np.testing.assert_array_equal(again.predict(matrix, prediction), one.predict(matrix, prediction))
