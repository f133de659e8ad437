"""A tiny randomly initialised CLIP from images and texts through training to the posts' columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
from accelerate import Accelerator

from popularity.core.contracts import IMAGES, POSTS, PROTOTYPE_SCALARS, read_table, write_table
from popularity.core.vectors import read_block, read_tokens
from popularity.encoders.image_blocks import embed_images
from popularity.encoders.text_blocks import embed_texts
from popularity.network.build import build_network, save_network, trained_params
from popularity.network.inputs import EncoderPair, post_reader, training_rows
from popularity.training.batches import TrainingPosts
from popularity.training.loop import train_network
from tests.encoders.tiny_encoders import image_params, make_images, save_clip, text_params
from tests.inference.small_world import World, readable_posts, vectors
from tests.training.small_training import train_params

TITLES = ("cat of the sea", "dog", "", "sunset sea", "the dog")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """20 posts with the images of `make_images`; every fifth is without text."""
    folder = tmp_path_factory.mktemp("clip")
    weights = f"path:{save_clip(folder / 'clip')}"
    towers = EncoderPair(
        image_params(loader="clip_image", model="tiny", weights=weights),
        text_params(loader="clip_text", model="tiny", weights=weights, max_tokens=10),
    )
    image_set = make_images(folder)
    (folder / "data").rename(folder / "root")
    image_set.table.rename(folder / "all.parquet")
    images = read_table(folder / "all.parquet", IMAGES)
    write_table(images, folder / "images.parquet", IMAGES)
    posts = readable_posts(train=14, test=6).with_columns(
        pid=images["pid"], title=pl.Series([TITLES[row % 5] for row in range(20)]), tags=pl.lit("")
    )
    write_table(posts, folder / "posts.parquet", POSTS)
    world = World(folder, towers)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("POPULARITY_WORKERS", "0")
        embed_images(folder / "root", folder / "images.parquet", folder / "image", towers.image)
        embed_texts(folder / "posts.parquet", folder / "text", towers.text)
    world.make_prototypes()
    return world


def train(world: World, state: Path, **changes: Any) -> None:
    """A few real steps."""
    params = train_params(batch_size=5, epochs=2, **changes)
    inputs, posts = world.inputs(params), world.posts()
    network = build_network(params, inputs, world.towers)
    images = read_table(world.folder / "images.parquet", IMAGES)
    read = post_reader(network, inputs, posts, images, world.folder / "root", world.towers)
    rows = TrainingPosts(read, *training_rows(posts, inputs.vectors, params))
    history = train_network(network, rows, params, Accelerator(cpu=True), state=state)
    save_network(network, params, history, world.folder / "network")


LIVE = {"prompts.instance_length": 2, "unfreeze_layers": 1}


class Trained(NamedTuple):
    """A trained network in the folder of `world`, and the posts' columns that it gives."""

    live: bool  # its encoders are unfrozen: it reads images and texts themselves
    out: Path


@pytest.fixture(scope="module", params=["cached", "live"])
def trained(request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    live = request.param == "live"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POPULARITY_WORKERS", "0")
        train(world, tmp_path_factory.mktemp("state"), **(LIVE if live else {}))
        return Trained(live, world.embed(request.param))


def test_clip_goes_through_train_and_embed(world: World, trained: Trained) -> None:
    assert trained_params(world.folder / "network").unfreeze_layers == trained.live
    out = trained.out
    image, text = read_block(world.folder / "image", "pooled"), read_block(world.folder / "text", "post")
    tokens = read_tokens(world.folder / "text", "tokens")
    lengths = dict(zip(tokens.pids, np.diff(tokens.offsets), strict=True))
    scalars = read_table(out / "scalars.parquet", PROTOTYPE_SCALARS)
    assert scalars.height == 20
    absent = 0
    for pid, found in scalars.select("pid", "distance.image_text").iter_rows():
        (picture,) = image.rows([pid])
        if picture < 0 or not lengths[pid]:
            assert found is None
            absent += 1
        else:
            x, h = image.values[picture].astype(float), text.values[text.rows([pid])[0]].astype(float)
            assert found == pytest.approx(1 - x @ h / np.linalg.norm(x) / np.linalg.norm(h), abs=1e-5)
    assert 3 < absent < 10
    blocks = vectors(out)
    assert blocks["attended_image"].pids == image.pids
    assert blocks["global_prompt"].values.shape == (20, 24)
    for name, block in blocks.items():
        assert np.ptp(block.values.astype(float), axis=0).max() > 1e-3, name  # posts differ


def test_trained_towers_are_read(world: World, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other pixels give other columns of a network with unfrozen encoders, and the same of one without."""
    monkeypatch.setenv("POPULARITY_WORKERS", "0")
    images = read_table(world.folder / "images.parquet", IMAGES)
    known = images.filter(pl.col("status") == "ok").sort("shard", "offset")
    location = ["shard", "offset", "bytes", "width", "height"]
    before = vectors(trained.out)["attended_image"].values
    # Two posts of one shard exchange their images; the cached vectors stay.
    first, second = known["pid"][0], known["pid"][1]
    other = {first: second, second: first}
    moved = images.select(pl.col("pid").replace(other), *location).sort("pid")
    write_table(images.with_columns(moved.select(location)), world.folder / "images.parquet", IMAGES)
    after = vectors(world.embed("exchanged"))["attended_image"]
    write_table(images, world.folder / "images.parquet", IMAGES)
    changed = (after.values != before).any(axis=1)
    assert changed[after.rows([first, second])].tolist() == [trained.live] * 2
    assert changed.sum() == 2 * trained.live
