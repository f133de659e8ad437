from __future__ import annotations

import polars as pl
import pytest

from popularity.evaluation.scheme_scores import scheme_scores
from popularity.evaluation.scores import EvaluateConfig, collect, score_overall
from tests.small_tables import small_posts, small_predictions, small_splits, with_forward


def test_they_are_the_scores_of_evaluate() -> None:
    """Two seeds, several folds and splits; to the last written digit."""
    posts = small_posts()
    splits = with_forward(small_splits(posts))
    predictions = small_predictions(posts, splits)
    assert predictions["seed"].n_unique() > 1
    table = score_overall(collect(posts, splits, predictions), EvaluateConfig(0, 2, 0.9))
    table = table.filter(
        (pl.col("model") == "stack") & pl.col("minus").is_null() & pl.col("fold").is_null(),
        pl.col("metric").is_in(["mae", "src"]),
    )
    expected: dict[str, dict[str, float]] = {}
    for scheme, metric, value in table.select("scheme", "metric", "value").iter_rows():
        expected.setdefault(scheme, {})[metric] = value
    assert list(expected) == ["holdout", "forward", "group"]
    assert scheme_scores(posts, predictions) == expected
    assert scheme_scores(posts, predictions.sample(fraction=1, shuffle=True, seed=1)) == expected


def test_a_constant_has_no_rank_correlation() -> None:
    posts = small_posts()
    predictions = small_predictions(posts, small_splits(posts)).with_columns(prediction=pl.lit(2.0))
    found = scheme_scores(posts, predictions)["holdout"]
    assert found["src"] is None
    assert found["mae"] == pytest.approx(
        (posts.filter(pl.col("pid").is_in(predictions.filter(scheme="holdout")["pid"].implode()))["label"] - 2)
        .abs()
        .mean(),
        abs=1e-6,
    )
