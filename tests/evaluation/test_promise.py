"""The promise for another part: the mean of the splits, and an interval of users, times and the level's forecasts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from popularity.core.contracts import TRENDS, empty_table
from popularity.evaluation.promise import LEVEL_LIMIT, Promise, promise_sentences, promise_table, promises
from popularity.evaluation.scores import SCORES, Scored

START = datetime(2020, 1, 1, tzinfo=UTC)
NO_TRENDS = empty_table(TRENDS)
Q = {4: 2.131847, 5: 2.015048, 6: 1.943180}  # 95 % quantiles of Student's t, by degrees of freedom


def scores_of(forward: Sequence[float], holdout: float, error: float) -> pl.DataFrame:
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


def scored_of(n_forward: int, step: int = 200) -> list[Scored]:
    """The posts of the splits in time, 200 in each; a forward split starts `step` posts after the one before."""
    rng = np.random.default_rng(0)

    def rows(fold: int, first: int) -> pl.DataFrame:
        label = rng.normal(8, 2, 200)
        return pl.DataFrame(
            {
                "pid": [f"{first + row}" for row in range(200)],
                "fold": pl.Series([fold] * 200, dtype=pl.Int32),
                "posted_at": [START + timedelta(days=first + row) for row in range(200)],
                "label": label,
                "prediction:stack": label + rng.normal(0, 1, 200),
            }
        )

    forward = pl.concat([rows(fold, fold * step) for fold in range(n_forward)])
    return [Scored("holdout", ("stack",), rows(0, 10_000), {}), Scored("forward", ("stack",), forward, {})]


def trends_of(**by_part: Sequence[float]) -> pl.DataFrame:
    """Members that forecast these constant levels; `forward` stands for every forward split."""
    parts = {"forward": [("forward", fold) for fold in range(3)], "holdout": [("holdout", 0)], "test": [("refit", 0)]}
    rows = [
        (scheme, fold, f"member {index}", earlier, START, level)
        for part, levels in by_part.items()
        for scheme, fold in parts[part]
        for index, level in enumerate(levels)
        for earlier in (0.0, 0.5, 1.0)
    ]
    schema = {name: rule.dtype for name, rule in TRENDS.columns.items()}
    return pl.DataFrame(rows, schema=schema, orient="row").sort(TRENDS.key)


def found(metric: str, scores: pl.DataFrame, trends: pl.DataFrame = NO_TRENDS, step: int = 200) -> dict[str, Promise]:
    n_forward = max(1, scores.filter(pl.col("fold").is_not_null())["fold"].n_unique())
    return {one.part: one for one in promises(scored_of(n_forward, step), scores, trends, 0.95) if one.metric == metric}


def test_origins_are_promised_by_one_another_the_holdout_by_them_and_the_test_part_by_all() -> None:
    src = found("src", scores_of([0.5, 0.6, 0.4], 0.7, 0.01))
    assert list(src) == ["forward 0", "forward 1", "forward 2", "holdout", "test"]
    assert [one.value for one in src.values()] == pytest.approx([0.5, 0.45, 0.55, 0.5, 0.55])
    assert [one.origins for one in src.values()] == [2, 2, 2, 3, 4]
    assert [one.result for one in src.values()] == [0.5, 0.6, 0.4, 0.7, None]
    assert [one.shared for one in src.values()] == [0] * 5
    assert src["test"].kept is None
    assert src["holdout"].kept is False
    tau = (3 * 0.03**2 + 2 * (0.01 - 0.01**2)) / 5  # the prior as three splits; .01 between the splits that were seen
    half = Q[5] * np.sqrt((1 + 1 / 3) * (tau + 0.01**2))
    assert (src["holdout"].low, src["holdout"].high) == pytest.approx((0.5 - half, 0.5 + half))


def test_splits_that_agree_leave_the_error_of_the_users_and_the_prior() -> None:
    holdout = found("mae", scores_of([0.5, 0.5, 0.5], 0.51, 0.02))["holdout"]
    tau = 3 * (0.05 * 0.5) ** 2 / 5  # of the MAE, the prior is a share of the promise
    assert holdout.high - holdout.value == pytest.approx(Q[5] * np.sqrt(4 / 3 * (tau + 0.02**2)), rel=1e-5)
    assert holdout.kept


def test_intervals_keep_what_they_promise() -> None:
    """Scores of splits that vary in time as the prior has it, and over users: 90 % of the results."""
    rng = np.random.default_rng(0)
    scored, kept = scored_of(5), []
    for _ in range(300):
        values = 0.5 + rng.normal(0, 0.03, 6) + rng.normal(0, 0.02, 6)
        scores = scores_of(values[:5].tolist(), float(values[5]), 0.02).filter(metric="src")
        scores = pl.concat([scores, scores.with_columns(metric=pl.lit("mae"))])
        (one,) = (
            one for one in promises(scored, scores, NO_TRENDS, 0.95) if (one.part, one.metric) == ("holdout", "src")
        )
        kept.append(one.kept is True)
    assert 0.86 < np.mean(kept) < 0.97


def test_splits_that_share_posts_count_for_less_and_show_less_of_the_spread() -> None:
    """Three windows that share most of their posts are nearly one split: their spread is that of nearly equal things,
    and beside the holdout they do not weigh three times."""
    scores = scores_of([0.52, 0.5, 0.48], 0.7, 0.001)
    apart, shared = found("src", scores), found("src", scores, step=50)
    assert shared["holdout"].high - shared["holdout"].low > 1.3 * (apart["holdout"].high - apart["holdout"].low)
    assert apart["test"].value == pytest.approx(0.55)
    assert 0.58 < shared["test"].value < 0.62
    assert shared["forward 0"].shared == pytest.approx((0.75 + 0.5) / 2)
    assert shared["holdout"].shared == 0


def test_what_the_members_disagree_by_at_the_parts_own_dates_widens_the_interval() -> None:
    scores = scores_of([1.0, 1.1, 1.05], 1.0, 0.01)
    none = found("mae", scores)
    far = found("mae", scores, trends_of(forward=[5, 5], holdout=[5, 5.02], test=[4, 6]))
    for part in ("forward 0", "holdout"):  # there the members agree
        assert (far[part].low, far[part].high) == pytest.approx((none[part].low, none[part].high), abs=0.002)
    assert far["test"].low == pytest.approx(none["test"].low)  # an error of the level does not lower the MAE
    # Errors of one unit that are off by one have a mean of 1.17 in place of .80.
    rise = 0.37
    spread = (none["test"].high - none["test"].value) / Q[6]
    assert far["test"].high == pytest.approx(far["test"].value + Q[6] * np.sqrt(spread**2 + rise**2), abs=0.07)
    assert far["test"].members_differ_by == pytest.approx(2)
    assert none["test"].members_differ_by is None
    src = found("src", scores_of([0.5, 0.6, 0.4], 0.5, 0.01), trends_of(test=[4, 6]))["test"]
    assert src.low == pytest.approx(found("src", scores_of([0.5, 0.6, 0.4], 0.5, 0.01))["test"].low)  # ranks stay


def test_members_whose_slopes_differ_widen_the_interval_of_the_rank_correlation() -> None:
    scores = scores_of([0.5, 0.6, 0.4], 0.5, 0.01)
    steep = trends_of(test=[5, 5]).with_columns(
        value=pl.when(member="member 1").then(5 + 8 * (pl.col("earlier") - 0.5)).otherwise("value")
    )
    own, other = found("src", scores)["test"], found("src", scores, steep)["test"]
    assert other.members_differ_by == pytest.approx(0)
    assert other.low < own.low - 0.02


@pytest.mark.parametrize(("apart", "known"), [(LEVEL_LIMIT - 0.01, True), (LEVEL_LIMIT + 0.01, False)])
def test_it_is_said_where_the_level_is_not_known(apart: float, known: bool) -> None:
    scores = scores_of([0.80, 0.84, 0.82], 0.83, 0.05)
    table = promise_table(promises(scored_of(3), scores, trends_of(test=[5, 5 + apart]), 0.95))
    level, checked = promise_sentences(table)
    assert level.startswith("The members of the trend agree on the level" if known else "The level of the test part")
    assert ("is not known" in level) is not known
    assert checked == "8 of 8 results lie in the interval that was promised for them."
    assert table.filter(part="test")["width"].to_list() == pytest.approx(
        table.filter(part="test").select(pl.col("high") - pl.col("low")).to_series().to_list(), abs=2e-6
    )
    single = promise_table(promises(scored_of(3), scores, NO_TRENDS, 0.95))
    assert "has one member" in promise_sentences(single)[0]


def test_one_forward_split() -> None:
    src = found("src", scores_of([0.5], 0.6, 0.05))
    assert [(one.part, one.origins) for one in src.values()] == [("holdout", 1), ("test", 2)]


def test_no_promise_without_an_interval() -> None:
    scores = scores_of([0.5, 0.6], 0.7, 0.1).with_columns(low=pl.lit(None, pl.Float64), high=pl.lit(None, pl.Float64))
    assert promises(scored_of(2), scores, NO_TRENDS, 0.95) == []
