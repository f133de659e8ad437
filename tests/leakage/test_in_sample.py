"""The trap of in-sample predictions: a stack that sees them looks brilliant and fails on new posts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from popularity.stack import Blocks
from popularity.stack.lightgbm import lightgbm_params
from popularity.stack.matrix import Matrix, MatrixEncoder
from tests.stack.small_stack import STACK, random_block, random_scalars

Floats = npt.NDArray[np.float64]
FIT, NEW, USERS, WIDTH = 300, 600, 90, 150
COLUMNS = replace(
    STACK.columns, feature_blocks=("metadata", "image"), oof_ridge=("image",), n_components=2, oof_ridge_alphas=(10.0,)
)


@pytest.fixture(scope="module")
def posts() -> tuple[pl.DataFrame, Floats, Blocks]:
    """Features of FIT + NEW posts with one column that matters, labels, and vectors that say nothing."""
    rng = np.random.default_rng(11)
    n = FIT + NEW
    pids = [f"{row:05d}" for row in range(n)]
    level = rng.normal(size=n)
    label = 6 + level + rng.normal(0, 1, n)
    text = pl.Series([f"{user}@N0" for user in rng.integers(USERS, size=n)])
    categories = {name: pl.lit("same") for name in ("category", "subcategory", "concept", "media_type", "timezone_id")}
    features = pl.DataFrame({"pid": pids, "level": level, "uid": text}).with_columns(**categories)
    return (
        features,
        label,
        Blocks({"image": random_block(pids, WIDTH, seed=1, missing=0.0)}, random_scalars(pids, seed=1)),
    )


def matrices(posts: tuple[pl.DataFrame, Floats, Blocks]) -> tuple[Matrix, Matrix, Matrix]:
    """Of the train rows out of fold; of the train rows in sample, which is the trap; of the new rows."""
    features, label, blocks = posts
    encoder, out_of_fold = MatrixEncoder.fit(features.head(FIT), label[:FIT], blocks, COLUMNS)
    return out_of_fold, encoder.apply(features.head(FIT), blocks), encoder.apply(features.tail(NEW), blocks)


def correlation(left: npt.NDArray[np.floating[Any]], right: Floats) -> float:
    return float(np.corrcoef(left, right)[0, 1])


def test_the_head_column_of_fit_rows_is_out_of_fold(posts: tuple[pl.DataFrame, Floats, Blocks]) -> None:
    label = posts[1]
    out_of_fold, in_sample, new = matrices(posts)
    column = out_of_fold.names.index("image_oof_ridge")
    chance = 3 / USERS**0.5
    assert abs(correlation(out_of_fold.values[:, column], label[:FIT])) < chance
    assert abs(correlation(new.values[:, column], label[FIT:])) < chance
    assert correlation(in_sample.values[:, column], label[:FIT]) > 2 * chance
    others = [place for place in range(len(new.names)) if place != column]
    np.testing.assert_array_equal(out_of_fold.values[:, others], in_sample.values[:, others])


def test_trees_on_the_in_sample_column_look_brilliant_and_fail(
    posts: tuple[pl.DataFrame, Floats, Blocks],
) -> None:
    label = posts[1]
    out_of_fold, in_sample, new = matrices(posts)
    params = replace(STACK, lightgbm=replace(STACK.lightgbm, feature_fraction=1.0))

    def scores(matrix: Matrix) -> tuple[float, float]:
        """Correlation with the label on the train rows as `matrix` shows them, and on new rows."""
        booster = lgb.train(lightgbm_params(params, 0), lgb.Dataset(matrix.values, label[:FIT]), 30)
        seen, unseen = (np.asarray(booster.predict(values)) for values in (matrix.values, new.values))
        return correlation(seen, label[:FIT]), correlation(unseen, label[FIT:])

    brilliant, failed = scores(in_sample)
    honest, found = scores(out_of_fold)
    assert brilliant > honest  # judged on the rows it was fitted on, the trap wins
    assert found > failed + 0.1
    assert brilliant - failed > 0.3 > honest - found
