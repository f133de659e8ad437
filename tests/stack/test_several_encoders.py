"""The stack with several text encoders: each is a block of its own, in every table that names blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from popularity.core.vectors import ADAPTED_FROM, write_block
from popularity.features import CATEGORIES, TEXT
from popularity.stack import Blocks, read_blocks
from popularity.stack.feature_blocks import part_rows
from popularity.stack.matrix import MatrixEncoder
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


def test_the_encoders_of_a_kind_come_and_go_together(folders: tuple[Path, Path, Path]) -> None:
    """As the search does it: `columns.feature_blocks` names kinds."""
    blocks, table = read_blocks(*folders), features()
    label = np.random.default_rng(1).normal(size=table.height)
    encoder, train = MatrixEncoder.fit(table, label, blocks, STACK.columns)
    for kinds in (("metadata", "text"), ("metadata", "image", "prototype")):
        columns = replace(STACK.columns, feature_blocks=kinds)
        alone, matrix = MatrixEncoder.fit(table, label, blocks, columns)
        cut = encoder.with_blocks(kinds)
        assert cut.blocks == alone.blocks
        assert train.with_blocks(cut.blocks).names == matrix.names
        np.testing.assert_array_equal(train.with_blocks(cut.blocks).values, matrix.values)


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
