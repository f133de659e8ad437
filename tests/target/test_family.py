"""The family: which member follows which drift, exposures that are held, and posts that are read at another time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest

from popularity.core.arrays import Float64Array, Int64Array
from popularity.target.family import CLASSES, EXPOSURES, Exposure, Family, Level
from popularity.target.line import Line
from popularity.target.trend import Trend, inner_trends
from popularity.validation.inner_cv import InnerCvParams, inner_splits

DAY = 86_400_000_000
COLLECTED_AT = 1000.0  # day; train rows end on day 625, so that the collection is 60 % of their span ahead
AHEAD = (700.0, 780.0, 860.0, 940.0)
Drift = Callable[[Float64Array], Float64Array]


def accumulating(days: Float64Array) -> Float64Array:
    """Each post gains as many views a day, until the day of collection."""
    label: Float64Array = np.log2(np.maximum(COLLECTED_AT - days, 0) + 5)
    return label


def constant(days: Float64Array) -> Float64Array:
    return np.full(len(days), 6.0)


def falling(days: Float64Array) -> Float64Array:
    return 9 - 0.008 * days


def stopped(days: Float64Array) -> Float64Array:
    """A fall by 4 that ends in the middle of the train rows."""
    return 9 - 4 * np.minimum(days / 312, 1)


def at(*days: float) -> Int64Array:
    return (np.array(days) * DAY).astype(np.int64)


def posts(drift: Drift, n: int = 2000, noise: float = 1.5, seed: int = 0) -> tuple[Int64Array, Float64Array]:
    rng = np.random.default_rng(seed)
    days = rng.uniform(0, 625, n)
    return at(*days), drift(days) + rng.normal(0, noise, n)


def fitted(drift: Drift, seed: int = 0) -> Family:
    return Family.fit(*posts(drift, seed=seed), COLLECTED_AT)


def coefficients(family: Family) -> list[float]:
    return [one.coefficient for name in EXPOSURES if isinstance(one := family.members[name], Exposure)]


def miss(drift: Drift, found: Float64Array) -> float:
    """Mean error at the dates AHEAD; positive where the forecast is too high."""
    return float((found - drift(np.array(AHEAD))).mean())


def test_counts_that_accumulate_until_one_day_are_followed() -> None:
    """On the mean over five draws: a line misses the last days, the least margin does not, the family in part."""
    families = [fitted(accumulating, seed) for seed in range(5)]
    lines = [Line.fit(*posts(accumulating, seed=seed)) for seed in range(5)]
    least = [family.members["exposure_2"] for family in families]
    of_line, of_least, of_family = (
        np.mean([miss(accumulating, one.at(at(*AHEAD))) for one in ones]) for ones in (lines, least, families)
    )
    assert all(min(coefficients(family)) > 0.7 for family in families)
    assert of_line > 1
    assert abs(of_least) < 0.2 * of_line
    assert abs(of_family) < 0.75 * of_line


@pytest.mark.parametrize("seed", range(5))
def test_a_fall_that_stopped_is_not_followed(seed: int) -> None:
    """Less than half of the error of a fall that goes on."""
    goes_on = 9 - 4 * np.array(AHEAD) / 312
    found = fitted(stopped, seed).at(at(*AHEAD))
    assert abs(miss(stopped, found)) < 0.5 * abs(miss(stopped, goes_on))
    clear = Family.fit(*posts(stopped, noise=0.3, seed=seed), COLLECTED_AT)
    assert max(coefficients(clear)) < 0.3


@pytest.mark.parametrize("seed", range(5))
def test_labels_per_day_have_no_exposure(seed: int) -> None:
    """A label that a longer exposure does not raise; where it rises with the date, the coefficient is held to 0."""
    assert max(coefficients(fitted(constant, seed))) < 0.2
    assert coefficients(fitted(lambda days: -accumulating(days), seed)) == [0, 0, 0]


def test_counts_divided_by_their_days_have_no_exposure() -> None:
    posted_at, label = posts(accumulating)
    per_day = label - np.log2(COLLECTED_AT - posted_at / DAY)
    assert coefficients(Family.fit(posted_at, per_day, COLLECTED_AT)) == [0, 0, 0]


def test_a_count_grows_no_faster_than_time() -> None:
    assert coefficients(fitted(lambda days: 3 * accumulating(days))) == [1, 1, 1]


@pytest.mark.parametrize("seed", range(3))
def test_a_steady_fall_is_followed_in_part(seed: int) -> None:
    """The family misses less than half of what a constant at the train mean misses."""
    posted_at, label = posts(falling, seed=seed)
    found = miss(falling, Family.fit(posted_at, label, COLLECTED_AT).at(at(*AHEAD)))
    assert abs(found) < 0.5 * abs(miss(falling, np.full(len(AHEAD), label.mean())))


@pytest.mark.parametrize("absurd", [1e9, -1e9])
def test_one_absurd_label_does_not_bend_the_family(absurd: float) -> None:
    posted_at, label = posts(accumulating, 500)
    usual = Family.fit(posted_at, label, COLLECTED_AT)
    for row in (int(np.argmax(posted_at)), int(np.argmin(posted_at)), 7):
        bent = label.copy()
        bent[row] = absurd
        found = Family.fit(posted_at, bent, COLLECTED_AT)
        np.testing.assert_allclose(found.at(at(*AHEAD)), usual.at(at(*AHEAD)), atol=0.4)
        assert found.weights == usual.weights


@pytest.mark.parametrize("n", [1, 2, 19])
def test_a_short_history_is_a_constant(n: int) -> None:
    posted_at, label = posts(accumulating, n)
    family = Family.fit(posted_at, label, COLLECTED_AT)
    np.testing.assert_allclose(family.at(at(0, *AHEAD, 1100)), np.median(label))
    assert coefficients(family) == [0, 0, 0]


def test_few_posts_of_a_few_days_have_a_sober_forecast() -> None:
    rng = np.random.default_rng(3)
    days = rng.uniform(0, 5, 40)
    label = rng.normal(6, 1, 40)
    family = Family.fit(at(*days), label, 8.0)
    assert np.abs(family.at(at(5, 6, 7, 8)) - label.mean()).max() < 1.5
    assert set(family.weights.values()) == {1 / len(CLASSES)}


def test_posts_of_one_second_and_dates_after_the_collection() -> None:
    family = Family.fit(at(*[7.0] * 50), np.arange(50.0), 7.0)
    np.testing.assert_allclose(family.at(at(0, 7, 1000)), 24.5, atol=1e-6)
    late = fitted(accumulating).at(at(COLLECTED_AT, COLLECTED_AT + 500))
    assert np.isfinite(late).all()
    assert abs(late[1] - late[0]) < 0.3


def test_a_member_that_loses_at_every_origin_has_no_weight() -> None:
    """The level follows a fall that stopped long ago; where members lose by little, the weights are equal."""
    posted_at, label = posts(lambda days: 9 - 4 * np.minimum(days / 200, 1), noise=0.2)
    weights = Family.fit(posted_at, label, COLLECTED_AT).weights
    assert weights["level"] > weights["longer_line"] == 0
    assert sum(weights.values()) == pytest.approx(1)
    for drift in (accumulating, constant, falling):
        assert set(fitted(drift).weights.values()) == {1 / len(CLASSES)}


def test_the_level_goes_on() -> None:
    level = Level.fit(*posts(stopped, noise=0.1))
    np.testing.assert_allclose(level.at(at(600, 700, 5000)), 5, atol=0.05)
    assert level.at(at(-100))[0] == level.values[0]


def test_members_are_at_hand_and_their_mean_is_the_trend() -> None:
    trend = Trend.fit(*posts(accumulating), "family", COLLECTED_AT)
    members = trend.members_at(at(*AHEAD))
    assert list(members) == list(CLASSES)
    np.testing.assert_allclose(np.mean(list(members.values()), axis=0), trend.at(at(*AHEAD)))
    assert np.ptp([values.mean() for values in members.values()]) > 0.5
    agreed = Trend.fit(*posts(constant), "family", COLLECTED_AT).members_at(at(*AHEAD))
    assert np.ptp([values.mean() for values in agreed.values()]) < 0.3
    assert list(Trend.fit(*posts(falling), "linear").members_at(at(*AHEAD))) == ["linear"]


def test_a_draft_for_tomorrow_is_as_the_median_post() -> None:
    """A training post of median exposure, entered again as a draft, gets its own trend; read early, it gets less."""
    trend = Trend.fit(*posts(accumulating), "family", COLLECTED_AT).shifted([np.full(9, -0.5), np.full(9, -0.52)])
    assert trend.family is not None
    exposure = trend.family.median_exposure
    own = trend.retrend(np.zeros(1), at(COLLECTED_AT - exposure))
    tomorrow = at(COLLECTED_AT + 1)
    draft = trend.retrend(np.zeros(1), tomorrow, np.array([exposure]))
    assert abs(own[0] - draft[0]) < 0.3
    month, day, negative = (trend.retrend(np.zeros(1), tomorrow, np.array([days]))[0] for days in (30.0, 1.0, -5.0))
    assert draft[0] - 1 > month > day
    assert np.isfinite(negative)


def test_rows_of_the_data_set_keep_their_exposure() -> None:
    trend = Trend.fit(*posts(accumulating), "family", COLLECTED_AT).shifted([np.full(9, -0.5), np.full(9, -0.52)])
    dates = at(*AHEAD)
    mixed = trend.retrend(np.zeros(4), dates, np.array([np.nan, 300.0, np.nan, 20.0]))
    usual = trend.retrend(np.zeros(4), dates)
    np.testing.assert_array_equal(mixed[[0, 2]], usual[[0, 2]])
    assert (mixed != usual)[[1, 3]].all()
    line = Trend.fit(*posts(accumulating), "linear")
    np.testing.assert_array_equal(line.retrend(np.zeros(4), dates, np.full(4, 9.0)), line.retrend(np.zeros(4), dates))


def test_a_saved_family_is_the_same() -> None:
    trend = Trend.fit(*posts(falling), "family", COLLECTED_AT)
    again = Trend.from_json(json.loads(json.dumps(trend.to_json(), sort_keys=True)))
    assert again == trend
    np.testing.assert_array_equal(again.at(at(*AHEAD)), trend.at(at(*AHEAD)))
    assert trend.family is not None
    assert Family.from_json(json.loads(json.dumps(asdict(trend.family)))) == trend.family


def test_inner_trends_read_the_collection_and_no_later_label() -> None:
    posted_at, label = posts(accumulating)
    splits = inner_splits(posted_at, InnerCvParams(2, 0.2))
    before = inner_trends(posted_at, label, splits, "family", COLLECTED_AT)
    later = label.copy()
    later[splits[0][1]] += 50
    np.testing.assert_array_equal(inner_trends(posted_at, later, splits, "family", COLLECTED_AT), before)
    assert not np.array_equal(inner_trends(posted_at, label, splits, "family", 2 * COLLECTED_AT), before)
