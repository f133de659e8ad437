"""Greedy weights of members by their predictions of the forward splits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from popularity.core.arrays import Float64Array
from popularity.core.metrics import selection_loss
from popularity.ensemble import greedy
from popularity.ensemble.greedy import OutOfFold, greedy_weights, shrunk


def table(predictions: dict[str, Float64Array], label: Float64Array, splits: int = 2) -> OutOfFold:
    """Rows of as many posts by each of 40 users, in splits of the same size."""
    n = len(label)
    return OutOfFold(
        names=list(predictions),
        fold=np.arange(n) * splits // n,
        label=label,
        user=np.arange(n) % 40,
        baseline=np.full(n, float(np.median(label))),
        prediction=np.column_stack(list(predictions.values())),
    )


@pytest.fixture
def noisy() -> OutOfFold:
    """Two equally good members with independent errors, and one that knows nothing."""
    rng = np.random.default_rng(1)
    label = rng.normal(6, 2, 400)
    one, two = (label + rng.normal(0, 1, 400) for _ in range(2))
    return table({"one": one, "two": two, "noise": rng.normal(6, 2, 400)}, label)


def test_members_of_independent_errors_share_the_weight_and_noise_has_none(noisy: OutOfFold) -> None:
    weights = greedy_weights(noisy, seed=0)
    assert weights.sum() == pytest.approx(1)
    assert (weights[:2] > 0.3).all()
    assert weights[2] < 0.1
    assert noisy.losses(weights).mean() < noisy.losses_of_members().min()
    np.testing.assert_array_equal(weights, greedy_weights(noisy, seed=0))


def test_a_copy_changes_no_prediction_and_one_member_has_all_the_weight(noisy: OutOfFold) -> None:
    copied = replace(noisy, names=["one", "copy"], prediction=noisy.prediction[:, [0, 0]])
    np.testing.assert_allclose(copied.prediction @ greedy_weights(copied, seed=0), noisy.prediction[:, 0])
    assert greedy_weights(noisy.members([2]), seed=0).tolist() == [1.0]


def test_without_a_row_the_weights_are_equal(noisy: OutOfFold) -> None:
    empty = replace(
        noisy,
        **{name: getattr(noisy, name)[:0] for name in ("fold", "label", "user", "baseline", "prediction")},
    )
    assert greedy_weights(empty, seed=0).tolist() == pytest.approx([1 / 3] * 3)


def test_shrinkage_goes_from_the_weights_to_equal_ones() -> None:
    weights = np.array([1.0, 0.0, 0.0, 0.0])
    assert shrunk(weights, 0.0).tolist() == [1, 0, 0, 0]
    assert shrunk(weights, 1.0).tolist() == [0.25] * 4
    assert shrunk(weights, 0.4).tolist() == pytest.approx([0.7, 0.1, 0.1, 0.1])


def test_losses_are_those_of_the_selection_loss_split_by_split(noisy: OutOfFold) -> None:
    weights = np.array([0.5, 0.25, 0.25])
    mean = noisy.prediction @ weights
    expected = [
        selection_loss(noisy.label[rows], mean[rows], noisy.baseline[rows])
        for rows in (np.arange(200), np.arange(200, 400))
    ]
    assert noisy.losses(weights).tolist() == pytest.approx(expected)
    assert noisy.only(1).losses(weights).tolist() == pytest.approx(expected[1:])
    assert noisy.without(1).folds == [0]
    assert noisy.without(1).without(0).folds == [0]  # a single split keeps its rows
    inside = greedy._Split.of(noisy, np.arange(200))
    assert inside.loss(mean[:200]) == pytest.approx(expected[0])


def test_equal_labels_or_predictions_have_no_order(noisy: OutOfFold) -> None:
    flat = replace(noisy, prediction=np.full((400, 3), 5.0), label=np.full(400, 5.0), baseline=np.full(400, 5.0))
    assert greedy_weights(flat, seed=0).tolist() == [1.0, 0.0, 0.0]  # of equals the first


def test_large_splits_are_sampled(noisy: OutOfFold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greedy, "MAX_ROWS", 50)
    rows = greedy._bag(noisy, np.random.default_rng(0))
    assert [len(own) for own in rows] == [50, 50]
    assert all((noisy.fold[own] == fold).all() for fold, own in enumerate(rows))
    assert (greedy_weights(noisy, seed=0)[:2] > 0.2).all()
