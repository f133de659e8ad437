"""Cuts in time, weights by age, and the share of a learner in the blend."""

from __future__ import annotations

import numpy as np
import pytest

from popularity.stack.inner import BLENDS, blend, blend_share, inner_cuts, recency_weights, scored_rows
from popularity.stack.target import Target


def test_cuts_fit_on_the_past_of_the_slice_that_they_score() -> None:
    posted_at = np.random.default_rng(0).permutation(100).astype(np.int64)
    cuts = inner_cuts(posted_at, 3, 0.15)
    assert len(cuts) == 3
    for place, (fit, scored) in enumerate(cuts):
        assert sorted(posted_at[scored]) == list(range(85 - 15 * place, 100 - 15 * place))
        assert sorted(posted_at[fit]) == list(range(85 - 15 * place))
    rows = scored_rows(cuts)
    assert len(rows) == len(set(rows.tolist())) == 45
    assert rows.tolist() == [row for _, scored in cuts for row in scored]


def test_no_cut_fits_on_less_than_it_scores() -> None:
    posted_at = np.arange(20, dtype=np.int64)
    assert [len(fit) for fit, _ in inner_cuts(posted_at, 5, 0.25)] == [15, 10, 5]
    assert inner_cuts(posted_at, 5, 0.9) == []
    assert scored_rows([]).tolist() == []


def test_recency_weights_halve_with_the_half_life() -> None:
    day = 86_400_000_000
    posted_at = np.arange(0, 1_000 * day, day, dtype=np.int64)
    weights = recency_weights(posted_at, 100.0)
    assert weights is not None
    assert weights.mean() == pytest.approx(1.0)
    np.testing.assert_allclose(weights[100:900] / weights[:800], 2.0)
    assert recency_weights(posted_at, 0.0) is None


def test_one_post_dated_far_ahead_leaves_the_weights_of_the_others() -> None:
    day = 86_400_000_000
    posted_at = np.arange(0, 1_000 * day, day, dtype=np.int64)
    ahead = posted_at.copy()
    ahead[0] = 30_000 * day
    usual, weights = recency_weights(posted_at, 100.0), recency_weights(ahead, 100.0)
    assert usual is not None
    assert weights is not None
    np.testing.assert_allclose(weights[1:], usual[1:], rtol=0.02)


@pytest.mark.parametrize("kind", ["raw", "normal"])
def test_the_blend_has_the_least_error_of_all_shares(kind: str) -> None:
    rng = np.random.default_rng(3)
    label = rng.gamma(4, 1.5, 300)
    target = Target.fit(label, kind)  # type: ignore[arg-type]
    truth = target.apply(label)
    first, second = truth + rng.normal(0, 0.4, 300), truth + rng.normal(0, 0.6, 300)
    share = blend_share(first, second, label, target)
    errors = {mine: np.abs(target.invert(mine * first + (1 - mine) * second) - label).mean() for mine in BLENDS}
    assert errors[share] == min(errors.values())
    assert 0.5 < share < 1
    assert blend_share(second, first, label, target) == pytest.approx(1 - share, abs=0.011)


def test_the_blend_is_convex() -> None:
    label = np.linspace(0, 5, 40)
    target = Target.fit(label, "raw")
    noise = np.random.default_rng(0).normal(size=40)
    assert blend_share(label, label + noise, label, target) == 1.0
    assert blend_share(label + noise, label, label, target) == 0.0
    # Half way to the negative of the error would be exact, but is no mean of the two.
    assert blend_share(label + 1, label + 2, label, target) == 1.0
    assert blend_share(label + noise, label + noise, label, target) == 1.0
    assert blend(np.zeros(2), np.ones(2), 0.25).tolist() == [0.75, 0.75]


def test_without_a_row_to_judge_by_both_count_alike() -> None:
    none = np.empty(0)
    assert blend_share(none, none, none, Target("raw", None)) == 0.5
