"""Labels are the known sum, and what the truth claims about them holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr

from popularity.core.atomic import read_json
from popularity.demo import DemoParams, generate
from popularity.demo.effects import EFFECTS, label_of, views_of
from popularity.demo.images import SHAPES, TEXTURES
from popularity.demo.posts import choose_classes
from popularity.demo.users import draw_users
from popularity.demo.vocabulary import CATEGORIES, MOODS
from tests.conftest import Dataset


@pytest.fixture(scope="module")
def effects(tiny_dataset: Dataset) -> pl.DataFrame:
    return pl.read_parquet(tiny_dataset.truth / "effects.parquet")


def test_effects_add_up_to_the_expectation_and_the_label(effects: pl.DataFrame, tiny_dataset: Dataset) -> None:
    assert effects.columns == ["pid", "split", *EFFECTS, "noise", "expected", "label"]
    assert effects["pid"].is_sorted()
    total = effects.select(EFFECTS).to_numpy().sum(axis=1)
    np.testing.assert_allclose(total, effects["expected"].to_numpy(), atol=1e-9)
    level, label = total + effects["noise"].to_numpy(), effects["label"].to_numpy()
    # A label moves by whole views: half a view, seen in doublings, and half of the last decimal.
    tolerance = np.log2(1 + 0.5 / np.exp2(np.maximum(level, 1)) / (1 - 0.25)) + 0.005
    assert (np.abs(label - np.maximum(level, 1)) <= tolerance + 1e-9).all()


def test_labels_are_whole_views_to_two_decimals(effects: pl.DataFrame, tiny_dataset: Dataset) -> None:
    latents = pl.read_parquet(tiny_dataset.truth / "latents.parquet")
    assert latents["pid"].to_list() == effects["pid"].to_list()
    views = latents["views"].to_numpy()
    assert views.dtype == np.int64
    assert views.min() >= 1
    np.testing.assert_array_equal(effects["label"].to_numpy(), np.round(np.log2(views + 1), 2))


def test_views_of_small_and_large_levels() -> None:
    views = views_of(np.array([-5.0, 0.0, 1.0, 2.0, 10.0]))
    assert views.tolist() == [1, 1, 1, 3, 1023]
    assert label_of(views).tolist() == [1.0, 1.0, 1.0, 2.0, 10.0]


def test_published_and_held_back_labels_are_those_of_the_truth(effects: pl.DataFrame, tiny_dataset: Dataset) -> None:
    folder = tiny_dataset.root / "train_allmetadata_json"
    published = [float(line) for line in (folder / "train_label.txt").read_text().splitlines()]
    pids = [row["Pid"] for row in read_json(folder / "train_text.json")]
    label = dict(effects.filter(split="train").select("pid", "label").iter_rows())
    assert dict(zip(pids, published, strict=True)) == label
    held_back = pl.read_parquet(tiny_dataset.truth / "test_labels.parquet")
    assert held_back.equals(effects.filter(split="test").select("pid", "label"))


def test_best_reachable_scores_are_those_of_the_expectation(effects: pl.DataFrame, tiny_dataset: Dataset) -> None:
    truth = read_json(tiny_dataset.truth / "truth.json")
    assert truth["parameters"]["seed"] == 20
    assert truth["effects"] == list(EFFECTS)
    for part, table in (("test", effects.filter(split="test")), ("all", effects)):
        expected, label = table["expected"].to_numpy(), table["label"].to_numpy()
        assert truth["best"][part]["posts"] == len(table)
        assert truth["best"][part]["src"] == pytest.approx(spearmanr(expected, label).statistic, abs=1e-4)
        assert truth["best"][part]["mae"] == pytest.approx(np.mean(np.abs(expected - label)), abs=1e-4)
    assert 0.75 < truth["best"]["test"]["src"] < 0.9


def test_level_falls_over_time(effects: pl.DataFrame) -> None:
    train, test = (effects.filter(split=split) for split in ("train", "test"))
    fall = np.mean(train["trend"].to_numpy()) - np.mean(test["trend"].to_numpy())
    assert fall == pytest.approx(1.0, abs=0.25)
    assert np.mean(train["label"].to_numpy()) == pytest.approx(6.4, abs=0.4)
    assert np.std(train["label"].to_numpy()) == pytest.approx(2.4, abs=0.5)


def test_without_a_trend_the_level_stays_and_all_else_is_as_it_was(
    effects: pl.DataFrame, tiny_params: DemoParams, tmp_path: Path
) -> None:
    generate(replace(tiny_params, trend=0.0), tmp_path / "data", tmp_path / "truth")
    level = pl.read_parquet(tmp_path / "truth" / "effects.parquet")
    assert (level["trend"] == 0).all()
    changed = ["trend", "expected", "label"]
    assert level.drop(changed).equals(effects.drop(changed))
    train, test = (level.filter(split=split)["expected"].to_numpy().mean() for split in ("train", "test"))
    assert abs(train - test) < 0.6


def test_a_trend_along_the_collection_knows_no_dates(tiny_params: DemoParams, tmp_path: Path) -> None:
    """It falls along the Pids, the test posts come late in them, and the contents of the data set stay the same."""
    collected = replace(tiny_params, posts=2000, trend_along="collection")
    generate(collected, tmp_path / "data", tmp_path / "truth", drawn=0)
    table = pl.read_parquet(tmp_path / "truth/effects.parquet").with_columns(pl.col("pid").cast(pl.Int64)).sort("pid")
    fall = table["trend"].to_numpy()
    assert (np.diff(fall) < 0).all()
    assert fall[0] - fall[-1] == pytest.approx(tiny_params.trend, abs=0.01)
    train, test = (table.filter(split=split)["trend"].to_numpy().mean() for split in ("train", "test"))
    assert train - test > 0.4
    metadata = tmp_path / "data/train_allmetadata_json"
    rows = read_json(metadata / "train_temporalspatial_information.json")
    pids, dates = (np.array([int(row[name]) for row in rows]) for name in ("Pid", "Postdate"))
    assert abs(spearmanr(pids, dates).statistic) < 0.1


def test_effects_follow_what_can_be_seen(effects: pl.DataFrame, tiny_dataset: Dataset) -> None:
    latents = pl.read_parquet(tiny_dataset.truth / "latents.parquet").join(effects, on="pid", validate="1:1")
    known = latents.drop_nulls("agreement")
    for effect, latent in (("image_quality", "quality"), ("words", "mood"), ("agreement", "agreement")):
        assert np.corrcoef(known[effect], known[latent])[0, 1] > 0.999
    texts = {
        row["Pid"]: f"{row['Title']} {row['Alltags']}".lower().split()
        for split in ("train", "test")
        for row in read_json(tiny_dataset.root / f"{split}_allmetadata_json/{split}_text.json")
    }
    for pid, mood in latents.select("pid", "mood").iter_rows():
        assert mood == pytest.approx(sum(weight for word, weight in MOODS.items() if word in texts[pid]))


def test_some_texts_contradict_the_image(tiny_dataset: Dataset) -> None:
    agreement = pl.read_parquet(tiny_dataset.truth / "latents.parquet")["agreement"].drop_nulls()
    assert 0.08 < np.mean(agreement.to_numpy() < 0.2) < 0.35
    assert 0.4 < np.mean(agreement.to_numpy() > 0.7) < 0.85


@pytest.mark.parametrize("posts", [300, 3000])
@pytest.mark.parametrize("test_fraction", [0.1, 0.3, 0.5])
def test_unseen_share_lands_for_other_sizes(posts: int, test_fraction: float) -> None:
    params = DemoParams(1, posts, posts // 5, 33, 32, test_fraction, "A", 2.3, "time")
    shares = np.array([used.share for used in choose_classes(33)])
    users = draw_users(params, shares, np.random.default_rng(1))
    assert users.train_posts.sum() + users.test_posts.sum() == posts
    assert users.test_posts.sum() == round(posts * test_fraction)
    unseen = users.test_posts[users.train_posts == 0].sum() / users.test_posts.sum()
    assert unseen == pytest.approx(0.64, abs=0.05)


def test_classes_are_the_public_ones_and_names_repeat_between_parents() -> None:
    names = {category.name for category in CATEGORIES}
    assert names == {
        *("Animal", "Electronics", "Entertainment", "Family", "Fashion", "Food", "Holiday&Celebrations"),
        *("Social&People", "Travel&Active&Sports", "Urban", "Whether&Season"),
    }
    below = [(sub, category) for category in CATEGORIES for sub in category.subcategories]
    subcategories = [sub.name for sub, _ in below]
    concepts = [concept for sub, _ in below for concept in set(sub.concepts)]
    assert len(set(subcategories)) < len(subcategories)
    assert len(set(concepts)) < len(concepts)
    assert all(2 <= len(set(sub.concepts)) <= 4 for sub, _ in below)
    assert {sub.shape for sub, _ in below} == set(SHAPES)
    assert {category.texture for category in CATEGORIES} == set(TEXTURES)


def test_few_subcategories_still_spread_over_categories() -> None:
    classes = choose_classes(8)
    assert len({used.category.name for used in classes}) == 8
    assert sum(used.share for used in classes) == pytest.approx(1)
    assert len({used.category.name for used in choose_classes(33)}) == 11
