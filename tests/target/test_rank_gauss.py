"""Normal scores of the label: there and back, and as stored."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import norm, rankdata

from popularity.target.rank_gauss import MAX_ABS_Z, RankGauss


def labels(n: int = 800) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.round(np.random.default_rng(0).gamma(5, 1.3, n), 2)


def test_none_is_the_label() -> None:
    label = labels()
    transform = RankGauss.fit(label, "none")
    assert transform.apply(label) is label
    assert transform.invert(label) is label


def test_normal_scores_follow_the_rank() -> None:
    label = labels()
    scores = RankGauss.fit(label, "rank_gauss").apply(label)
    expected = norm.ppf((rankdata(label) - 0.5) / len(label))
    inner = np.abs(expected) < 2
    np.testing.assert_allclose(scores[inner], expected[inner], atol=0.05)
    assert np.abs(scores).max() <= MAX_ABS_Z


def test_there_and_back() -> None:
    label = labels()
    transform = RankGauss.fit(label, "rank_gauss")
    middle = (label > np.quantile(label, 0.01)) & (label < np.quantile(label, 0.99))
    np.testing.assert_allclose(transform.invert(transform.apply(label))[middle], label[middle], atol=1e-9)
    assert np.abs(transform.invert(transform.apply(label)) - label).max() < 0.5
    grid = np.linspace(-5, 5, 200)
    assert (np.diff(transform.invert(grid)) >= 0).all()


def test_predictions_end_where_the_train_rows_do() -> None:
    label = labels()
    transform = RankGauss.fit(label, "rank_gauss")
    assert transform.invert(np.array([-50.0, 50.0])).tolist() == [label.min(), label.max()]


def test_no_rows() -> None:
    none = np.empty(0)
    transform = RankGauss.fit(labels(), "rank_gauss")
    assert len(transform.apply(none)) == len(transform.invert(none)) == 0


@pytest.mark.parametrize("n", [1, 2, 7])
def test_few_rows(n: int) -> None:
    label = labels(n)
    transform = RankGauss.fit(label, "rank_gauss")
    assert np.isfinite(transform.apply(label)).all()
    assert (np.abs(transform.invert(transform.apply(label)) - label) < 0.01).all()


@pytest.mark.parametrize("kind", ["none", "rank_gauss"])
def test_stored_transform_is_the_same_to_the_last_bit(kind: str) -> None:
    label = labels()
    transform = RankGauss.fit(label, kind)  # type: ignore[arg-type]
    again = RankGauss.from_json(json.loads(json.dumps(transform.to_json())))
    np.testing.assert_array_equal(transform.apply(label), again.apply(label))
    np.testing.assert_array_equal(transform.invert(label - 5), again.invert(label - 5))
