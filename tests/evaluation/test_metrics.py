from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata

from popularity.core.metrics import METRICS, loss_of_scores, relative_error, score, selection_loss, spearman


def test_spearman_takes_average_ranks() -> None:
    labels = np.array([1.0, 2.0, 2.0, 4.0])
    predictions = np.array([1.0, 3.0, 2.0, 4.0])
    # Ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4: covariance 4.5, variances 4.5 and 5.
    assert spearman(labels, predictions) == pytest.approx(4.5 / np.sqrt(4.5 * 5))


def test_spearman_is_pearson_of_ranks_on_tied_data() -> None:
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 9, 200).astype(float), rng.integers(0, 5, 200).astype(float)
    expected = np.corrcoef(rankdata(labels), rankdata(predictions))[0, 1]
    assert spearman(labels, predictions) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("predictions", [[3.0, 3.0, 3.0], [7.0]])
def test_spearman_of_a_constant_is_undefined(predictions: list[float]) -> None:
    labels = np.arange(len(predictions), dtype=float)
    assert spearman(labels, np.array(predictions)) is None
    assert spearman(np.array(predictions), labels) is None


def test_values_by_hand() -> None:
    result = score(np.array([2.0, 4.0, 5.0]), np.array([3.0, 4.0, 3.0]))
    assert list(result) == list(METRICS)
    assert result["mae"] == pytest.approx(1.0)
    assert result["mape"] == pytest.approx((1 / 2 + 0 + 2 / 5) / 3)
    assert result["bias"] == pytest.approx(-1 / 3)


def test_mape_is_undefined_with_a_zero_label() -> None:
    assert score(np.array([0.0, 4.0]), np.array([1.0, 4.0]))["mape"] is None


def test_relative_error_is_the_error_itself_where_the_constant_has_none() -> None:
    assert relative_error([1.0, 3.0, 2.0], [2.0, 0.0, 4.0]).tolist() == [0.5, 3.0, 0.5]
    assert float(relative_error(1.0, 4.0)) == 0.25


def test_the_selection_loss_by_hand() -> None:
    label, prediction = np.array([1.0, 2.0, 6.0]), np.array([2.0, 1.0, 4.0])
    # Errors 1, 1, 2 and, of the baseline 2, 1, 0, 4: 4 / 5. Ranks 1, 2, 3 against 2, 1, 3: 1 - 6 * 2 / 24.
    assert selection_loss(label, prediction, 2.0) == pytest.approx(4 / 5 - 0.5)
    assert selection_loss(label, prediction, np.full(3, 2.0)) == selection_loss(label, prediction, 2.0)
    assert loss_of_scores([4 / 3, 4 / 3], [5 / 3, 0.0], [0.5, 0.5]) == pytest.approx([0.3, 4 / 3 - 0.5])
    # Without an order there is no SRC, and the baseline has its own MAE.
    assert selection_loss(label, np.full(3, 2.0), 2.0) == 1.0
    # A baseline without an error leaves the MAE as it is: (1 + 0 + 0) / 3, and SRC 0 for equal labels.
    assert selection_loss(np.full(3, 5.0), np.array([4.0, 5.0, 5.0]), 5.0) == pytest.approx(1 / 3)
