"""Conformal quantiles, their coverage, and what happens without enough to calibrate on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from popularity.core.contracts import TRENDS, empty_table
from popularity.core.errors import ContractError
from popularity.evaluation.conformal import COVERAGE, COVERAGES, Calibration, calibrate, calibrate_on, coverage_table
from popularity.evaluation.scores import EvaluateConfig, Scored, collect
from popularity.evaluation.tables import EvaluationInputs, evaluate
from tests.small_tables import SPLIT_SUMMARY, small_posts, small_predictions, small_splits, with_forward

CONFIG = EvaluateConfig(seed=0, n_resamples=60, confidence_level=0.9)
POSTS = small_posts()


def with_error_scale() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Splits and predictions with two splits of `forward`; an error_scale by post."""
    splits = small_splits(POSTS)
    predictions = small_predictions(POSTS, splits)
    scale = 0.3 + pl.col("pid").cast(pl.Int64) % 5 / 5
    scaled = pl.when(pl.col("model") == "stack").then(scale)
    return with_forward(splits), with_forward(predictions).with_columns(error_scale=scaled)


def scored() -> list[Scored]:
    return collect(POSTS, *with_error_scale())


def test_quantiles_are_the_kth_of_the_normalised_errors() -> None:
    rng = np.random.default_rng(0)
    labels, predictions, scale = rng.normal(size=57), rng.normal(size=57), rng.uniform(0.5, 2, 57)
    calibration = calibrate(labels, predictions, scale, COVERAGES)
    ordered = sorted(abs(labels[i] - predictions[i]) / scale[i] for i in range(57))
    assert (calibration.scheme, calibration.posts) == ("forward", 57)
    assert calibration.quantiles == {nominal: ordered[math.ceil(58 * nominal) - 1] for nominal in (0.5, 0.8, 0.9)}


@pytest.mark.parametrize(("posts", "known"), [(0, 0), (1, 1), (3, 1), (4, 2), (8, 2), (9, 3)])
def test_too_few_posts_make_an_interval_infinite(posts: int, known: int) -> None:
    """k = ceil((n + 1) nominal) posts are needed: 1 of 1, 4 of 4, 9 of 9. 10 * 0.9 is exactly 9."""
    errors = np.arange(posts, dtype=np.float64)
    calibration = calibrate(errors, np.zeros(posts), np.ones(posts), COVERAGES)
    assert [nominal for nominal, quantile in calibration.quantiles.items() if quantile is not None] == [
        *COVERAGES[:known]
    ]
    half_width = calibration.half_width(0.9, np.ones(2))
    assert (half_width is None) == (known < 3)


def test_coverage_is_nominal_for_posts_from_the_same_distribution() -> None:
    """Over many draws of 30 calibrating posts, a new post is inside as often as k / 31, whatever the error scales."""
    rng = np.random.default_rng(0)
    inside = dict.fromkeys(COVERAGES, 0.0)
    draws = 2000
    for _ in range(draws):
        scale = rng.uniform(0.2, 3, 31)
        labels = rng.standard_t(3, 31) * scale**2
        calibration = calibrate(labels[:30], np.zeros(30), scale[:30])
        for nominal in COVERAGES:
            half_width = calibration.half_width(nominal, scale[30:])
            assert half_width is not None
            inside[nominal] += float(abs(labels[30]) <= half_width[0]) / draws
    for nominal in COVERAGES:
        expected = math.ceil(31 * nominal) / 31
        assert inside[nominal] == pytest.approx(expected, abs=3 * (expected * (1 - expected) / draws) ** 0.5)


def test_forward_calibrates_with_the_mean_over_seeds() -> None:
    splits, predictions = with_error_scale()
    rows = (
        predictions.filter(scheme="forward", model="stack")
        .group_by("pid")
        .agg(pl.mean("prediction"), pl.first("error_scale"))
    )
    truth = rows.join(POSTS, on="pid")
    expected = calibrate(truth["label"].to_numpy(), truth["prediction"].to_numpy(), truth["error_scale"].to_numpy())
    found = calibrate_on(collect(POSTS, splits, predictions))
    assert found.posts == expected.posts == splits.filter(scheme="forward", role="valid").height
    assert found.quantiles == pytest.approx(expected.quantiles)


def test_coverage_against_a_slow_reference() -> None:
    (holdout, *_), calibration = scored(), calibrate_on(scored())
    table = coverage_table(holdout, calibration, CONFIG)
    assert dict(table.schema) == COVERAGE
    for group, wanted in (("all", (True, False)), ("seen", (True,)), ("unseen", (False,))):
        rows = [row for row in holdout.rows.iter_rows(named=True) if row["seen"] in wanted]
        for nominal, quantile in calibration.quantiles.items():
            assert quantile is not None
            found = table.filter(group=group, nominal=nominal).row(0, named=True)
            inside = [abs(row["label"] - row["prediction:stack"]) <= quantile * row["error_scale"] for row in rows]
            assert found["scheme"] == "holdout"
            assert (found["posts"], found["users"]) == (len(rows), len({row["uid"] for row in rows}))
            assert found["coverage"] == pytest.approx(sum(inside) / len(inside), abs=1e-6)
            assert found["width"] == pytest.approx(
                sum(2 * quantile * row["error_scale"] for row in rows) / len(rows), abs=1e-6
            )
            assert found["low"] <= found["coverage"] <= found["high"]
    widths = table.filter(group="all")["width"]
    assert widths.is_sorted()
    assert widths.is_unique().all()


def test_infinite_intervals_are_null_and_named_infinite() -> None:
    splits, predictions = with_error_scale()
    kept = splits.filter(scheme="forward", role="valid")["pid"].sort().head(5)
    gone = (pl.col("scheme") == "forward") & ~pl.col("pid").is_in(kept.to_list())
    few = splits.with_columns(role=pl.when(gone & (pl.col("role") == "valid")).then(pl.lit("train")).otherwise("role"))
    importance = pl.DataFrame({"block": ["metadata"], "feature": ["hour"], "gain": [1.0]})
    inputs = EvaluationInputs(POSTS, few, predictions.filter(~gone), empty_table(TRENDS), importance, SPLIT_SUMMARY)
    result = evaluate(inputs, CONFIG)
    assert result.calibration.posts == 5
    assert result.calibration.quantiles[0.8] is not None
    assert result.calibration.quantiles[0.9] is None
    infinite = result.coverage.filter(nominal=0.9)
    assert infinite.select("coverage", "low", "high", "width").null_count().row(0) == (3, 3, 3, 3)
    lines = [line for line in result.table.splitlines() if line.startswith("90%")]
    assert len(lines) == 3
    assert all("infinite: too few posts to calibrate" in line for line in lines)
    assert "nan" not in result.table.lower()


def test_one_user_has_a_coverage_without_bounds() -> None:
    holdout = scored()[0]
    alone = replace(holdout, rows=holdout.rows.filter(pl.col("uid") == holdout.rows["uid"][0]))
    table = coverage_table(alone, calibrate_on(scored()), CONFIG)
    assert table["coverage"].null_count() == 0
    assert table["low"].null_count() == len(table) == len(COVERAGES) * 2


def test_a_prediction_without_an_error_scale_is_an_error() -> None:
    splits, predictions = with_error_scale()
    for bad in (None, 0.0):
        hit = (pl.col("scheme") == "forward") & (pl.col("pid") == predictions.filter(scheme="forward")["pid"][0])
        holed = predictions.with_columns(error_scale=pl.when(hit).then(pl.lit(bad)).otherwise("error_scale"))
        with pytest.raises(ContractError, match=r"1 of 'stack' have no error_scale above 0, .*\n?.*`dvc repro stack`"):
            calibrate_on(collect(POSTS, splits, holed))


def test_written_and_read(tmp_path: Path) -> None:
    calibration = Calibration("forward", 12, {0.5: 1.0 / 3, 0.8: 2.5, 0.95: None})
    calibration.write(tmp_path / "calibration.json")
    stored = json.loads((tmp_path / "calibration.json").read_text())
    assert stored == {"scheme": "forward", "posts": 12, "quantiles": {"0.5": 1 / 3, "0.8": 2.5, "0.95": None}}
    assert Calibration.read(tmp_path / "calibration.json") == calibration
