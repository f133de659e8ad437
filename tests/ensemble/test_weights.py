"""Ensemble weights of learners."""

from __future__ import annotations

import json

import numpy as np
import pytest

from popularity.ensemble.weights import EnsembleWeights, fit_weights, weight_grid
from popularity.target.rank_gauss import RankGauss

UNCHANGED = RankGauss("none", None)


def problem(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Three learners: good; less good and on another scale; noise. And labels with a long tail."""
    rng = np.random.default_rng(3)
    label = rng.gamma(2, 1.5, n)
    good, other = np.log(label) + rng.normal(0, 0.4, n), np.log(label) + rng.normal(0, 0.6, n)
    return np.stack([np.exp(good), np.exp(3 * other), rng.gamma(2, 1.5, n)]), label


def fit(each: np.ndarray, label: np.ndarray, *, centred: bool = False) -> EnsembleWeights:
    return fit_weights(each, label, UNCHANGED, centred=centred)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_grid_has_all_weights_in_twentieths(count: int) -> None:
    found = weight_grid(count)
    assert len(found) == {1: 1, 2: 21, 3: 231}[count]
    assert len({tuple(weights) for weights in found}) == len(found)
    for weights in found:
        assert weights.min() >= 0
        assert weights.sum() == pytest.approx(1.0)
    assert found[0].tolist() == [1.0] + [0.0] * (count - 1)


@pytest.mark.parametrize("kind", ["none", "rank_gauss"])
def test_the_mean_has_the_least_error_of_all_weights(kind: str) -> None:
    each, label = problem()
    transform = RankGauss.fit(label, kind)  # type: ignore[arg-type]
    each = np.stack([transform.apply(row) for row in each])
    fitted = fit_weights(each, label, transform, centred=False)
    errors = [np.abs(transform.invert(weights @ each) - label).mean() for weights in weight_grid(3)]
    assert np.abs(transform.invert(fitted.apply(each)) - label).mean() == min(errors)
    assert fitted.weights[0] > 0.5 > fitted.weights[2]


def test_an_error_that_all_share_does_not_count_where_it_is_shifted() -> None:
    rng = np.random.default_rng(0)
    label = rng.normal(size=300)
    each = np.stack([label + 2 + rng.normal(0, 0.1, 300), label + rng.normal(0, 1, 300)])
    assert fit(each, label).weights[1] > 0.5
    assert fit(each, label, centred=True).weights[0] > 0.9


def test_of_equals_the_first_and_without_rows_equal_weights() -> None:
    label = np.linspace(0, 5, 40)
    same = np.stack([label + 0.3] * 3)
    assert fit(same, label).weights.tolist() == [1.0, 0.0, 0.0]
    nothing = fit_weights(np.empty((3, 0)), np.empty(0), UNCHANGED, centred=True)
    assert nothing.weights.tolist() == [1 / 3] * 3


def test_one_learner_is_itself() -> None:
    each, label = problem()
    np.testing.assert_array_equal(fit(each[:1], label).apply(each[:1]), each[0])


def test_stored_and_read_it_gives_the_same_bits() -> None:
    each, label = problem()
    weights_of_three = fit(each, label)
    again = EnsembleWeights.from_json(json.loads(json.dumps(weights_of_three.to_json())))
    np.testing.assert_array_equal(again.apply(each), weights_of_three.apply(each))
