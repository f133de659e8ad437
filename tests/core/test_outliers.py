"""A label far from all others counts as a nearer one; labels that belong together stay to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from popularity.core.outliers import clipped_labels


@pytest.mark.parametrize("absurd", [40.0, 400.0, -30.0])
@pytest.mark.parametrize("n", [3, 20, 2000])
def test_one_absurd_label_comes_nearer(n: int, absurd: float) -> None:
    label = np.random.default_rng(0).uniform(5, 10, n)
    wrong = np.append(label, absurd)
    found = clipped_labels(wrong)
    np.testing.assert_array_equal(found[:-1], label)
    assert 3 < found[-1] < 12


@pytest.mark.parametrize(
    "label",
    [
        np.random.default_rng(1).normal(7, 2, 20_000),
        np.random.default_rng(2).exponential(1.2, 3000),
        np.where(np.arange(1000) % 20 == 0, 8.0, 0.0),  # few posts with views at all
        np.full(50, 6.0),
        np.array([2.0, 40.0]),
        np.empty(0),
    ],
    ids=["normal", "skewed", "mostly zero", "constant", "two", "none"],
)
def test_other_labels_stay(label: np.ndarray) -> None:
    np.testing.assert_array_equal(clipped_labels(label), label)
