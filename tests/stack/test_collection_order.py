"""Labels that fall along the Pids and not along the dates: the group and the trend `collection_order` follow them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from popularity.core.arrays import Float64Array
from popularity.features import featurize
from popularity.stack import Blocks, StackModel
from popularity.stack.fit import encode_fold, trend_members
from popularity.validation import make_splits, rows_of
from popularity.validation.folds import Fold, load_fold
from tests.random_posts import random_images, random_posts
from tests.stack.small_stack import ALL_PARTS, FEATURIZE, SPLIT, STACK, fit_stack, random_blocks

FALL = 5.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fold, Blocks, Float64Array]:
    """The last forward split of posts whose Pids have nothing to do with their dates; true labels of its valid rows."""
    folder = tmp_path_factory.mktemp("features")
    posts = random_posts(4, train=500, test=60, users=140)
    rng = np.random.default_rng(4)
    place = rng.permutation(posts.height)
    label = 8 - FALL * place / posts.height + rng.normal(0, 0.4, posts.height)
    posts = posts.with_columns(
        pid=pl.Series([str(1000 + one) for one in place]),
        label=pl.when(pl.col("split") == "train").then(pl.Series(label)),
    ).sort("pid")
    splits = make_splits(posts, SPLIT)[0]
    featurize(posts, random_images(posts, seed=0), splits, FEATURIZE, folder)
    key, rows = list(rows_of(splits, ["forward"]))[-1]
    fold = load_fold(key, rows, posts, folder)
    truth = fold.valid.select("pid").join(posts, on="pid", how="left", maintain_order="left")["label"].to_numpy()
    return fold, random_blocks(posts), truth


def error(model: StackModel, fold: Fold, blocks: Blocks, truth: Float64Array) -> float:
    return float(np.abs(model.predict(fold.valid, blocks, fold.valid_at).values - truth).mean())


def test_the_numbers_are_columns_only_of_the_group(made: tuple[Fold, Blocks, Float64Array]) -> None:
    fold, blocks, _ = made
    columns = replace(STACK.columns, feature_blocks=("metadata",))
    every = replace(columns, feature_groups=("user_target", "words", "rhythm", "class_time", "user_text"))
    assert not [name for name in encode_fold(fold, blocks, replace(STACK, columns=every)).train.names if "pid" in name]
    own = replace(columns, feature_groups=("collection_order",))
    matrix = encode_fold(fold, blocks, replace(STACK, columns=own)).train
    found = matrix.values[:, matrix.names.index("collection_order.pid")]
    np.testing.assert_array_equal(found, [float(pid) for pid in matrix.pids])
    assert matrix.names.index("collection_order.uid")


def test_the_trend_and_the_group_follow_the_labels(made: tuple[Fold, Blocks, Float64Array], tmp_path: Path) -> None:
    fold, blocks, truth = made
    trend = replace(ALL_PARTS, detrend="collection_order")
    group = replace(ALL_PARTS, columns=replace(ALL_PARTS.columns, feature_groups=("collection_order",)))
    model = fit_stack(fold, blocks, trend)
    errors = [error(one, fold, blocks, truth) for one in (fit_stack(fold, blocks, ALL_PARTS), model)]
    errors.append(error(fit_stack(fold, blocks, group), fold, blocks, truth))
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.8 * errors[0]
    model.save(tmp_path)
    assert error(StackModel.load(tmp_path), fold, blocks, truth) == errors[1]

    members = trend_members(fold, model.trend)  # its mean at every date: it knows nothing of dates
    assert members["member"].unique().to_list() == ["collection_order"]
    assert members["value"].n_unique() == 1
    assert members["value"][0] == pytest.approx(truth.mean(), abs=0.5)
