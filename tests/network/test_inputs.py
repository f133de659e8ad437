"""From tables and blocks to what the network reads: by pid, whatever the order, and which rows train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from popularity.core.arrays import normalize_rows
from popularity.core.contracts import CLASSES, LEVELS, MEMBERS, read_table
from popularity.core.errors import DataError
from popularity.core.vectors import Block, Tokens
from popularity.network.dataset import PostVectors, draw_folds
from popularity.network.inputs import EncoderOutputs, NetworkData, read_network_data, training_rows
from tests.network.small_inputs import make_prototypes, random_outputs
from tests.random_posts import random_posts
from tests.training.small_training import train_params


@pytest.fixture(scope="module")
def posts() -> pl.DataFrame:
    """Twelve test posts are of a class that training does not know."""
    table = random_posts(0)
    odd = table.filter(split="test")["pid"].to_list()[:12]
    where = pl.col("pid").is_in(odd)
    return table.with_columns(
        subcategory=pl.when(where).then(pl.lit("C0/Odd")).otherwise("subcategory"),
        concept=pl.when(where).then(pl.lit("C0/Odd/x")).otherwise("concept"),
        category=pl.when(where).then(pl.lit("C0")).otherwise("category"),
    )


@pytest.fixture(scope="module")
def blocks(posts: pl.DataFrame) -> EncoderOutputs:
    pids = posts["pid"].to_list()
    return random_outputs(posts, without_picture=set(pids[3:20:4]), without_text=set(pids[5:30:6]))


@pytest.fixture(scope="module")
def prototypes(posts: pl.DataFrame, blocks: EncoderOutputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prototypes(posts, blocks, tmp_path_factory.mktemp("prototypes"))


def read(posts: pl.DataFrame, blocks: EncoderOutputs, prototypes: Path, folds: int = 3) -> NetworkData:
    params = train_params(**{"prototypes.levels": list(LEVELS), "prototypes.folds": folds})
    return read_network_data(posts, blocks, prototypes, params)


def test_vectors_are_those_of_the_pid(posts: pl.DataFrame, blocks: EncoderOutputs, prototypes: Path) -> None:
    vectors = read(posts, blocks, prototypes).vectors
    rows = np.arange(posts.height)
    batch = vectors.batch(rows)
    pictures = dict(zip(blocks.image.pids, blocks.image.values, strict=True))
    texts = dict(zip(blocks.text.pids, blocks.text.values, strict=True))
    offsets = blocks.tokens.offsets
    tokens = {pid: blocks.tokens.values[offsets[row] : offsets[row + 1]] for row, pid in enumerate(blocks.tokens.pids)}
    assert 0 < len(pictures) < posts.height
    for row, pid in enumerate(posts["pid"]):
        assert bool(batch.has_image[row]) == (pid in pictures)
        if pid in pictures:
            np.testing.assert_allclose(batch.image[row], normalize_rows(pictures[pid].astype(np.float64)), atol=1e-6)
        np.testing.assert_allclose(batch.pooled[row], normalize_rows(texts[pid].astype(np.float64)), atol=1e-6)
        np.testing.assert_array_equal(batch.tokens[row][batch.token_mask[row]], tokens[pid])


def test_targets_and_names_are_those_of_the_classes(
    posts: pl.DataFrame, blocks: EncoderOutputs, prototypes: Path
) -> None:
    inputs, classes = read(posts, blocks, prototypes), read_table(prototypes / "classes.parquet", CLASSES)
    for number, level in enumerate(LEVELS):
        index = dict(classes.filter(level=level).select("key", "index").iter_rows())
        assert inputs.vectors.target[:, number].tolist() == [index.get(key, -1) for key in posts[level]]
        assert len(inputs.levels[level].visual) == len(inputs.levels[level].text) == len(index)
        parents = classes.filter(level=level)["parent"].fill_null(-1).to_list()
        assert inputs.levels[level].parent.tolist() == parents
    assert list(inputs.names) == classes.filter(level="subcategory").sort("index")["name"].to_list()
    assert (inputs.vectors.target[:, 1] < 0).sum() == 12


def shuffled(blocks: EncoderOutputs, seed: int) -> EncoderOutputs:
    """The same vectors in another order, of more posts than the caller wants."""
    rng = np.random.default_rng(seed)

    def block(given: Block) -> Block:
        order = rng.permutation(len(given.pids))
        extra = np.ones((2, given.values.shape[1]), np.float16)
        pids = ["other 1", *(given.pids[row] for row in order), "other 2"]
        return replace(given, values=np.concatenate([extra[:1], given.values[order], extra[1:]]), pids=pids)

    order = rng.permutation(len(blocks.tokens.pids))
    pieces = np.split(blocks.tokens.values, blocks.tokens.offsets[1:-1])
    offsets = np.concatenate([[0], np.cumsum([len(pieces[row]) for row in order])]).astype(np.int64)
    tokens = Tokens(
        np.concatenate([pieces[row] for row in order]), offsets, [blocks.tokens.pids[row] for row in order], {}
    )
    return EncoderOutputs(block(blocks.image), block(blocks.text), tokens)


def test_the_order_of_posts_and_blocks_does_not_matter(
    posts: pl.DataFrame, blocks: EncoderOutputs, prototypes: Path
) -> None:
    mixed = posts.sample(fraction=1, shuffle=True, seed=3).head(60)
    first, second = read(posts, blocks, prototypes), read(mixed, shuffled(blocks, 1), prototypes)
    row_of = {pid: row for row, pid in enumerate(posts["pid"])}
    expected = first.vectors.batch(np.array([row_of[pid] for pid in mixed["pid"]]))
    found = second.vectors.batch(np.arange(60))
    assert list(second.vectors.pids) == mixed["pid"].to_list()
    for name in ("image", "has_image", "pooled", "tokens", "token_mask", "target", "own_visual", "own_text"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-6, rtol=0, msg=name)
    for level in LEVELS:
        torch.testing.assert_close(second.levels[level].visual, first.levels[level].visual)


def test_own_prototypes_leave_out_representatives_alone(
    posts: pl.DataFrame, blocks: EncoderOutputs, prototypes: Path
) -> None:
    inputs, members = read(posts, blocks, prototypes), read_table(prototypes / "members.parquet", MEMBERS)
    batch = inputs.vectors.batch(np.arange(posts.height))
    for number, level in enumerate(LEVELS):
        for kind, own, whole in (
            ("visual", batch.own_visual, inputs.levels[level].visual),
            ("text", batch.own_text, inputs.levels[level].text),
        ):
            stands = set(members.filter(level=level, modality=kind)["pid"])
            assert 0 < len(stands) < posts.height
            for row, pid in enumerate(posts["pid"]):
                target = int(batch.target[row, number])
                if target < 0:
                    assert (own[row, number] == 0).all()
                    continue
                same = torch.allclose(own[row, number], whole[target], atol=1e-6)
                assert same == (pid not in stands)
                assert own[row, number].norm().item() == pytest.approx(1, abs=1e-5)


def test_in_training_posts_see_what_their_fold_did_not_make(
    posts: pl.DataFrame, blocks: EncoderOutputs, prototypes: Path
) -> None:
    inputs, members = read(posts, blocks, prototypes), read_table(prototypes / "members.parquet", MEMBERS)
    vectors = inputs.vectors
    batch, row_of = vectors.batch(np.arange(posts.height)), {pid: row for row, pid in enumerate(posts["pid"])}
    for level in LEVELS:
        given = inputs.levels[level]
        for kind, found, whole, of_posts in (
            ("visual", given.fold_visual, given.visual, batch.image),
            ("text", given.fold_text, given.text, batch.pooled),
        ):
            assert found is not None
            assert found.shape == (3, *whole.shape)
            compared = 0
            for index in range(len(whole)):
                pids = members.filter(level=level, modality=kind, index=index)["pid"]
                rows = np.array([row_of[pid] for pid in pids], np.int64)
                for number in range(3):
                    kept = rows[vectors.fold[rows] != number]
                    if len(kept):
                        expected = normalize_rows(of_posts[kept].numpy().sum(axis=0))
                        np.testing.assert_allclose(found[number, index], expected, atol=1e-5)
                        compared += len(kept) < len(rows)
            assert compared > len(whole)
    assert read(posts, blocks, prototypes, folds=1).levels["subcategory"].fold_visual is None


def test_folds_hold_as_many_posts_of_every_class() -> None:
    classes = np.random.default_rng(0).integers(-1, 6, 200)
    fold = draw_folds(classes, 4, seed=1)
    for index in range(-1, 6):
        counts = np.bincount(fold[classes == index], minlength=4)
        assert counts.sum() == (classes == index).sum()
        assert counts.max() - counts.min() <= 1
    assert (draw_folds(classes, 4, seed=2) != fold).any()
    assert (draw_folds(classes, 1, seed=1) == 0).all()


def test_a_post_without_text_vector_is_refused(posts: pl.DataFrame, blocks: EncoderOutputs, prototypes: Path) -> None:
    text = replace(blocks.text, values=blocks.text.values[2:], pids=blocks.text.pids[2:])
    with pytest.raises(DataError, match=rf"2 of 130 posts have no text vector, the first is {posts['pid'][0]}"):
        read(posts, replace(blocks, text=text), prototypes)
    tokens = Tokens(blocks.tokens.values, blocks.tokens.offsets[:-1], blocks.tokens.pids[:-1], {})
    with pytest.raises(DataError, match="1 of 130 posts have no text vector"):
        read(posts, replace(blocks, tokens=tokens), prototypes)


@pytest.fixture(scope="module")
def vectors(posts: pl.DataFrame, blocks: EncoderOutputs, prototypes: Path) -> PostVectors:
    return read(posts, blocks, prototypes).vectors


@pytest.mark.parametrize("transductive", [True, False])
def test_training_rows_are_posts_of_known_classes(
    transductive: bool, posts: pl.DataFrame, vectors: PostVectors
) -> None:
    train, held_out = training_rows(posts, vectors, train_params(transductive=transductive, valid_fraction=0.25))
    together = sorted([*train.tolist(), *held_out.tolist()])
    known = vectors.target[:, 1] >= 0
    expected = known & (transductive or (posts["split"] == "train").to_numpy())
    assert together == np.flatnonzero(expected).tolist()  # each once
    assert len(held_out) == round(0.25 * len(together))
    assert (np.diff(train) > 0).all()
    assert (np.diff(held_out) > 0).all()
    assert set(posts[together]["split"]) == ({"train", "test"} if transductive else {"train"})


def test_the_validation_part_follows_the_seed(posts: pl.DataFrame, vectors: PostVectors) -> None:
    first, again, other = (training_rows(posts, vectors, train_params(seed=seed))[1].tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other
    train, held_out = training_rows(posts, vectors, train_params(valid_fraction=0.0))
    assert len(held_out) == 0
    assert len(train) == 118
