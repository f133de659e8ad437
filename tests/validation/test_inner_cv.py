"""Splits of the inner CV, and sample weights by age."""

from __future__ import annotations

import numpy as np
import pytest

from popularity.stack.sample import recency_sample_weight
from popularity.validation.inner_cv import InnerCvParams, inner_splits, valid_rows


def test_train_rows_are_the_past_of_the_valid_slice() -> None:
    posted_at = np.random.default_rng(0).permutation(100).astype(np.int64)
    splits = inner_splits(posted_at, InnerCvParams(3, 0.15))
    assert len(splits) == 3
    for index, (train, valid) in enumerate(splits):
        assert sorted(posted_at[valid]) == list(range(85 - 15 * index, 100 - 15 * index))
        assert sorted(posted_at[train]) == list(range(85 - 15 * index))
    rows = valid_rows(splits)
    assert len(rows) == len(set(rows.tolist())) == 45
    assert rows.tolist() == [row for _, valid in splits for row in valid]


def test_no_split_has_fewer_train_than_valid_rows() -> None:
    posted_at = np.arange(20, dtype=np.int64)
    assert [len(train) for train, _ in inner_splits(posted_at, InnerCvParams(5, 0.25))] == [15, 10, 5]
    assert inner_splits(posted_at, InnerCvParams(5, 0.9)) == []
    assert valid_rows([]).tolist() == []


def test_recency_weights_halve_with_the_half_life() -> None:
    day = 86_400_000_000
    posted_at = np.arange(0, 1_000 * day, day, dtype=np.int64)
    weights = recency_sample_weight(posted_at, 100.0)
    assert weights is not None
    assert weights.mean() == pytest.approx(1.0)
    np.testing.assert_allclose(weights[100:900] / weights[:800], 2.0)
    assert recency_sample_weight(posted_at, 0.0) is None


def test_one_post_dated_far_ahead_leaves_the_weights_of_the_others() -> None:
    day = 86_400_000_000
    posted_at = np.arange(0, 1_000 * day, day, dtype=np.int64)
    ahead = posted_at.copy()
    ahead[0] = 30_000 * day
    usual, weights = recency_sample_weight(posted_at, 100.0), recency_sample_weight(ahead, 100.0)
    assert usual is not None
    assert weights is not None
    np.testing.assert_allclose(weights[1:], usual[1:], rtol=0.02)
