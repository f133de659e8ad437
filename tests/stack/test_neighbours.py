"""Neighbours against a slow reference, and who never counts among them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from popularity.core.arrays import Float32Array, Int64Array
from popularity.core.contracts import FoldKey
from popularity.core.errors import ConfigError
from popularity.stack import StackModel, neighbours
from popularity.stack.feature_blocks import read_blocks
from popularity.stack.matrix import FeatureGroup, MatrixEncoder
from popularity.stack.neighbours import COLUMNS, N_NEAREST, TEMPERATURE, Neighbours
from popularity.validation.folds import Fold
from tests.stack.small_stack import STACK, fit_stack, random_blocks, write_blocks

FIT, NEW = 90, 30
DAY = 86_400_000_000  # microseconds


def spread(rows: int, seed: int) -> Float32Array:
    return np.random.default_rng(seed).normal(size=(rows, 5)).astype(np.float32)


def names(rows: int, seed: int, users: int = 12) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    return np.array([f"{user}@N" for user in np.random.default_rng(seed).integers(users, size=rows)], dtype=object)


def made_at(rows: int, seed: int) -> Int64Array:
    return np.random.default_rng(seed).permutation(np.arange(rows, dtype=np.int64) * DAY)


def test_equal_to_a_slow_reference() -> None:
    vectors, users = spread(FIT, 0), names(FIT, 1)
    label = np.random.default_rng(2).normal(size=FIT)
    queries, query_users = np.vstack([spread(NEW, 3), vectors[:10]]), np.append(names(NEW, 4, users=20), users[:10])
    queries[4] = np.nan
    vectors[7] = np.nan
    times, query_times = made_at(FIT, 5), np.append(made_at(NEW, 6) + 2, made_at(FIT, 5)[:10])
    found = Neighbours.fit(vectors, label, users, times).columns(queries, query_users, query_times)
    kept = [row for row in range(FIT) if row != 7]
    centre = vectors[kept].mean(axis=0)
    for row, vector in enumerate(queries):
        if np.isnan(vector).any():
            assert np.isnan(found[row]).all()
            continue
        cosines = {
            other: float(
                (vector - centre)
                @ (vectors[other] - centre)
                / (np.linalg.norm(vector - centre) * np.linalg.norm(vectors[other] - centre))
            )
            for other in kept
            if users[other] != query_users[row] and times[other] < query_times[row]
        }
        if not cosines:
            assert np.isnan(found[row]).all()
            continue
        near = sorted(cosines, key=lambda other: -cosines[other])[:N_NEAREST]
        weights = [np.exp(cosines[other] / TEMPERATURE) for other in near]
        expected = [
            label[near].mean(),
            np.average(label[near], weights=weights),
            1 - cosines[near[0]],
            1 - np.mean([cosines[other] for other in near]),
        ]
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-5)


def test_of_many_train_posts_a_draw_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the time would grow with the square of the posts."""
    vectors, users, times = spread(FIT, 0), names(FIT, 1), made_at(FIT, 5)
    label = np.random.default_rng(2).normal(size=FIT)
    vectors[7] = np.nan
    monkeypatch.setattr(neighbours, "MAX_POSTS", 40)
    found = Neighbours.fit(vectors, label, users, times)
    drawn = np.flatnonzero(np.isin(label, found.label))
    assert len(drawn) == len(found.vectors) == 40
    assert 7 not in drawn
    alone = Neighbours.fit(vectors[drawn], label[drawn], users[drawn], times[drawn])
    assert all(np.array_equal(own, getattr(alone, name)) for name, own in vars(found).items())
    monkeypatch.setattr(neighbours, "MAX_POSTS", FIT - 1)
    assert len(Neighbours.fit(vectors, label, users, times).vectors) == FIT - 1


def test_the_labels_of_a_user_change_nothing_in_his_rows() -> None:
    """Out of fold: a train row has neither its own label in its columns nor one of its user."""
    vectors, users = spread(FIT, 0), names(FIT, 1)
    label, times = np.random.default_rng(2).normal(size=FIT), made_at(FIT, 5)
    before = Neighbours.fit(vectors, label, users, times).columns(vectors, users, times)
    mine = users == users[0]
    after = Neighbours.fit(vectors, np.where(mine, 99.0, label), users, times).columns(vectors, users, times)
    np.testing.assert_array_equal(after[mine], before[mine])
    assert not np.array_equal(after[~mine], before[~mine])


def test_the_labels_of_later_posts_change_nothing() -> None:
    vectors, users, times = spread(FIT, 0), names(FIT, 1), made_at(FIT, 5)
    label = np.random.default_rng(2).normal(size=FIT)
    before = Neighbours.fit(vectors, label, users, times).columns(vectors, users, times)
    for late in np.argsort(times)[[10, 45, 80]]:
        later = times >= times[late]
        after = Neighbours.fit(vectors, np.where(later, 99.0, label), users, times).columns(vectors, users, times)
        earlier = times <= times[late]  # a post of the same time is not earlier
        np.testing.assert_array_equal(after[earlier], before[earlier])
        assert not np.array_equal(after[~earlier, 0], before[~earlier, 0])
    # Without a label before it, a post has none of the columns.
    assert np.isnan(before[np.argmin(times)]).all()


@pytest.mark.parametrize("others", [0, 1, N_NEAREST - 1])
def test_few_posts_of_others(others: int) -> None:
    users = np.array(["me"] * 30 + ["you"] * others, dtype=object)
    label = np.append(np.full(30, 50.0), np.full(others, 2.0))
    fitted = Neighbours.fit(spread(len(users), 0), label, users, made_at(len(users), 5))
    found = fitted.columns(spread(3, 1), np.array(["me"] * 3, dtype=object), np.full(3, len(users) * DAY))
    if others:
        np.testing.assert_allclose(found[:, :2], 2.0)
        assert ((found[:, 2] >= 0) & (found[:, 2] <= found[:, 3]) & (found[:, 3] <= 2)).all()
    else:
        assert np.isnan(found).all()


def small_fold() -> Fold:
    pids = [f"{row:04d}" for row in range(FIT + NEW)]
    rng = np.random.default_rng(0)
    features = pl.DataFrame(
        {"pid": pids, "uid": names(FIT + NEW, 1).tolist(), "hour": rng.random(FIT + NEW)}
    ).with_columns(
        *(pl.lit("same").alias(name) for name in ("category", "subcategory", "concept", "media_type", "timezone_id")),
        pl.lit("some words").alias("text"),
        pl.from_epoch(pl.int_range(pl.len()), time_unit="us").alias("posted_at"),
        pl.Series("rhythm.user_week", rng.random(FIT + NEW)),
        pl.Series("user_target.level", rng.random(FIT + NEW)),
    )
    label = rng.normal(6, 1, FIT)
    fitted_at, scored_at = np.split(np.arange(FIT + NEW, dtype=np.int64), [FIT])
    return Fold(FoldKey("holdout", 0), features.head(FIT), features.tail(NEW), label, fitted_at, scored_at, 1.0)


@pytest.fixture(scope="module")
def fold() -> Fold:
    return small_fold()


def test_a_group_is_seen_only_when_it_is_named(fold: Fold) -> None:
    posts = pl.concat([fold.train, fold.valid]).select("pid", subcategory=pl.lit("a"))
    blocks = random_blocks(posts)
    columns = replace(STACK.columns, feature_blocks=("metadata", "text"), oof_ridge=("text",))

    def seen(*feature_groups: FeatureGroup) -> set[str]:
        return set(
            MatrixEncoder.fit(fold.train, fold.label, blocks, replace(columns, feature_groups=feature_groups))[1].names
        )

    none = seen()
    assert "hour" in none
    assert not any("rhythm" in name or "user_target" in name or "neighbours" in name for name in none)
    assert seen("rhythm") - none == {"rhythm.user_week"}
    assert seen("user_target") - none == {"user_target.level"}
    assert seen("neighbours") - none == {f"text_{column}" for column in COLUMNS}
    with pytest.raises(ConfigError, match="statistics"):
        seen("image")


def test_a_saved_model_with_signals_predicts_alike(fold: Fold, tmp_path: Path) -> None:
    """Neighbours and statistics of images are columns of the fitted and of the loaded model."""
    posts = pl.concat([fold.train, fold.valid]).select("pid", subcategory=pl.lit("a"))
    image, text, prototype = write_blocks(random_blocks(posts), tmp_path)
    statistics = posts.with_columns(
        pl.Series("image_statistics.text", np.random.default_rng(5).random(posts.height), pl.Float32)
    )
    statistics.filter(pl.col("pid") != "0003").write_parquet(image / "statistics.parquet")
    blocks = read_blocks(image, text, prototype)
    columns = replace(STACK.columns, feature_groups=("neighbours", "image", "rhythm"))
    model = fit_stack(fold, blocks, replace(STACK, columns=columns))
    matrix = model.encoder.apply(fold.valid, blocks)
    assert {"image_statistics.text", "image_neighbours.mean", "prototype_neighbours.distance"} <= set(matrix.names)
    assert matrix.blocks[matrix.names.index("image_statistics.text")] == "image_statistics"
    column = MatrixEncoder.fit(fold.train, fold.label, blocks, columns)[1]
    assert np.isnan(column.values[3, column.names.index("image_statistics.text")])
    model.save(tmp_path / "model")
    loaded = StackModel.load(tmp_path / "model")
    np.testing.assert_array_equal(
        loaded.predict(fold.valid, blocks, fold.valid_at).values,
        model.predict(fold.valid, blocks, fold.valid_at).values,
    )
