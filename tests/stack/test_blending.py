"""Weights of learners for the level and for the order."""

from __future__ import annotations

import json

import numpy as np
import pytest

from popularity.evaluation.metrics import spearman
from popularity.stack.blending import Blend, BlendKind, Order, candidates
from popularity.stack.target import Target

RAW = Target("raw", None)


def problem(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Three learners: good; less good and on another scale; noise. And labels with a long tail."""
    rng = np.random.default_rng(3)
    label = rng.gamma(2, 1.5, n)
    good, other = np.log(label) + rng.normal(0, 0.4, n), np.log(label) + rng.normal(0, 0.6, n)
    return np.stack([np.exp(good), np.exp(3 * other), rng.gamma(2, 1.5, n)]), label


def fit(each: np.ndarray, label: np.ndarray, kind: BlendKind = "mean", *, centred: bool = False) -> Blend:
    half = len(label) // 2
    return Blend.fit(each, label, [half, len(label) - half], RAW, kind, centred=centred)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_candidates_are_all_weights_in_twentieths(count: int) -> None:
    found = candidates(count)
    assert len(found) == {1: 1, 2: 21, 3: 231}[count]
    assert len({tuple(weights) for weights in found}) == len(found)
    for weights in found:
        assert weights.min() >= 0
        assert weights.sum() == pytest.approx(1.0)
    assert found[0].tolist() == [1.0] + [0.0] * (count - 1)


@pytest.mark.parametrize("kind", ["raw", "normal"])
def test_the_mean_has_the_least_error_of_all_weights(kind: str) -> None:
    each, label = problem()
    target = Target.fit(label, kind)  # type: ignore[arg-type]
    each = np.stack([target.apply(row) for row in each])
    truth = Blend.fit(each, label, [200, 200], target, "mean", centred=False)
    errors = [np.abs(target.invert(weights @ each) - label).mean() for weights in candidates(3)]
    assert np.abs(target.invert(truth.apply(each)) - label).mean() == min(errors)
    assert truth.weights[0] > 0.5 > truth.weights[2]


def test_an_error_that_all_share_does_not_count_where_it_is_shifted() -> None:
    rng = np.random.default_rng(0)
    label = rng.normal(size=300)
    each = np.stack([label + 2 + rng.normal(0, 0.1, 300), label + rng.normal(0, 1, 300)])
    assert fit(each, label).weights[1] > 0.5
    assert fit(each, label, centred=True).weights[0] > 0.9


def test_of_equals_the_first_and_without_rows_all_alike() -> None:
    label = np.linspace(0, 5, 40)
    same = np.stack([label + 0.3] * 3)
    assert fit(same, label).weights.tolist() == [1.0, 0.0, 0.0]
    nothing = Blend.fit(np.empty((3, 0)), np.empty(0), [], RAW, "rank", centred=True)
    assert nothing.weights.tolist() == [1 / 3] * 3
    assert nothing.order is None


@pytest.mark.parametrize("kind", ["mean", "rank"])
def test_one_learner_is_itself(kind: BlendKind) -> None:
    each, label = problem()
    np.testing.assert_array_equal(fit(each[:1], label, kind).apply(each[:1]), each[0])


def test_ranks_take_the_order_and_leave_the_level() -> None:
    each, label = problem()
    mean, rank = fit(each, label), fit(each, label, "rank")
    np.testing.assert_array_equal(mean.weights, rank.weights)
    assert rank.order is not None
    before, after = mean.apply(each), rank.apply(each)
    assert (spearman(label, after) or 0) > (spearman(label, before) or 0)
    np.testing.assert_allclose(np.sort(after)[5:], np.sort(before)[5:], rtol=0.1)
    assert rank.order.weights[1] > rank.weights[1]  # its odd scale matters no more
    # What is blended is the rank: a monotone change of a learner's scale leaves the order as it is.
    bent = fit(np.stack([each[0], np.log(each[1]), each[2]]), label, "rank")
    assert bent.order is not None
    assert (spearman(bent.apply(np.stack([each[0], np.log(each[1]), each[2]])), after) or 0) > 0.999


def test_a_post_is_placed_without_the_posts_beside_it() -> None:
    each, label = problem()
    blend = fit(each, label, "rank")
    new = problem(50)[0]
    together = blend.apply(new)
    np.testing.assert_allclose([blend.apply(new[:, [row]])[0] for row in range(50)], together)


def test_beyond_the_landmarks_the_order_goes_on() -> None:
    line = np.linspace(1, 2, 100)
    order = Order.of(np.stack([line, line]), line, np.array([0.5, 0.5]))
    asked = np.array([0.0, 0.9, 1.5, 2.1, 9.0])
    np.testing.assert_allclose(order.apply(np.stack([asked, asked])), asked, atol=1e-9)


@pytest.mark.parametrize("kind", ["mean", "rank"])
def test_stored_and_read_it_gives_the_same_bits(kind: BlendKind) -> None:
    each, label = problem()
    blend = fit(each, label, kind)
    again = Blend.from_json(json.loads(json.dumps(blend.to_json())))
    np.testing.assert_array_equal(again.apply(each), blend.apply(each))


def test_the_order_is_judged_within_each_cut() -> None:
    """A learner that only tells the cuts apart says nothing of the order in one."""
    rng = np.random.default_rng(1)
    cut = np.repeat([0.0, 50.0], 100)
    label = cut + rng.normal(size=200)
    each = np.stack([cut + rng.normal(0, 0.01, 200), label - cut + rng.normal(0, 0.5, 200)])
    apart, together = (Order.fit(each, each.mean(axis=0), label, sizes) for sizes in ([100, 100], [200]))
    assert apart.weights[1] >= 0.8 > together.weights[1]
