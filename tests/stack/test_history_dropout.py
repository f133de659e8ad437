"""Train rows that are read without their user's past are read exactly as posts of an unseen user."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from popularity.core.arrays import Float32Array
from popularity.features import FeatureColumn, featurize
from popularity.features.build import fold_label_features, label_inputs
from popularity.stack.effort import Effort
from popularity.stack.fit import encode_fold, fit_fold
from popularity.stack.history_dropout import PAST, drop_histories
from popularity.stack.matrix import Matrix
from popularity.validation import make_splits, rows_of
from popularity.validation.folds import Fold, load_fold
from tests.random_posts import random_images, random_posts
from tests.stack.small_stack import FEATURIZE, SPLIT, STACK, random_blocks

METADATA = replace(
    STACK, columns=replace(STACK.columns, feature_blocks=("metadata",), feature_groups=("user_target", "rhythm"))
)
Made = tuple[Fold, Matrix, pl.DataFrame, pl.DataFrame]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The last forward split with the matrix of its train rows, its rows (pid, role), and the posts."""
    folder = tmp_path_factory.mktemp("features")
    posts = random_posts(5, train=400, test=60, users=60)
    splits = make_splits(posts, SPLIT)[0]
    featurize(posts, random_images(posts, seed=0), splits, FEATURIZE, folder)
    key, rows = list(rows_of(splits, ["forward"]))[-1]
    fold = load_fold(key, rows, posts, folder)
    return fold, encode_fold(fold, random_blocks(posts), METADATA).train, rows, posts


def past_of(matrix: Matrix) -> Float32Array:
    return matrix.values[:, matrix.names.index(PAST)]


def test_a_hidden_row_has_the_columns_of_a_post_by_an_unseen_user(made: Made) -> None:
    fold, matrix, rows, posts = made
    found = drop_histories(matrix, fold.posted_at, 0.5)
    of_past = np.array([FeatureColumn.named(name).of_user_past for name in matrix.names])
    names = [name for name, kept in zip(matrix.names, of_past, strict=True) if kept]
    assert {"uid_target_level", "user_target.spread", "user_target.own_class"} < set(names)
    had = past_of(matrix) > 0
    hidden = np.flatnonzero(had & (past_of(found) == 0))
    assert len(hidden) == round(0.5 * had.sum()) > 10
    left = np.setdiff1d(np.arange(len(had)), hidden)
    np.testing.assert_array_equal(found.values[left], matrix.values[left])
    np.testing.assert_array_equal(found.values[:, ~of_past], matrix.values[:, ~of_past])
    for row in hidden[:: len(hidden) // 4]:
        pid = matrix.pids[row]
        other = posts.with_columns(uid=pl.when(pid=pid).then(pl.lit("new@N0")).otherwise("uid"))
        expected = fold_label_features(rows, label_inputs(other), FEATURIZE, timedelta(days=1)).filter(pid=pid)
        wanted = expected.select(pl.col(names).cast(pl.Float32)).to_numpy()[0]
        np.testing.assert_allclose(found.values[row, of_past], wanted, rtol=1e-6, err_msg=pid)


def test_the_draw_is_seeded_and_without_a_share_or_a_past_nothing_changes(made: Made) -> None:
    fold, matrix, _, _ = made
    first, again = (drop_histories(matrix, fold.posted_at, 0.3) for _ in range(2))
    np.testing.assert_array_equal(first.values, again.values)
    assert (past_of(drop_histories(matrix, fold.posted_at, 0.3, seed=1)) != past_of(first)).any()
    assert drop_histories(matrix, fold.posted_at, 0.0) is matrix
    known = np.flatnonzero(past_of(matrix) > 0)
    np.testing.assert_array_equal(
        drop_histories(matrix.take(known), fold.posted_at[known], 0.5).values, matrix.values[known]
    )


def test_a_fit_relies_less_on_the_past(made: Made) -> None:
    """The label is the user's past level alone: with most pasts hidden, less of it is left in the predictions."""
    fold, matrix, _, posts = made
    level = np.nan_to_num(matrix.values[:, matrix.names.index("uid_target_level")].astype(np.float64))
    fold = replace(fold, label=5 + 3 * level)
    encoded = encode_fold(fold, random_blocks(posts), METADATA)
    assert encoded.valid is not None
    spreads = []
    for share in (0.0, 0.8):
        params = replace(METADATA, history_dropout=share, sample_weight_half_life_days=0.0, num_boost_round=40)
        model = fit_fold(encoded, params, Effort.full(params))
        spreads.append(model.predict_each(encoded.train, fold.posted_at).std())
    assert spreads[1] < 0.7 * spreads[0]
