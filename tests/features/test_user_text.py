"""What users tell of themselves, as columns: from vectors, from texts, of nobody; and what it tells of new users."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from popularity.core.contracts import USERS, check_table
from popularity.features import featurize
from popularity.features.user_text import known_user_text, no_users, user_text_features
from popularity.stack.fit import fit_and_predict
from popularity.validation import make_splits, rows_of
from popularity.validation.folds import load_fold
from tests.random_posts import random_images, random_posts
from tests.stack.small_stack import FEATURIZE, SPLIT, STACK, posts_with_signal

SILENT = {"user_description": pl.lit(None, pl.String), "location_description": pl.lit(None, pl.String)}


def users_with(vectors: dict[str, list[float] | None]) -> pl.DataFrame:
    """Contract USERS of descriptions alone, the vectors filled up to 399 numbers."""
    filled = [None if own is None else [*own, *[0.0] * (399 - len(own))] for own in vectors.values()]
    schema = {name: rule.dtype for name, rule in USERS.columns.items()}
    columns = {"uid": list(vectors), "description_vector": filled, "location_vector": [None] * len(vectors)}
    users = pl.DataFrame(columns, schema=schema).sort("uid")
    check_table(users, USERS)
    return users


def drawn_users(posts: pl.DataFrame, seed: int = 0, width: int = 3) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return users_with({uid: rng.normal(size=width).tolist() for uid in posts["uid"].unique().sort()})


def test_columns_hold_what_the_vectors_span() -> None:
    """Vectors of three directions lose nothing in three columns: products between users stay."""
    posts = random_posts(0)
    users = drawn_users(posts)
    found = (
        user_text_features(posts, users, 3, seed=0).join(posts.select("pid", "uid"), on="pid").unique("uid").sort("uid")
    )
    assert found.select("^user_text\\..*$").columns == ["user_text.00", "user_text.01", "user_text.02"]
    columns = found.select("^user_text\\..*$").to_numpy()
    vectors = (
        users.filter(pl.col("uid").is_in(found["uid"].implode()))["description_vector"].list.to_array(399).to_numpy()
    )
    np.testing.assert_allclose(columns @ columns.T, vectors @ vectors.T, atol=1e-4)


def test_every_post_of_a_user_has_his_profile_and_no_other() -> None:
    posts = random_posts(1)
    users = drawn_users(posts)
    silent = users["uid"][:3].to_list()
    nothing = pl.when(pl.col("uid") == silent[0]).then(None).when(pl.col("uid") == silent[1]).then([0.0] * 399)
    users = users.with_columns(nothing.otherwise("description_vector").alias("description_vector"))
    users = users.filter(pl.col("uid") != silent[2])
    found = user_text_features(posts, users, 2, seed=0).join(posts.select("pid", "uid"), on="pid")
    assert found["pid"].to_list() == posts["pid"].sort().to_list()
    assert found.group_by("uid").agg(pl.col("^user_text\\..*$").n_unique()).drop("uid").to_numpy().max() == 1
    untold = found["user_text.00"].is_null()
    assert set(found.filter(untold)["uid"]) == set(silent)


def test_texts_stand_where_there_are_no_vectors() -> None:
    posts = random_posts(2).with_columns(
        user_description=pl.when(pl.col("uid") < "5").then(pl.lit("cats and dogs")).otherwise(pl.lit("cars and roads")),
        location_description=pl.when(pl.col("uid") == "1@N0").then(pl.lit("Paris")),
    )
    found = user_text_features(posts, no_users(), 2, seed=0).join(posts, on="pid")
    alike = found.filter(pl.col("uid") != "1@N0")
    assert alike.select("user_text.00", "user_text.01", "user_description").n_unique() == 2
    others = user_text_features(posts, drawn_users(posts), 2, seed=0)
    assert not others.equals(found.select("pid", "user_text.00", "user_text.01"))


@pytest.mark.parametrize("components", [0, 8])
def test_without_a_profile_there_is_no_column(components: int) -> None:
    posts = random_posts(3).with_columns(**SILENT)
    assert user_text_features(posts, no_users(), components, seed=0).columns == ["pid"]
    assert user_text_features(posts, drawn_users(posts).head(1), 8, seed=0).columns == [
        "pid"
    ]  # one user differs from none


def test_posts_in_any_order_and_users_who_are_not_shown_change_nothing() -> None:
    posts = random_posts(4)
    users = drawn_users(posts)
    half = posts.filter(pl.col("uid").is_in(users["uid"][::2].implode()))
    expected = user_text_features(half, users, 3, seed=0)
    shuffled = half.sample(fraction=1.0, shuffle=True, seed=1)
    shown = users.filter(pl.col("uid").is_in(half["uid"].implode()))
    assert user_text_features(shuffled, shown, 3, seed=0).equals(expected)


def test_a_later_post_has_the_profile_of_its_user() -> None:
    posts = random_posts(5)
    context = user_text_features(posts, drawn_users(posts), 3, seed=0)
    new = posts.head(4).with_columns(pid=pl.format("new-{}", "pid"))
    new = new.with_columns(uid=pl.when(pl.col("pid") == new["pid"][0]).then(pl.lit("nobody")).otherwise("uid"))
    found = known_user_text(new, posts, context)
    expected = posts.head(4).select("pid").join(context, on="pid").with_columns(pid=pl.format("new-{}", "pid"))
    assert found.filter(pid=new["pid"][0])["user_text.00"].to_list() == [None]
    assert_frame_equal(found.filter(pl.col("pid") != new["pid"][0]), expected.slice(1).sort("pid"), check_exact=True)
    assert known_user_text(new, posts, context.select("pid")).columns == ["pid"]


def test_profiles_foretell_users_without_a_past(tmp_path: Path) -> None:
    """Labels follow the user, his vector says how: folds by user, where nobody who is scored has a past."""
    posts, blocks = posts_with_signal(3)
    users = drawn_users(posts, width=4)
    renown = dict(zip(users["uid"], users["description_vector"].list.get(0) * 2.0, strict=True))
    rng = np.random.default_rng(0)
    label = 6 + np.array([renown[uid] for uid in posts["uid"]]) + rng.normal(0, 0.5, posts.height)
    posts = posts.with_columns(label=pl.when(pl.col("split") == "train").then(pl.Series(label.round(2))))
    splits = make_splits(posts, SPLIT)[0].filter(scheme="group")
    needed = pl.concat([splits, make_splits(posts, SPLIT)[0].filter(scheme="forward")])
    featurize(posts, random_images(posts, seed=0), needed, FEATURIZE, tmp_path, users)
    key, rows = next(iter(rows_of(splits, ["group"])))
    fold = load_fold(key, rows, posts, tmp_path)
    truth = fold.valid.select("pid").join(posts, on="pid", maintain_order="left")["label"].to_numpy()
    error = {}
    for feature_groups in ((), ("user_text",)):
        columns = replace(STACK.columns, feature_blocks=("metadata",), oof_ridge=(), feature_groups=feature_groups)
        each = fit_and_predict(fold, blocks, replace(STACK, columns=columns, n_seeds=1))
        error[feature_groups] = np.abs(each.sort("pid")["prediction"].to_numpy() - truth).mean()
    assert error[("user_text",)] < 0.75 * error[()]
