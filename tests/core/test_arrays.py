"""Row normalisation and rounding, which several stages share."""

from __future__ import annotations

import numpy as np

from popularity.core.arrays import normalize_rows, rounded


def test_rows_have_length_one_and_zero_stays_zero() -> None:
    vectors = np.array([[[3.0, 4.0], [0.0, 0.0]], [[0.0, -2.0], [1e-100, 0.0]]])
    np.testing.assert_array_equal(normalize_rows(vectors), [[[0.6, 0.8], [0, 0]], [[0, -1], [1, 0]]])
    assert normalize_rows(np.zeros((0, 3), np.float32)).shape == (0, 3)


def test_precision_is_that_of_the_vectors_or_the_given_one() -> None:
    half = np.array([[3, 4]], np.float16)
    assert normalize_rows(half).dtype == np.float16
    single = normalize_rows(half, dtype=np.float32)
    assert single.dtype == np.float32
    np.testing.assert_array_equal(single, np.array([[3, 4]], np.float32) / np.float32(5))


def test_short_rows_stay_short_under_a_least_norm() -> None:
    found = normalize_rows(np.array([[0.5, 0.0], [4.0, 0.0], [0.0, 0.0]]), min_norm=1.0)
    np.testing.assert_array_equal(found, [[0.5, 0], [1, 0], [0, 0]])


def test_rounded() -> None:
    assert rounded(None, 3) is None
    assert rounded(np.float32(0.5), 3) == 0.5
    assert str(rounded(-1e-9, 6)) == "0.0"
