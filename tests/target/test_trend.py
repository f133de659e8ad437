"""The trend: a line that is recovered, a forecast that is shrunk, a shift that the inner splits agree on."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest

from popularity.target.line import Line
from popularity.target.trend import FORECAST_CONFIDENCE, Detrend, Shift, Trend, inner_trends
from popularity.validation.inner_cv import InnerCvParams, inner_splits

DAY = 86_400_000_000
KINDS: tuple[Detrend, ...] = get_args(Detrend)


def days(*values: float) -> npt.NDArray[np.int64]:
    return (np.array(values) * DAY).astype(np.int64)


def drifting(
    n: int = 2000, slope: float = -0.01, noise: float = 1.0, seed: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Dates over 400 days in no order, and labels that drift by `slope` a day from 9."""
    rng = np.random.default_rng(seed)
    at = rng.uniform(0, 400, n)
    return (at * DAY).astype(np.int64), 9 + slope * at + rng.normal(0, noise, n)


def test_the_line_is_that_of_the_labels() -> None:
    posted_at, label = drifting()
    line = Line.fit(posted_at, label)
    assert line.slope == pytest.approx(-0.01, abs=0.001)
    assert 0.9 < line.trust <= 1
    np.testing.assert_allclose(line.at(days(100, 300)), [8, 6], atol=0.15)


def test_order_of_the_rows_does_not_count() -> None:
    posted_at, label = drifting()
    order = np.random.default_rng(1).permutation(len(label))
    assert Line.fit(posted_at[order], label[order]).slope == pytest.approx(Line.fit(posted_at, label).slope, rel=1e-9)


def test_the_forecast_follows_the_slope_and_levels_off() -> None:
    line = Line.fit(*drifting(noise=0.1))
    ahead = line.at(days(400, 420, 450, 500, 800, 80_000))
    assert (np.diff(ahead) <= 0).all()
    assert ahead[1] - ahead[0] == pytest.approx(-0.01 * 20, rel=0.15)
    reach = 0.25 * (line.end - line.start)
    assert ahead[-1] - line.at(days(line.end))[0] == pytest.approx(line.trust * line.slope * reach, rel=1e-6)
    assert line.at(days(-5000))[0] == line.at(days(line.start))[0]


def test_without_a_trend_the_forecast_is_the_last_period() -> None:
    """A slope within its error is not kept, one beyond it in part."""
    trusts = [Line.fit(*drifting(slope=0.0, seed=seed)).trust for seed in range(20)]
    assert np.mean(np.array(trusts) == 0) > 0.5
    trend = Trend.fit(*drifting(slope=0.0, seed=int(np.argmin(trusts))), "linear")
    assert trend.line.at(days(399.9))[0] == pytest.approx(trend.line.at(days(700))[0])
    weak = [Line.fit(*drifting(slope=-0.0003, seed=seed)).trust for seed in range(20)]
    strong = [Line.fit(*drifting(slope=-0.01, seed=seed)).trust for seed in range(20)]
    assert np.mean(weak) < 0.9 < np.mean(strong)


def test_one_absurd_label_does_not_bend_the_line() -> None:
    posted_at, label = drifting(200)
    absurd = label.copy()
    absurd[np.argmax(posted_at)] = 1e9
    usual, line = Line.fit(posted_at, label), Line.fit(posted_at, absurd)
    dates = days(0, 200, 400, 600)
    np.testing.assert_allclose(line.at(dates), usual.at(dates), atol=1.0)


def test_labels_that_are_almost_all_equal_keep_the_others() -> None:
    """Small counts: nine of ten labels are 0, the others rise within a label unit."""
    at = np.linspace(0, 400, 1000)
    label = np.where(np.arange(1000) % 10 == 0, at / 400, 0.0)
    assert Line.fit((at * DAY).astype(np.int64), label).slope == pytest.approx(0.1 / 400, rel=0.1)


def test_a_whole_slope_is_not_shrunk() -> None:
    posted_at, label = drifting(slope=0.0)
    assert Line.fit(posted_at, label, shrink=False).trust == 1
    short, long = (Line.fit(posted_at, label, reach, shrink=False) for reach in (0.25, 0.5))
    assert long.reach == pytest.approx(2 * short.reach)


def test_one_odd_date_does_not_stretch_the_line() -> None:
    posted_at, label = drifting()
    odd = posted_at.copy()
    odd[0], odd[1] = 40_000 * DAY, -20_000 * DAY
    usual, line = Line.fit(posted_at, label), Line.fit(odd, label)
    dates = days(50, 200, 390, 430)
    np.testing.assert_allclose(line.at(dates), usual.at(dates), atol=0.1)
    assert abs(line.at(odd[:2])).max() < 12


@pytest.mark.parametrize("n", [1, 2, 19])
def test_few_rows_have_a_flat_line(n: int) -> None:
    posted_at, label = drifting(n)
    line = Line.fit(posted_at, label)
    np.testing.assert_allclose(line.at(days(0, 1000)), np.median(label))


def test_posts_of_one_second_have_a_flat_line() -> None:
    line = Line.fit(np.full(50, 7 * DAY), np.arange(50.0))
    np.testing.assert_allclose(line.at(days(0, 7, 1000)), 24.5)


def test_without_detrend_no_bit_changes() -> None:
    posted_at, label = drifting()
    trend = Trend.fit(posted_at, label, "none").shifted([label - 1, label - 1])
    np.testing.assert_array_equal(trend.detrend(label, posted_at), label)
    np.testing.assert_array_equal(trend.retrend(label, posted_at + 900 * DAY), label)
    assert not trend.shifts


@pytest.mark.parametrize("kind", KINDS)
def test_the_trend_that_is_removed_returns(kind: Detrend) -> None:
    posted_at, label = drifting()
    trend = Trend.fit(posted_at, label, kind)
    np.testing.assert_allclose(trend.retrend(trend.detrend(label, posted_at), posted_at), label, rtol=1e-12)
    again = Trend.from_json(json.loads(json.dumps(trend.to_json())))
    assert again == trend
    slope = np.polyfit(posted_at / DAY, trend.detrend(label, posted_at), 1)[0]
    assert slope == pytest.approx(-0.01 if kind == "none" else 0.0, abs=0.0012)


def test_the_shift_is_the_error_of_splits_that_agree() -> None:
    errors = [np.array([-0.4, -0.3, 5.0]), np.array([-0.35, -9.0, 3.0]), np.array([-0.31])]
    shift = Shift.fit(errors, 10.0)
    assert -0.33 < shift.value < -0.31
    np.testing.assert_array_equal(shift.at(days(9, 11)), [0.0, shift.value])


def test_the_shift_of_splits_that_disagree_is_zero() -> None:
    assert Shift.fit([np.array([-0.5]), np.array([0.1]), np.array([0.5])], 0.0).value == 0.0
    half = Shift.fit([np.array([-0.5]), np.array([-0.1]), np.array([-0.3])], 0.0)
    assert -0.3 < half.value < -0.2
    assert Shift.fit([np.array([-0.5])], 0.0).value == 0.0
    assert Shift.fit([], 0.0).value == 0.0
    assert Shift.fit([np.zeros(1)] * 2, 0.0).value == 0.0


def test_only_dates_after_the_train_rows_are_shifted() -> None:
    """Where train and valid rows interleave there is nothing to forecast."""
    posted_at, label = drifting()
    trend = Trend.fit(posted_at, label, "linear")
    moved = trend.shifted([np.full(3, -0.4)] * 2)
    added = [one.retrend(np.zeros(2), days(200, 401)) for one in (trend, moved)]
    np.testing.assert_allclose(added[1] - added[0], [0.0, -0.4], atol=1e-12)


def test_the_interval_of_the_forecast_has_its_coverage() -> None:
    """It covers as many random walks as its confidence says; there is no interval without inner splits."""
    rng = np.random.default_rng(5)
    held = []
    for _ in range(300):
        truth = rng.normal(-0.3, 0.1, 4)
        line = Trend.fit(*drifting(40), "linear")
        trend = line.shifted([np.full(2, value) for value in truth[:3]])
        value, low, high = trend.forecast(days(500, 600))
        assert low is not None
        assert high is not None
        assert low < value < high
        held.append(low < line.forecast(days(500, 600))[0] + truth[3] < high)
    assert abs(np.mean(held) - FORECAST_CONFIDENCE) < 0.06
    assert Trend.fit(*drifting(40), "linear").forecast(days(500))[1:] == (None, None)


def test_inner_trends_use_train_rows_alone() -> None:
    posted_at, label = drifting()
    splits = inner_splits(posted_at, InnerCvParams(2, 0.2))
    before = inner_trends(posted_at, label, splits, "linear")
    later = label.copy()
    later[splits[0][1]] += 50  # valid in the first split alone, the last slice of time
    np.testing.assert_array_equal(inner_trends(posted_at, later, splits, "linear"), before)
    assert not np.array_equal(inner_trends(posted_at, label + posted_at / DAY, splits, "linear"), before)
    assert not inner_trends(posted_at, label, splits, "none").any()
    assert len(inner_trends(posted_at, label, [], "linear")) == 0
