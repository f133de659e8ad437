"""The trend along the order of collection, and the numbers of ids that it goes by."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from popularity.core.arrays import Float64Array, Int64Array
from popularity.core.collection_order import NOT_COLLECTED, id_number, pid_numbers
from popularity.core.errors import ConfigError
from popularity.target.collection_order import MIN_BIN, N_BINS, CollectionOrder, along
from popularity.target.trend import Trend, inner_trends

N = 2000


def falling(seed: int = 0) -> tuple[list[str], Int64Array, Float64Array]:
    """Pids in no order, dates that say nothing of them, and labels that fall from 8 to 5 along the Pids."""
    rng = np.random.default_rng(seed)
    number = rng.permutation(100_000)[:N]
    label = 8 - 3 * number / 100_000 + rng.normal(0, 0.3, N)
    return [str(one) for one in number], rng.integers(0, 10**15, N), label


def test_ids_have_the_number_before_the_at_sign() -> None:
    assert pid_numbers(["564687", "0012", "new-3", "", "5x"]).tolist() == [564687, 12, *[NOT_COLLECTED] * 3]
    uids = pl.DataFrame({"uid": ["70478@N10", "@N10", "name", "12@"]}).select(id_number("uid")).to_series()
    assert uids.to_list() == [70478, None, None, 12]


def test_labels_lose_what_falls_along_the_pids_and_predictions_get_it_back() -> None:
    pids, posted_at, label = falling()
    axis = along("collection_order", pids, posted_at)
    trend = Trend.fit(axis, label, "collection_order")
    rest = trend.detrend(label, axis)
    assert rest.std() == pytest.approx(0.3, abs=0.03)
    expected = trend.retrend(np.zeros(2), along("collection_order", ["20000", "80000"], np.zeros(2, np.int64)))
    np.testing.assert_allclose(expected, [7.4, 5.6], atol=0.15)
    assert along("family", pids, posted_at) is posted_at
    assert Trend.fit(posted_at, label, "linear").detrend(label, posted_at).std() > 0.8  # the date knows nothing of it


def test_a_post_without_a_number_is_the_last_one_collected_and_nothing_is_shifted() -> None:
    pids, posted_at, label = falling()
    trend = Trend.fit(along("collection_order", pids, posted_at), label, "collection_order")
    last = trend.at(pid_numbers(["new-1", "99999999"]))
    assert last[0] == last[1] == pytest.approx(5.1, abs=0.15)
    assert trend.shifted([np.full(50, 2.0), np.full(50, 2.1)]) == trend


def test_the_trend_is_read_back_to_the_last_bit() -> None:
    pids, posted_at, label = falling()
    axis = along("collection_order", pids, posted_at)
    trend = Trend.fit(axis, label, "collection_order")
    assert Trend.from_json(json.loads(json.dumps(trend.to_json()))) == trend


def test_no_valid_label_of_an_inner_split_is_read() -> None:
    pids, posted_at, label = falling()
    axis, rows = along("collection_order", pids, posted_at), np.arange(N)
    splits = [(rows[:1500], rows[1500:])]
    other = np.where(rows < 1500, label, 99.0)
    found = [inner_trends(axis, one, splits, "collection_order") for one in (label, other)]
    np.testing.assert_array_equal(found[0], found[1])


def test_few_posts_have_few_bins_and_ids_without_numbers_are_refused() -> None:
    pids, _, label = falling()
    assert len(CollectionOrder.fit(pid_numbers(pids), label).numbers) == N_BINS
    few = CollectionOrder.fit(pid_numbers(pids[: 3 * MIN_BIN]), label[: 3 * MIN_BIN])
    assert len(few.numbers) == 3
    with pytest.raises(ConfigError, match="no Pid is a number"):
        CollectionOrder.fit(pid_numbers(["a", "b"]), np.zeros(2))
