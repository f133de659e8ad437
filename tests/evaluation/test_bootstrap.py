from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from popularity.core.arrays import Float64Array
from popularity.core.metrics import score
from popularity.evaluation import bootstrap
from popularity.evaluation.bootstrap import interval, resample, resample_means
from tests.work import work_of


def _data(
    n: int, users: int, seed: int = 0
) -> tuple[Float64Array, Float64Array, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Labels with ties, two models with ties, users of unequal size."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, 12, n).astype(float)
    predictions = np.stack([labels + rng.integers(-3, 4, n), rng.integers(0, 12, n).astype(float)], axis=1)
    return labels, predictions, np.concatenate([np.arange(users), rng.integers(users, size=n - users)])


def test_each_draw_is_scored_as_if_its_rows_were_written_out() -> None:
    labels, predictions, users = _data(60, 12)
    draws = resample(labels, predictions, users, resamples=20, seed=3)
    rng = np.random.default_rng(3)
    chosen = rng.integers(12, size=(20, 12))
    for draw in range(20):
        rows = np.concatenate([np.flatnonzero(users == user) for user in chosen[draw]])
        for model in range(2):
            for metric, value in score(labels[rows], predictions[rows, model]).items():
                assert draws[metric][draw, model] == pytest.approx(value, abs=1e-12), metric


def test_a_draw_of_users_is_scored_in_every_fold_and_the_scores_are_averaged() -> None:
    """The same users are drawn for all folds; a fold without a drawn post leaves no score."""
    labels, predictions, users = _data(60, 12)
    folds = np.sort(np.random.default_rng(0).integers(3, size=60))
    draws = resample(labels, predictions, users, resamples=20, seed=3, folds=folds)
    chosen = np.random.default_rng(3).integers(12, size=(20, 12))
    for draw in range(20):
        rows = np.concatenate([np.flatnonzero(users == user) for user in chosen[draw]])
        each = [score(labels[own], predictions[own, 1]) for fold in range(3) for own in [rows[folds[rows] == fold]]]
        for metric in each[0]:
            expected = np.mean([found[metric] for found in each])
            assert draws[metric][draw, 1] == pytest.approx(expected, abs=1e-12), metric
    single = np.array([*np.zeros(59), 1], dtype=np.int64)
    undefined = np.isnan(resample(labels, predictions, users, resamples=20, seed=3, folds=single)["mae"][:, 0])
    assert undefined.tolist() == [users[-1] not in chosen[draw] for draw in range(20)]
    assert 0 < undefined.sum() < 20


def test_one_fold_is_none() -> None:
    labels, predictions, users = _data(60, 12)
    once = resample(labels, predictions, users, resamples=20, seed=3)
    same = resample(labels, predictions, users, resamples=20, seed=3, folds=np.full(60, 2))
    assert all(np.array_equal(once[metric], same[metric]) for metric in once)


def test_means_are_drawn_as_scores_are(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, predictions, users = _data(60, 12)
    bias = resample(labels, predictions, users, resamples=20, seed=3)["bias"][:, 0]
    errors = predictions[:, 0] - labels
    np.testing.assert_allclose(resample_means(errors, users, resamples=20, seed=3), bias, atol=1e-12)
    monkeypatch.setattr(bootstrap, "MAX_CELLS", 60 * 7)
    np.testing.assert_allclose(resample_means(errors, users, resamples=20, seed=3), bias, atol=1e-12)


def test_seeded_and_independent_of_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, predictions, users = _data(80, 15)
    once = resample(labels, predictions, users, resamples=50, seed=1)
    again = resample(labels, predictions, users, resamples=50, seed=1)
    other = resample(labels, predictions, users, resamples=50, seed=2)
    assert all(np.array_equal(once[metric], again[metric]) for metric in once)
    assert not np.array_equal(once["src"], other["src"])
    monkeypatch.setattr(bootstrap, "MAX_CELLS", 80 * 7)
    blocks = resample(labels, predictions, users, resamples=50, seed=1)
    assert all(np.allclose(once[metric], blocks[metric], atol=1e-12, rtol=0) for metric in once)


def test_paired_differences_are_antisymmetric_and_zero_for_the_same_model() -> None:
    labels, predictions, users = _data(80, 15)
    draws = resample(labels, predictions[:, [0, 1, 0]], users, resamples=200, seed=0)["src"]
    forward, backward = interval(draws[:, 0] - draws[:, 1], 0.9), interval(draws[:, 1] - draws[:, 0], 0.9)
    assert forward[0] is not None
    assert forward[1] is not None
    assert backward == pytest.approx((-forward[1], -forward[0]))
    assert interval(draws[:, 0] - draws[:, 2], 0.9) == (0.0, 0.0)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """200 samples of 60 users whose errors share a user part: the 90 % interval of MAE must hold its mean."""
    truth, hits = 1.0, 0
    for sample in range(200):
        rng = np.random.default_rng(sample)
        users = np.repeat(np.arange(60), 4)
        size = np.repeat(rng.exponential(truth, 60), 4)  # absolute error, equal within a user
        labels = rng.uniform(1, 9, 240)
        draws = resample(labels, (labels + size)[:, None], users, resamples=200, seed=sample)
        low, high = interval(draws["mae"][:, 0], 0.9)
        assert low is not None
        assert high is not None
        hits += low <= truth <= high
    # Binomial(200, .9) has sd .021; drawing posts instead of users would cover about .6.
    assert 0.82 <= hits / 200 <= 0.96


def test_a_constant_model_has_no_rank_interval() -> None:
    labels, predictions, users = _data(40, 8)
    predictions[:, 1] = 5.0
    draws = resample(labels, predictions, users, resamples=30, seed=0)
    assert interval(draws["src"][:, 1], 0.95) == (None, None)
    assert interval(draws["mae"][:, 1], 0.95) != (None, None)


def test_a_draw_loops_over_no_posts_and_keeps_none() -> None:
    """Ten times the posts: the same calls a draw, and memory in proportion to the posts alone."""
    few, many = (_data(posts, posts // 7) for posts in (700, 7_000))
    one, ten = (work_of(partial(resample, *data, resamples=50, seed=0)) for data in (few, many))
    assert ten.calls < 1.1 * one.calls
    assert ten.peak < 15 * one.peak
