"""A class that only valid rows have: train rows are masked, and read as the valid rows of that class are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from popularity.core.arrays import BoolArray, Float32Array
from popularity.features import FeatureColumn, featurize
from popularity.stack import Blocks, StackModel
from popularity.stack.effort import Effort
from popularity.stack.fit import EncodedFold, encode_fold, fit_fold
from popularity.stack.masking import rows_to_mask
from popularity.stack.matrix import MatrixEncoder
from popularity.validation import make_splits, rows_of
from popularity.validation.folds import Fold, load_fold
from tests.random_posts import random_images
from tests.stack.small_stack import ALL_PARTS, FEATURIZE, SPLIT, STACK, post_classes, posts_with_signal

NEW = "C1/new"
RAW = replace(STACK, columns=replace(STACK.columns, n_components=0, feature_groups=("class_time", "user_target")))


def fold_of(folder: Path, share: float) -> tuple[Fold, Blocks]:
    """The first forward split, in which `share` of the valid rows, and they alone, are of the class NEW."""
    posts, blocks = posts_with_signal(3, train=240, test=40)
    splits = make_splits(posts, SPLIT)[0]
    (key, rows) = next(iter(rows_of(splits, ["forward"])))
    valid = rows.filter(role="valid")["pid"].sort()
    new = pl.col("pid").is_in(valid.head(round(share * len(valid))).implode())
    keys = {"category": "C1", "subcategory": NEW, "concept": f"{NEW}/x"}
    posts = posts.with_columns(
        pl.when(new).then(pl.lit(value)).otherwise(name).alias(name) for name, value in keys.items()
    )
    featurize(posts, random_images(posts.sort("pid"), seed=0), splits, FEATURIZE, folder)
    assert blocks.masked is not None
    return load_fold(key, rows, posts, folder), replace(
        blocks, masked=replace(blocks.masked, classes=post_classes(posts))
    )


def masked_rows(fold: Fold, blocks: Blocks) -> BoolArray:
    train, valid = (blocks.classes_of(rows["pid"]) for rows in (fold.train, fold.valid))
    assert train is not None
    assert valid is not None
    return rows_to_mask(train, valid)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def made(folder: Path) -> tuple[Fold, Blocks]:
    return fold_of(folder, share=0.3)


def column(values: Float32Array, encoded: EncodedFold, name: str) -> Float32Array:
    found: Float32Array = values[:, encoded.train.names.index(name)]
    return found


def test_masked_train_rows_are_read_as_valid_rows_of_an_unseen_class(made: tuple[Fold, Blocks]) -> None:
    fold, blocks = made
    encoded = encode_fold(fold, blocks, RAW)
    assert encoded.valid is not None
    new = (fold.valid["subcategory"] == NEW).to_numpy()
    masked = masked_rows(fold, blocks)
    assert masked.sum() == round(new.mean() * len(masked)) > 20
    flags = {"train": (encoded.train, masked), "valid": (encoded.valid, new)}
    for matrix, rows in flags.values():
        flag = column(matrix.values, encoded, "class_unseen")
        there = ~np.isnan(flag)
        np.testing.assert_array_equal(flag[there], rows[there])  # a few random posts have no scalars

    features = [
        one for one in encoded.train.columns if one.block == "metadata" and FeatureColumn.named(one.name).of_class
    ]
    names = [one.name for one in features]
    assert {"subcategory", "concept", "subcategory_posts", "subcategory_target_level", "user_target.own_class"} <= set(
        names
    )
    assert {"class_time.theme_age", "class_time.concept_level", "day_subcategory_share"} <= set(names)
    assert "user_subcategory_share" in names
    assert "category" not in names
    for name in names:
        expected = 0.0 if FeatureColumn.named(name).counts_class_past else np.nan
        for matrix, rows in flags.values():
            np.testing.assert_array_equal(column(matrix.values, encoded, name)[rows], expected, err_msg=name)
            assert not (column(matrix.values, encoded, name)[~rows] == expected).all(), name

    # What the network gives for them is what it gives without their class.
    assert blocks.masked is not None
    for part, width in (("global_prompt", 4), ("logits", 6)):
        columns = [f"{part}_component_{index:03d}" for index in range(width)]
        for frame, (matrix, rows) in zip((fold.train, fold.valid), flags.values(), strict=True):
            pids = frame["pid"].filter(rows).to_list()
            found = np.stack([column(matrix.values, encoded, name)[rows] for name in columns], axis=1)
            block = blocks.masked.vectors[part]
            stored = block.rows(pids)
            np.testing.assert_array_equal(found[stored >= 0], block.values[stored[stored >= 0]].astype(np.float32))
    attended = blocks.vectors["attended_image"]  # it does not depend on the class
    stored = attended.rows(fold.train["pid"].filter(masked).to_list())
    found = column(encoded.train.values, encoded, "attended_image_component_000")[masked]
    np.testing.assert_array_equal(found[stored >= 0], attended.values[stored[stored >= 0], 0].astype(np.float32))


def test_without_a_row_of_an_unseen_class_none_is_masked(folder: Path) -> None:
    fold, blocks = fold_of(folder / "none", share=0.0)
    assert not masked_rows(fold, blocks).any()
    encoded = encode_fold(fold, blocks, RAW)
    encoder, matrix = MatrixEncoder.fit(fold.train, fold.label, replace(blocks, masked=None), RAW.columns)
    np.testing.assert_array_equal(encoded.train.values, matrix.values)
    assert encoded.valid is not None
    np.testing.assert_array_equal(encoded.valid.values, encoder.apply(fold.valid, replace(blocks, masked=None)).values)


def test_the_empty_class_is_a_class() -> None:
    train = pl.Series([""] * 10 + ["a"] * 60 + ["b"] * 30)
    valid = pl.Series(["a"] * 8 + ["", "c"])
    masked = rows_to_mask(train, valid)
    assert masked.sum() == 10
    assert not masked[:10].any()
    assert not rows_to_mask(train, valid.head(9)).any()
    assert rows_to_mask(train.tail(90), valid).sum() == 18
    np.testing.assert_array_equal(rows_to_mask(train, valid), masked)


def test_a_class_under_another_first_level_is_the_one_that_the_network_knows(made: tuple[Fold, Blocks]) -> None:
    """The class is that of the network, whose names may start below the first level, and not the published path."""
    fold, blocks = made
    assert blocks.masked is not None
    known = blocks.masked.classes.with_columns(pl.col("class").replace(NEW, fold.train["subcategory"][0]))
    blocks = replace(blocks, masked=replace(blocks.masked, classes=known))
    assert not masked_rows(fold, blocks).any()
    encoded = encode_fold(fold, blocks, RAW)
    assert encoded.valid is not None
    new = (fold.valid["subcategory"] == NEW).to_numpy()
    assert not np.nansum(column(encoded.valid.values, encoded, "class_unseen")[new])
    assert not np.isnan(column(encoded.valid.values, encoded, "day_subcategory_share")[new]).all()


def test_what_an_unseen_class_is_worth_is_learned(made: tuple[Fold, Blocks], tmp_path: Path) -> None:
    """Posts without a known class are 3 above the others: without masked rows the stack could not know."""
    fold, blocks = made
    masked = masked_rows(fold, blocks)
    fold = replace(fold, label=fold.label + 3.0 * masked)
    params = replace(ALL_PARTS, detrend="none", learners=("lightgbm",), num_boost_round=80)
    encoded = encode_fold(fold, blocks, params)
    assert encoded.valid is not None
    model = fit_fold(encoded, params, Effort.full(params))
    predicted = model.predict_each(encoded.valid, fold.valid_at).mean(axis=0)
    new = (fold.valid["subcategory"] == NEW).to_numpy()
    assert predicted[new].mean() - predicted[~new].mean() > 1.5
    model.save(tmp_path)
    loaded = StackModel.load(tmp_path)
    again = loaded.predict_each(loaded.encoder.apply(fold.valid, blocks), fold.valid_at).mean(axis=0)
    np.testing.assert_array_equal(again, predicted)
