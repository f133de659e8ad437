"""Batches equal what one reads post by post."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from popularity.core.arrays import Float32Array, Int64Array, normalize_rows
from popularity.encoders.prompting import PromptTokens
from popularity.network.dataset import Batch, PostVectors, to_device
from popularity.prototypes.vectors import ClassPrototypes

LEVELS = ("category", "subcategory")


class NumberedPrototypes(ClassPrototypes):
    """Numbers that identify the arguments."""

    def own(self, level: str, kind: str, rows: Int64Array, vectors: Float32Array) -> Float32Array:
        index = np.float32(LEVELS.index(level) + 1)
        return index * vectors + np.float32(kind == "text") + rows[:, None].astype(np.float32)


def post_vectors(posts: int = 9) -> PostVectors:
    """Posts 1 and 4 have no image, posts 0, 4 and 8 no token; nothing stands in the order of the posts."""
    rng = np.random.default_rng(0)
    lengths = np.array([0, 3, 1, 5, 0, 2, 2, 4, 0][:posts])
    order = rng.permutation(posts)
    starts = np.zeros(posts, np.int64)
    starts[order] = np.cumsum(lengths[order]) - lengths[order]
    image_row = np.array([4, -1, 0, 3, -1, 6, 1, 2, 5])
    return PostVectors(
        pids=[f"p{row}" for row in range(posts)],
        image=rng.normal(size=(7, 4)).astype(np.float16),
        image_row=image_row,
        pooled=rng.normal(size=(posts + 2, 6)).astype(np.float16),
        pooled_row=rng.permutation(posts + 2)[:posts],
        tokens=rng.normal(size=(int(lengths.sum()), 6)).astype(np.float16),
        starts=starts,
        lengths=lengths,
        target=rng.integers(-1, 3, (posts, 2)),
        levels=LEVELS,
        fold=rng.integers(4, size=posts),
        prototypes=NumberedPrototypes(LEVELS, {}, {}, {}),
    )


def normalised(vector: Float32Array) -> Float32Array:
    wide = vector.astype(np.float32)
    return np.asarray(wide / np.linalg.norm(wide), np.float32)


@pytest.mark.parametrize("rows", [[3, 0, 4, 8, 1, 3], [5], [0], [4, 0, 8], [2, -1, 7, -1]], ids=str)
def test_a_batch_equals_its_posts_one_by_one(rows: list[int]) -> None:
    vectors = post_vectors()
    batch = vectors.batch(np.array(rows))
    longest = max(1, *(vectors.lengths[max(row, 0)] for row in rows))
    assert batch.tokens.shape == (len(rows), longest, 6)
    assert batch.valid.tolist() == [row >= 0 for row in rows]
    for position, row in enumerate(max(row, 0) for row in rows):
        there = vectors.image_row[row] >= 0
        image = normalised(vectors.image[vectors.image_row[row]]) if there else np.zeros(4, np.float32)
        pooled = normalised(vectors.pooled[vectors.pooled_row[row]])
        assert bool(batch.has_image[position]) == there
        np.testing.assert_allclose(batch.image[position], image, atol=1e-6)
        np.testing.assert_allclose(batch.pooled[position], pooled, atol=1e-6)
        start, length = vectors.starts[row], vectors.lengths[row]
        np.testing.assert_array_equal(batch.tokens[position, :length], vectors.tokens[start : start + length])
        assert (batch.tokens[position, length:] == 0).all()
        assert batch.token_mask[position].tolist() == [True] * length + [False] * (longest - length)
        assert batch.target[position].tolist() == vectors.target[row].tolist()
        assert batch.fold[position] == vectors.fold[row]
        for index in (0, 1):
            np.testing.assert_allclose(batch.own_visual[position, index], (index + 1) * image + row, atol=1e-5)
            np.testing.assert_allclose(batch.own_text[position, index], (index + 1) * pooled + 1 + row, atol=1e-5)
    assert all(part.dtype in (torch.float32, torch.bool, torch.int64) for part in batch if isinstance(part, Tensor))


def test_metadata_are_those_of_the_batch() -> None:
    vectors, rows = post_vectors(), np.array([4, 0, 7, 1])
    for found, expected in zip(vectors.metadata(rows), vectors.batch(rows).metadata, strict=True):
        assert torch.equal(found, expected)


def test_zero_vectors_stay_zero() -> None:
    found = normalize_rows(np.array([[0, 0], [3, 4]], np.float16), dtype=np.float32)
    assert found.dtype == np.float32
    assert found.tolist() == [[0, 0], pytest.approx([0.6, 0.8])]


def test_a_batch_moves_as_a_whole() -> None:
    texts = PromptTokens(torch.ones(2, 3).long(), torch.tensor([3, 1]))
    batch = post_vectors().batch(np.array([3, 1]))._replace(texts=texts, pixels=torch.zeros(2, 3, 4, 4))
    moved: Batch = to_device(batch, torch.device("meta"))
    for name, part in moved._asdict().items():
        assert part.device.type == "meta" if name != "texts" else part is texts  # the tower moves what it reads
