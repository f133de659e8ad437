"""What the coverage benchmark calls inside and outside."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from benchmarks.coverage import (
    INFINITE,
    INSIDE,
    LESS,
    MORE,
    Group,
    Measured,
    binomial_interval,
    clustered_variance,
    coverage_at,
    verdict,
)
from popularity.evaluation.intervals import calibrate

HITS = np.array([1.0] * 73 + [0.0] * 27)


def names(count: int, posts: int = 1) -> np.ndarray[tuple[int], np.dtype[np.str_]]:
    return np.repeat([f"user {user}" for user in range(count)], posts)


def test_one_post_a_user_is_the_exact_binomial_interval() -> None:
    variance = clustered_variance(HITS, names(100))
    assert variance == pytest.approx(0.73 * 0.27 / 99)
    exact = binomtest(73, 100).proportion_ci(0.95, method="exact")
    assert binomial_interval(0.73, variance, 100, 0.95) == pytest.approx((exact.low, exact.high), abs=0.001)


def test_posts_that_always_agree_count_as_one() -> None:
    variance = clustered_variance(np.repeat(HITS, 4), names(100, 4))
    assert variance == pytest.approx(clustered_variance(HITS, names(100)))
    mixed = clustered_variance(np.tile(HITS, 4), np.tile(names(100), 4))  # the same posts in another order
    assert mixed == pytest.approx(variance)


def test_all_or_none_inside() -> None:
    assert binomial_interval(1.0, 0.0, 50, 0.95) == pytest.approx((0.025 ** (1 / 50), 1.0))
    assert binomial_interval(1.0, 0.01, 50, 0.95) == binomial_interval(1.0, 0.0, 50, 0.95)
    assert binomial_interval(0.0, 0.0, 50, 0.95) == pytest.approx((0.0, 1 - 0.025 ** (1 / 50)))


def test_verdicts() -> None:
    assert [verdict(0.8, *bounds) for bounds in ((0.7, 0.9), (0.5, 0.79), (0.81, 0.9))] == [INSIDE, LESS, MORE]


def part(rng: np.random.Generator, calibrating: int, noise: float, shift: float) -> Measured:
    """Labels of standard error `noise` around the predictions; the test part's miss the level by `shift`."""
    calibrated = Group(np.abs(rng.normal(0, noise, calibrating)), np.full(calibrating, noise), names(calibrating))
    test = Group(np.abs(rng.normal(shift, noise, 400)), np.full(400, noise), names(200, 2))
    calibration = calibrate(calibrated.error, np.zeros(calibrating), calibrated.scale)
    return Measured(calibration, calibrated, {"any": test})


def test_a_drift_is_found_and_its_absence_too() -> None:
    rng = np.random.default_rng(0)
    same = coverage_at(0.8, [part(rng, 300, 1.0, 0.0), part(rng, 300, 2.0, 0.0)], "any", 0.95)
    assert same["posts"] == 800
    assert same["users"] == 400  # of two data sets: equal names are different people
    assert same["verdict, both"] == INSIDE
    assert same["low, both"] < same["low"] < same["coverage"] < same["high"] < same["high, both"]
    assert same["width"] == pytest.approx(2 * 1.28 * 1.5, rel=0.1)
    drifted = coverage_at(0.8, [part(rng, 300, 1.0, 1.5)], "any", 0.95)
    assert (drifted["verdict"], drifted["verdict, both"]) == (LESS, LESS)


def test_an_infinite_interval_has_no_coverage() -> None:
    rng = np.random.default_rng(0)
    row = coverage_at(0.9, [part(rng, 300, 1.0, 0.0), part(rng, 5, 1.0, 0.0)], "any", 0.95)
    assert row == {"posts": 800, "users": 400, "verdict": INFINITE, "verdict, both": INFINITE}
