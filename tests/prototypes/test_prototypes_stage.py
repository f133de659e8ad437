"""The stage on small tables: contracts, bytes, which posts may represent, and posts without image, title or class."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import StrictBool
from ruamel.yaml import YAML
from safetensors.numpy import load_file

from popularity.core.arrays import normalize_rows
from popularity.core.config import load_params
from popularity.core.contracts import CLASSES, LEVELS, MEMBERS, MODALITIES, POSTS, check_table, read_table, write_table
from popularity.core.errors import ConfigError, DataError
from popularity.core.vectors import Block, write_block
from popularity.prototypes.build import (
    Prototypes,
    PrototypesParams,
    build_prototypes,
    member_classes,
    write_prototypes,
)
from popularity.prototypes.classes import ClassIndex
from popularity.prototypes.vectors import ClassSums, leave_one_out
from stages import prototypes
from tests.random_posts import random_posts
from tests.repository import stage_flags

WIDTHS = {"visual": 6, "text": 4}


def params(**changes: Any) -> PrototypesParams:
    return replace(PrototypesParams(seed=0, max_per_class=5, class_name_format="auto"), **changes)


def block(pids: list[str], width: int, seed: int = 3) -> Block:
    values = np.random.default_rng(seed).normal(size=(len(pids), width)).astype(np.float16)
    about = {
        "encoder": f"encoder {width}",
        "weights": f"sha256:{width}",
        "preprocessing": {},
        "pooling": "mean",
        "columns": [f"column_{column}" for column in range(width)],
    }
    return Block(values, pids, about)


def blocks(posts: pl.DataFrame, without_picture: set[str] | None = None) -> tuple[Block, Block]:
    """Vectors that depend on the pid alone."""
    pids = posts["pid"].sort().to_list()
    whole = {modality: block(pids, width) for modality, width in WIDTHS.items()}
    kept = [row for row, pid in enumerate(pids) if pid not in (without_picture or set())]
    visual = Block(whole["visual"].values[kept], [pids[row] for row in kept], whole["visual"].metadata)
    return visual, whole["text"]


def build(
    posts: pl.DataFrame, transductive: bool = True, without_picture: set[str] | None = None, **changes: Any
) -> Prototypes:
    return build_prototypes(posts, *blocks(posts, without_picture), params(**changes), transductive=transductive)


def written(built: Prototypes, folder: Path) -> dict[str, bytes]:
    write_prototypes(built, folder)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def posts() -> pl.DataFrame:
    return random_posts(0)


def members_of(built: Prototypes, level: str, key: str, modality: str) -> list[str]:
    (index,) = built.classes.filter(level=level, key=key)["index"]
    return built.members.filter(level=level, index=index, modality=modality)["pid"].to_list()


def test_stage_writes_what_the_contracts_say(posts: pl.DataFrame, tmp_path: Path) -> None:
    YAML().dump(
        {"prototypes": {"seed": 0, "max_per_class": 5, "class_name_format": "auto"}, "train": {"transductive": True}},
        tmp_path / "p",
    )
    write_table(posts, tmp_path / "posts.parquet", POSTS)
    image, text = blocks(posts)
    write_block(image, tmp_path / "image", "pooled")
    write_block(text, tmp_path / "text", "post")
    names = {"params": "p", "posts": "posts.parquet", "image": "image", "text": "text", "out": "out"}
    prototypes.main(stage_flags("prototypes", tmp_path, **names, summary="report.json", resources="resources.json"))
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "classes.parquet",
        "clusters.parquet",
        "members.parquet",
        "prototypes.safetensors",
        "metadata.json",
        "manifest.json",
    }
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["params"] == {
        "prototypes": {"seed": 0, "max_per_class": 5, "class_name_format": "auto"},
        "train": {"transductive": True},
    }
    assert set(manifest["inputs"]) == {"posts", "image", "text"}
    classes, members = read_table(out / "classes.parquet", CLASSES), read_table(out / "members.parquet", MEMBERS)
    tensors = load_file(out / "prototypes.safetensors")
    for level in LEVELS:
        k = classes.filter(level=level).height
        assert tensors[f"{level}.parent"].tolist() == classes.filter(level=level)["parent"].fill_null(-1).to_list()
        for modality in MODALITIES:
            vectors = tensors[f"{level}.{modality}"]
            assert vectors.shape == tensors[f"{level}.{modality}_sum"].shape == (k, WIDTHS[modality])
            assert vectors.dtype == tensors[f"{level}.{modality}_sum"].dtype == np.float32
            assert tensors[f"{level}.{modality}_count"].dtype == np.int64
            np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
            counted = members.filter(level=level, modality=modality).group_by("index").len().sort("index")["len"]
            assert tensors[f"{level}.{modality}_count"].tolist() == counted.to_list()
    about = json.loads((out / "metadata.json").read_text())
    assert (about["seed"], about["max_per_class"], about["transductive"], about["class_name_format"]) == (
        0,
        5,
        True,
        "path",
    )
    assert about["encoders"]["visual"] == {"encoder": "encoder 6", "weights": "sha256:6", "width": 6}
    report = json.loads((tmp_path / "report.json").read_text())
    counted = report["levels"]["concept"]["representatives"]
    assert manifest["metrics"]["representatives"]["concept"] == counted
    assert report["posts"] == {"train": 90, "test": 40}
    assert report["levels"]["subcategory"]["classes"] == 4
    assert report["levels"]["subcategory"]["test_share_unseen"] == 0
    assert json.loads((tmp_path / "resources.json").read_text())["stage"] == "prototypes"


def test_a_prototype_is_the_mean_of_its_members(posts: pl.DataFrame) -> None:
    built = build(posts)
    for modality, given in zip(MODALITIES, blocks(posts), strict=True):
        pids = members_of(built, "subcategory", "C1/S1", modality)
        vectors = normalize_rows(np.asarray(given.values[given.rows(pids)], dtype=np.float64))
        (index,) = built.classes.filter(level="subcategory", key="C1/S1")["index"]
        found = built.tensors[f"subcategory.{modality}"][index]
        np.testing.assert_allclose(found, normalize_rows(vectors.mean(axis=0)), atol=1e-6)


def test_same_bytes_again_and_from_shuffled_posts(posts: pl.DataFrame, tmp_path: Path) -> None:
    first = written(build(posts), tmp_path / "first")
    assert written(build(posts), tmp_path / "again") == first
    assert written(build(posts.sample(fraction=1, shuffle=True, seed=5)), tmp_path / "shuffled") == first
    assert written(build(posts, seed=1), tmp_path / "other")["members.parquet"] != first["members.parquet"]


def test_no_label_is_read(posts: pl.DataFrame, tmp_path: Path) -> None:
    changed = posts.with_columns(label=pl.when(pl.col("label").is_not_null()).then(99 - pl.col("label")))
    assert written(build(changed), tmp_path / "changed") == written(build(posts), tmp_path / "as_published")


def test_without_transductive_no_test_post_is_used(posts: pl.DataFrame, tmp_path: Path) -> None:
    test = set(posts.filter(split="test")["pid"])
    assert test & set(build(posts, transductive=True).members["pid"])
    built = build(posts, transductive=False)
    assert not test & set(built.members["pid"])
    # Nor does anything that is said of them: other vectors, texts, times and classes of test posts change no vector.
    image, text = blocks(posts)
    is_test = np.array([pid in test for pid in text.pids])
    noise = np.where(is_test[:, None], np.float16(9), text.values)
    odd = posts.with_columns(
        pl.when(split="test").then(pl.lit("x")).otherwise(name).alias(name) for name in ("title", "uid")
    ).with_columns(subcategory=pl.when(split="test").then(pl.lit("C0/Odd")).otherwise("subcategory"))
    other = build_prototypes(odd, image, Block(noise, text.pids, text.metadata), params(), transductive=False)
    assert other.classes.equals(built.classes)
    for name, tensor in built.tensors.items():
        np.testing.assert_array_equal(other.tensors[name], tensor)


def test_unseen_test_classes_are_nobodys(posts: pl.DataFrame) -> None:
    unseen = posts.filter(split="test")["pid"].to_list()[:10]
    where = pl.col("pid").is_in(unseen)
    odd = posts.with_columns(
        subcategory=pl.when(where).then(pl.lit("C0/Odd")).otherwise("subcategory"),
        concept=pl.when(where).then(pl.lit("C0/Odd/x")).otherwise("concept"),
        category=pl.when(where).then(pl.lit("C0")).otherwise("category"),
    )
    built = build(odd, max_per_class=256)
    assert not {"C0/Odd", "C0/Odd/x"} & set(built.classes["key"])
    found = built.members.filter(pl.col("pid").is_in(unseen))
    assert set(found["level"]) == {"category"}  # that class is known
    assert built.summary["levels"]["subcategory"]["test_share_unseen"] == 0.25
    index = ClassIndex.from_posts(odd, built.classes, "path")
    with_class = odd.filter(pl.Series(index.rows["subcategory"] >= 0))
    assert set(built.members.filter(level="subcategory", modality="visual")["pid"]) == set(with_class["pid"])


def test_fewer_posts_than_the_limit_are_all_taken(posts: pl.DataFrame) -> None:
    built = build(posts, max_per_class=256)
    for modality in MODALITIES:
        has = posts if modality == "visual" else posts.filter(pl.col("title") != "")
        for key in posts["subcategory"].unique():
            assert members_of(built, "subcategory", key, modality) == has.filter(subcategory=key)["pid"].to_list()
    assert built.summary["levels"]["subcategory"]["fewer_than_max"] == {"visual": 4, "text": 4}
    assert build(posts, max_per_class=3).summary["levels"]["subcategory"]["fewer_than_max"] == {"visual": 0, "text": 0}


def test_the_sample_is_spread_over_time_concepts_and_users(posts: pl.DataFrame) -> None:
    """One class: a burst mostly of user a and concept x on one day, and three posts in the eight months after."""
    key, n = "C1/S1", 40
    dates = [datetime(2016, 1, 1, tzinfo=UTC)] * (n - 3) + [datetime(2016, month, 1, tzinfo=UTC) for month in (4, 6, 9)]
    one = posts.tail(n).with_columns(
        category=pl.lit("C1"),
        subcategory=pl.lit(key),
        concept=pl.Series([f"{key}/x"] * 30 + [f"{key}/y"] * (n - 30)),
        uid=pl.Series(["a"] * 35 + ["b"] * 2 + ["c"] * 3),
        posted_at=pl.Series(dates).cast(POSTS.columns["posted_at"].dtype),
        title=pl.lit("title"),
    )
    table = pl.concat([one, posts.head(posts.height - n).filter(pl.col("subcategory") != key)])
    built = build(table, max_per_class=8)
    for modality in MODALITIES:
        taken = one.filter(pl.col("pid").is_in(members_of(built, "subcategory", key, modality)))
        assert taken.height == 8
        assert taken.filter(pl.col("posted_at") > dates[0]).height == 3
        assert taken["concept"].value_counts().sort("concept")["count"].to_list() == [4, 4]
        assert taken.filter(concept=f"{key}/y")["uid"].sort().to_list() == ["b", "c", "c", "c"]


def test_posts_and_classes_without_images(posts: pl.DataFrame) -> None:
    class_pids = set(posts.filter(subcategory="C0/S0")["pid"])
    some = set(posts.filter(subcategory="C0/S2")["pid"].to_list()[:5])
    built = build(posts, without_picture=class_pids | some, max_per_class=256)
    visual = built.members.filter(modality="visual")
    assert not (class_pids | some) & set(visual["pid"])
    assert some & set(built.members.filter(modality="text")["pid"])
    assert built.summary["levels"]["subcategory"]["classes_without_images"] == ["C0/S0"]
    rows = dict(built.classes.filter(level="subcategory").select("key", "index").iter_rows())
    parent = dict(built.classes.filter(level="category").select("key", "index").iter_rows())["C0"]
    found = built.tensors["subcategory.visual"][rows["C0/S0"]]
    np.testing.assert_array_equal(found, built.tensors["category.visual"][parent])


def test_text_representatives_have_titles_or_tags(posts: pl.DataFrame) -> None:
    silent, tagged = posts.filter(subcategory="C0/S0")["pid"], posts.filter(subcategory="C0/S2")["pid"]
    table = posts.with_columns(
        title=pl.when(pl.col("subcategory").is_in(["C0/S0", "C0/S2"])).then(pl.lit("  ")).otherwise("title"),
        tags=pl.when(subcategory="C0/S0")
        .then(pl.lit(""))
        .when(pid=tagged[0])
        .then(pl.lit(""))
        .otherwise(pl.lit("tag")),
    )
    built = build(table, max_per_class=256)
    text = built.members.filter(level="subcategory", modality="text")["pid"]
    assert not set(silent) & set(text)
    assert set(tagged) & set(text) == set(tagged[1:])  # no title in the class: those with tags
    others = table.filter(~pl.col("pid").is_in([*silent, *tagged]))
    assert set(text) - set(tagged) == set(others.filter(pl.col("title") != "")["pid"])
    assert built.summary["levels"]["subcategory"]["classes_without_texts"] == ["C0/S0"]


def test_no_image_at_all(posts: pl.DataFrame, caplog: pytest.LogCaptureFixture) -> None:
    built = build(posts, without_picture=set(posts["pid"]))
    assert "no post has an image vector" in caplog.text
    assert (built.tensors["subcategory.visual"] == 0).all()
    assert built.members.filter(modality="visual").height == 0
    check_table(built.members, MEMBERS)


def test_vectors_of_other_posts_are_refused(posts: pl.DataFrame) -> None:
    image, _ = blocks(posts)
    with pytest.raises(DataError, match="3 of 130 posts have no text vector"):
        build_prototypes(posts, image, block(posts["pid"].to_list()[3:], 4), params(), transductive=True)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("level", LEVELS)
def test_leave_one_out_of_the_written_folder(posts: pl.DataFrame, level: str, modality: str, tmp_path: Path) -> None:
    """With every post of a class taken, leaving one out equals building without its vector."""
    built = build(posts, max_per_class=256)
    write_prototypes(built, tmp_path)
    depth = LEVELS.index(level) + 1
    sums = [ClassSums.read(tmp_path / "prototypes.safetensors", name, modality) for name in LEVELS[:depth]]
    members = [member_classes(built.members, posts, name, modality) for name in LEVELS[:depth]]
    given: Mapping[str, Block] = dict(zip(MODALITIES, blocks(posts), strict=True))
    own = normalize_rows(np.asarray(given[modality].values, dtype=np.float32))
    classes = ClassIndex.from_posts(posts, built.classes, "path").rows[level]
    known = classes >= 0
    found = np.full(own.shape, np.nan, np.float32)
    found[known] = leave_one_out(sums, classes[known], own[known], [member[known] for member in members])
    for row in np.flatnonzero(known)[::17]:
        pid = posts["pid"][int(row)]
        silenced = posts.with_columns(
            pl.when(pid=pid).then(pl.lit("")).otherwise(name).alias(name) for name in ("title", "tags")
        )
        without = build(silenced, without_picture={pid}, max_per_class=256).tensors[f"{level}.{modality}"][classes[row]]
        np.testing.assert_allclose(found[row], without, atol=1e-6)


def test_member_classes_follow_the_posts_order(posts: pl.DataFrame) -> None:
    built = build(posts)
    found = member_classes(built.members, posts, "subcategory", "visual")
    members = built.members.filter(level="subcategory", modality="visual")
    expected = dict(members.select("pid", "index").iter_rows())
    assert found.tolist() == [expected.get(pid, -1) for pid in posts["pid"]]


def test_train_transductive_is_read_by_its_dotted_name(tmp_path: Path) -> None:
    place = tmp_path / "params.yaml"
    YAML().dump({"train": {"transductive": False, "other": 1}}, place)
    assert load_params("train.transductive", StrictBool, place) is False
    YAML().dump({"train": {"transductive": "no"}}, place)
    with pytest.raises(ConfigError, match=r"train\.transductive: Input should be a valid boolean, found 'no'"):
        load_params("train.transductive", StrictBool, place)
    for lacking in ("train: {seed: 1}", "train: 3", "stack: {}"):
        place.write_text(lacking, encoding="utf-8")
        with pytest.raises(ConfigError, match=r"section 'train\.transductive' is missing"):
            load_params("train.transductive", StrictBool, place)


def test_no_concepts_and_no_test_part(posts: pl.DataFrame, tmp_path: Path) -> None:
    bare = posts.filter(split="train").with_columns(concept=pl.col("subcategory") + "/")
    built = build(bare)
    assert built.tensors["concept.text"].shape == (0, WIDTHS["text"])
    assert built.summary["levels"]["concept"]["training_posts_without_class"] == 90
    assert built.summary["levels"]["subcategory"]["test_share_unseen"] is None
    assert "members.parquet" in written(built, tmp_path / "out")
