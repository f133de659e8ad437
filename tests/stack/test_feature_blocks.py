"""Stored vectors and named scalars by pid, and what is refused when they are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from popularity.core.errors import ContractError
from popularity.core.vectors import Block
from popularity.stack import Blocks, read_blocks
from popularity.stack.feature_blocks import dense_rows, part_rows, scalar_columns, scalar_names
from tests.random_posts import random_posts
from tests.stack.small_stack import SCALARS, STACK, random_block, random_blocks, write_blocks

NO_SCALARS = pl.DataFrame(schema={"pid": pl.String})


def test_a_missing_vector_is_missing_everywhere() -> None:
    block = Block(np.array([[3, 4], [1, 0]], dtype=np.float16), ["a", "c"], {})
    vectors = {"image": block, "title": block, "tags": random_block(["a", "b"], 2, seed=0, missing=0.0)}
    blocks = Blocks(vectors, NO_SCALARS)
    expected = np.array([[1, 0], [np.nan, np.nan], [3, 4]], dtype=np.float32)
    np.testing.assert_array_equal(dense_rows(blocks, "image", ["c", "b", "a"]), expected)
    norms = scalar_columns("image", ("image_norm",), blocks, ["c", "b", "a"])["image_norm"]
    np.testing.assert_array_equal(norms, np.array([1, np.nan, 5], dtype=np.float32))
    assert np.isnan(part_rows(blocks, "text", ["a", "b", "c"])).any(axis=1).tolist() == [False, True, True]
    cosine = scalar_columns("text", ("title_tags_cosine",), blocks, ["a", "b", "c"])["title_tags_cosine"]
    assert np.isnan(cosine).tolist() == [False, True, True]


def test_cosine_of_title_and_tags() -> None:
    pids = ["a", "b", "c", "d"]
    title = Block(np.array([[1, 0], [1, 1], [2, 0], [0, 0]], dtype=np.float16), pids, {})
    tags = Block(np.array([[5, 0], [1, -1], [-3, 0], [1, 0]], dtype=np.float16), pids, {})
    blocks = Blocks({"title": title, "tags": tags}, NO_SCALARS)
    cosine = scalar_columns("text", ("title_tags_cosine",), blocks, pids)["title_tags_cosine"]
    np.testing.assert_allclose(cosine, [1, 0, -1, 0], atol=1e-6)


def test_scalars_are_joined_by_pid() -> None:
    scalars = pl.DataFrame(
        {"pid": ["a", "b", "d"], "losses.global": [0.5, None, 2.5], "distance.visual": [0.1, 0.2, None]},
        schema={"pid": pl.String, "losses.global": pl.Float32, "distance.visual": pl.Float32},
    )
    blocks = Blocks({}, scalars)
    names = scalar_names("prototype", blocks, STACK.columns.prototype_parts)
    assert names == ("losses.global", "distance.visual")
    assert scalar_names("prototype", blocks, ("distance", "logits")) == ("distance.visual",)
    found = scalar_columns("prototype", names, blocks, ["d", "c", "b", "a"])
    np.testing.assert_array_equal(found["losses.global"], np.array([2.5, np.nan, np.nan, 0.5], dtype=np.float32))
    np.testing.assert_array_equal(found["distance.visual"], np.array([np.nan, np.nan, 0.2, 0.1], dtype=np.float32))


@pytest.fixture(scope="module")
def blocks() -> Blocks:
    return random_blocks(random_posts(0, train=30, test=10, users=8))


def test_what_was_written_is_read(blocks: Blocks, tmp_path: Path) -> None:
    found = read_blocks(*write_blocks(blocks, tmp_path))
    assert found.scalars.equals(blocks.scalars)
    assert found.scalars.columns == ["pid", *SCALARS]
    assert set(found.vectors) == set(blocks.vectors)
    for name, block in blocks.vectors.items():
        np.testing.assert_array_equal(found.vectors[name].values, block.values)
        assert list(found.vectors[name].pids) == list(block.pids)


@pytest.mark.parametrize(
    "column", [pl.lit(1.0, pl.Float32).alias("loss.global"), pl.lit(1.0, pl.Float64).alias("losses.other")]
)
def test_a_scalar_of_no_part_or_of_another_type_is_refused_by_name(
    blocks: Blocks, column: pl.Expr, tmp_path: Path
) -> None:
    folders = write_blocks(replace(blocks, scalars=blocks.scalars.with_columns(column)), tmp_path)
    with pytest.raises(ContractError, match=column.meta.output_name()):
        read_blocks(*folders)
