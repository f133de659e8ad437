"""The stack with several text encoders: each is a block of its own, in every table that names blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from popularity.core.vectors import ADAPTED_FROM, write_block
from popularity.features import CATEGORIES, TEXT
from popularity.stack import Blocks, read_blocks
from popularity.stack.feature_blocks import part_rows
from popularity.stack.matrix import FeatureGroup, MatrixEncoder, columns_of_all
from tests.random_posts import random_posts
from tests.stack.small_stack import STACK, random_block, random_blocks, write_blocks

POSTS = random_posts(0, train=40, test=10, users=8)
PIDS = POSTS["pid"].to_list()
NAMES = ("minilm", "mpnet")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """The vectors of `random_blocks` as those of minilm, and others, of another width, as those of mpnet."""
    image, text, prototype = write_blocks(random_blocks(POSTS), tmp_path)
    (tmp_path / "texts").mkdir()
    text.rename(tmp_path / "texts/minilm")
    for seed, name in enumerate(("title", "tags", "post")):
        write_block(random_block(PIDS, 7, seed + 70), tmp_path / "texts/mpnet", name)
    return image, tmp_path / "texts", prototype


def features() -> pl.DataFrame:
    text = pl.concat_str("title", "tags", separator=" ").alias(TEXT)
    return POSTS.select("pid", *CATEGORIES, text, "photo_count", "latitude").sort("pid")


def test_each_encoder_is_a_block_with_its_own_components_and_ridge(folders: tuple[Path, Path, Path]) -> None:
    blocks, table = read_blocks(*folders), features()
    label = np.random.default_rng(1).normal(size=table.height)
    encoder, train = MatrixEncoder.fit(table, label, blocks, STACK.columns)
    assert [block for block in dict.fromkeys(train.blocks) if block.startswith("text")] == ["text.minilm", "text.mpnet"]
    for name in NAMES:
        own = [column.name for column in train.columns if column.block == f"text.{name}"]
        assert own[:3] == [f"text.{name}_component_{index:03d}" for index in range(3)]
        assert {f"title_tags_cosine.{name}", f"text.{name}_oof_ridge"} <= set(own)
    assert [name for name in train.names if "characters" in name] == ["characters_oof_ridge"]
    new = encoder.apply(table, blocks)
    assert new.names == train.names
    position = train.names.index("text.mpnet_oof_ridge")
    assert not np.array_equal(new.values[:, position], train.values[:, position])  # out of fold against fitted


@pytest.mark.parametrize(
    "fewer",
    [
        {"feature_blocks": ("metadata", "text")},
        {"feature_blocks": ("image", "metadata", "prototype"), "feature_groups": ("image",)},
        {"feature_groups": ()},
        {"feature_groups": ("neighbours", "words"), "uid_category": True},
        {"feature_blocks": ("text",), "feature_groups": ("neighbours",)},
    ],
)
def test_some_columns_of_all_are_those_that_are_fitted_alone(
    folders: tuple[Path, Path, Path], fewer: dict[str, Any]
) -> None:
    """As the search and the stage do it; `columns.feature_blocks` names kinds, whose encoders come and go together."""
    statistics = POSTS.select("pid", pl.lit(3.0, pl.Float32).alias("image_statistics.text"))
    statistics.sort("pid").write_parquet(folders[0] / "statistics.parquet")
    blocks, table = read_blocks(*folders), features().join(POSTS.select("pid", "posted_at"), on="pid")
    table = table.with_columns(pl.lit(1.0).alias("words.n_words"), pl.lit(2.0).alias("rhythm.user_week"))
    label = np.random.default_rng(1).normal(size=table.height)
    groups: tuple[FeatureGroup, ...] = ("words", "rhythm", "neighbours", "image")
    columns = replace(STACK.columns, feature_groups=groups, category_min_posts=1)
    of_all = columns_of_all([columns, replace(columns, uid_category=True)])
    own = replace(columns, **fewer)
    assert columns_of_all([of_all, own]) == of_all
    encoder, train = MatrixEncoder.fit(table, label, blocks, of_all)
    assert {column.group for column in train.columns} == {None, *groups}
    alone, matrix = MatrixEncoder.fit(table, label, blocks, own)
    cut = encoder.with_columns(own)
    assert cut.blocks == alone.blocks
    for found, expected in (
        (train.with_columns(cut), matrix),
        (encoder.apply(table, blocks).with_columns(cut), alone.apply(table, blocks)),
        (cut.apply(table, blocks), alone.apply(table, blocks)),
    ):
        assert found.columns == expected.columns
        np.testing.assert_array_equal(found.values, expected.values)


def test_one_encoder_is_read_alike_from_its_folder_and_from_the_folder_of_all(
    folders: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    image, texts, prototype = folders
    direct = read_blocks(image, texts / "minilm", prototype)
    (tmp_path / "one").mkdir()
    (tmp_path / "one/minilm").symlink_to(texts / "minilm")
    gathered = read_blocks(image, tmp_path / "one", prototype)
    assert set(gathered.vectors) == set(direct.vectors)
    assert direct.blocks_of("text") == gathered.blocks_of("text") == ("text",)
    np.testing.assert_array_equal(part_rows(gathered, "text", PIDS), part_rows(direct, "text", PIDS))


def test_adapted_vectors_replace_those_of_their_encoder_alone(folders: tuple[Path, Path, Path]) -> None:
    image, texts, prototype = folders
    block = random_block(PIDS, 5, seed=90, missing=0.0)
    weights = read_blocks(*folders).vectors["title.minilm"].metadata["weights"]
    other = replace(block, metadata={**block.metadata, "preprocessing": {ADAPTED_FROM: weights}})
    mpnet = random_block(PIDS, 7, seed=70)
    write_block(replace(mpnet, metadata={**mpnet.metadata, "weights": "sha256:mpnet"}), texts / "mpnet", "title")
    for name in ("tags", "post"):
        write_block(replace(mpnet, metadata={**mpnet.metadata, "weights": "sha256:mpnet"}), texts / "mpnet", name)
    before = read_blocks(*folders)
    write_block(other, prototype, "adapted_text")
    after = read_blocks(*folders)
    assert isinstance(after, Blocks)
    np.testing.assert_array_equal(part_rows(after, "post.minilm", PIDS), block.values.astype(np.float32))
    np.testing.assert_array_equal(part_rows(after, "post.mpnet", PIDS), part_rows(before, "post.mpnet", PIDS))
    assert image.is_dir()
