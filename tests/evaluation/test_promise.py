"""The promise for a later part: the mean of the splits before it, and an interval of users and times."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from popularity.evaluation.promise import promises
from popularity.evaluation.scores import SCORES


def scores_of(forward: list[float], holdout: float, error: float) -> pl.DataFrame:
    """The rows of a score table: SRC and MAE of the splits in time, with 95 % intervals of this standard error."""

    def row(scheme: str, fold: int | None, metric: str, value: float) -> dict[str, Any]:
        empty = {"used_in_selection": "yes", "minus": None, "posts": 100, "users": 50}
        bounds = {"low": value - 1.959964 * error, "high": value + 1.959964 * error}
        return {"scheme": scheme, "fold": fold, "model": "stack", "metric": metric, "value": value, **bounds, **empty}

    rows = []
    for metric in ("src", "mae"):
        rows += [row("holdout", None, metric, holdout), row("forward", None, metric, float(np.mean(forward)))]
        rows += [row("forward", fold, metric, value) for fold, value in enumerate(forward) if len(forward) > 1]
    return pl.DataFrame(rows, schema=SCORES, orient="row")


def test_the_holdout_is_promised_by_the_forward_splits_and_the_test_part_by_all() -> None:
    found = promises(scores_of([0.5, 0.6, 0.4], 0.7, 0.01), 0.95)
    src = {one.part: one for one in found if one.metric == "src"}
    assert list(src) == ["forward 1", "forward 2", "holdout", "test"]
    assert [one.value for one in src.values()] == pytest.approx([0.5, 0.55, 0.5, 0.55])
    assert [one.origins for one in src.values()] == [1, 2, 3, 4]
    assert [one.result for one in src.values()] == [0.6, 0.4, 0.7, None]
    assert src["test"].kept is None
    assert src["holdout"].kept is False
    half = 1.644854 * np.sqrt((1 + 1 / 3) * 0.01)  # the spread between the splits, .01, is larger than .01 squared
    assert (src["holdout"].low, src["holdout"].high) == pytest.approx((0.5 - half, 0.5 + half))


def test_splits_that_agree_leave_the_error_of_the_users() -> None:
    (holdout,) = (
        one
        for one in promises(scores_of([0.5, 0.5, 0.5], 0.51, 0.02), 0.95)
        if (one.part, one.metric) == ("holdout", "mae")
    )
    assert holdout.high - holdout.value == pytest.approx(1.644854 * np.sqrt(4 / 3) * 0.02, rel=1e-5)
    assert holdout.kept


def test_intervals_keep_what_they_promise() -> None:
    """Scores of splits that vary in time and over users: 90 % of the results, a little less for few splits."""
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(400):
        values = 0.5 + rng.normal(0, 0.05, 6) + rng.normal(0, 0.02, 6)
        (one,) = (
            one
            for one in promises(scores_of(values[:5].tolist(), float(values[5]), 0.02), 0.95)
            if (one.part, one.metric) == ("holdout", "src")
        )
        kept.append(one.kept is True)
    assert 0.8 < np.mean(kept) < 0.95


def test_one_forward_split() -> None:
    found = [one for one in promises(scores_of([0.5], 0.6, 0.05), 0.95) if one.metric == "src"]
    assert [(one.part, one.origins) for one in found] == [("holdout", 1), ("test", 2)]


def test_no_promise_without_an_interval() -> None:
    scores = scores_of([0.5, 0.6], 0.7, 0.1).with_columns(low=pl.lit(None, pl.Float64), high=pl.lit(None, pl.Float64))
    assert promises(scores, 0.95) == []
