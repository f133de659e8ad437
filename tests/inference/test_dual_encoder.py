"""A tiny randomly initialised CLIP from images and texts through training to the posts' columns."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
import torch
from accelerate import Accelerator

from popularity.core.arrays import Float32Array, Int64Array, normalize_rows
from popularity.core.atomic import read_json, write_json
from popularity.core.contracts import IMAGES, MEMBERS, POSTS, PROTOTYPE_SCALARS, read_table, write_table
from popularity.core.vectors import read_block, read_tokens
from popularity.encoders.image_blocks import embed_images
from popularity.encoders.text_blocks import embed_texts
from popularity.network.build import build_network, load_network, save_network, trained_params
from popularity.network.dataset import PostReader
from popularity.network.inputs import EncoderPair, post_reader, training_rows
from popularity.network.model import PrototypeNetwork
from popularity.network.params import TrainParams
from popularity.stack.feature_blocks import part_rows, read_blocks
from popularity.training.batches import TrainingPosts
from popularity.training.loop import OnEpoch, no_op, train_network
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


def train(world: World, state: Path, on_epoch: OnEpoch = no_op, **changes: Any) -> None:
    """A few real steps."""
    network, read, params = prepared(world, **changes)
    rows = TrainingPosts(read, *training_rows(world.posts(), world.inputs(params).vectors, params))
    history = train_network(network, rows, params, Accelerator(cpu=True), state=state, on_epoch=on_epoch)
    save_network(network, params, history, world.folder / "network")


def read_images(world: World) -> pl.DataFrame:
    return read_table(world.folder / "images.parquet", IMAGES)


def prepared(world: World, **changes: Any) -> tuple[PrototypeNetwork, PostReader, TrainParams]:
    """A network with fresh weights, and the reader of its posts."""
    params = train_params(batch_size=5, epochs=2, **changes)
    inputs = world.inputs(params)
    network = build_network(params, inputs, world.towers)
    reader = post_reader(network, inputs, world.posts(), read_images(world), world.folder / "root", world.towers)
    return network, reader, params


LIVE: dict[str, Any] = {"prompts.instance_length": 2, "unfreeze_layers": 1}


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
    if trained.live:  # what the network reads, after training
        image, text = read_block(out, "adapted_image"), read_block(out, "adapted_text")
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
            cosine = x @ h / np.linalg.norm(x) / np.linalg.norm(h)
            assert found == pytest.approx(1 - cosine, abs=2e-4 if trained.live else 1e-5)  # adapted: float16
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


TRAINED: dict[str, Any] = {"unfreeze_layers": 1, "lr_tower": 0.02, "prototypes.folds": 2}


def read_now(network: PrototypeNetwork, reader: PostReader, rows: Int64Array) -> dict[str, torch.Tensor]:
    """The vectors that the network's encoders give now, by modality."""
    network.eval()
    with torch.no_grad():
        read = network.read(reader.read(rows))
    return {"visual": read.image, "text": read.pooled}


def buffers(network: PrototypeNetwork) -> dict[str, torch.Tensor]:
    names = [f"subcategory_{name}" for name in ("visual", "text", "fold_visual", "fold_text")]
    return {name: network.get_buffer(name).clone() for name in names}


def test_prototypes_follow_trained_encoders(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made anew before every epoch; those of the last epoch are stored and read again, in features too."""
    monkeypatch.setenv("POPULARITY_WORKERS", "0")
    network, reader, params = prepared(world, **TRAINED)
    frozen, rows = buffers(network), np.arange(20)
    after: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []

    def on_epoch(index: int, values: dict[str, float]) -> None:
        after.append((buffers(network), read_now(network, reader, rows)))

    state, posts = tmp_path / "state", world.posts()
    training = TrainingPosts(reader, *training_rows(posts, world.inputs(params).vectors, params))
    history = train_network(network, training, params, Accelerator(cpu=True), state=state, on_epoch=on_epoch)
    save_network(network, params, history, tmp_path / "network")
    (first, between), (last, _) = after
    for name, values in first.items():  # nothing has been trained before the first epoch
        torch.testing.assert_close(values, frozen[name], atol=2e-3, rtol=0, msg=name)
        assert (last[name] - values).abs().max() > 0.01, name

    members = read_table(world.folder / "prototypes" / "members.parquet", MEMBERS).filter(level="subcategory")
    found, _ = load_network(tmp_path / "network", world.inputs(params), world.towers)
    again = post_reader(found, world.inputs(params), posts, read_images(world), world.folder / "root", world.towers)
    batch = again.read(rows)
    for kind, own in (("visual", batch.own_visual), ("text", batch.own_text)):
        assert torch.equal(found.get_buffer(f"subcategory_{kind}"), last[f"subcategory_{kind}"])
        of_kind = members.filter(modality=kind)
        for index in of_kind["index"].unique():
            pids = of_kind.filter(index=index)["pid"]
            own_rows = [row for row, pid in enumerate(posts["pid"]) if pid in set(pids)]
            vectors = between[kind][own_rows]
            expected = torch.nn.functional.normalize(vectors.sum(dim=0), dim=0)
            torch.testing.assert_close(last[f"subcategory_{kind}"][index], expected, atol=2e-3, rtol=0)
            for position, row in enumerate(own_rows):  # what is taken out is what was put in, not what is read now
                rest = vectors[[other for other in range(len(own_rows)) if other != position]].sum(dim=0)
                if len(own_rows) > 1:
                    left = torch.nn.functional.normalize(rest, dim=0)
                    torch.testing.assert_close(own[row, 0], left, atol=4e-3, rtol=0)

    # A run that was killed after its last epoch still has them.
    other, other_reader, _ = prepared(world, **TRAINED)
    training = replace(training, reader=other_reader)
    train_network(other, training, params, Accelerator(cpu=True), state=state)
    assert other.prototype_tensors is not None
    assert network.prototype_tensors is not None
    for name, values in network.prototype_tensors.items():
        assert torch.equal(other.prototype_tensors[name], values), name


def test_the_stack_reads_the_vectors_of_trained_encoders(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POPULARITY_WORKERS", "0")
    pids = world.posts()["pid"].to_list()
    columns: dict[str, dict[str, Float32Array]] = {}
    ways: dict[str, dict[str, Any]] = {"frozen": {}, "trained": TRAINED, "instance": {"prompts.instance_length": 2}}
    for way, changes in ways.items():
        train(world, tmp_path / way, **changes)
        embedded = world.embed(way)
        blocks = read_blocks(world.folder / "image", world.folder / "text", embedded)
        columns[way] = {part: part_rows(blocks, part, pids) for part in ("image", "post", "text")}
        if way == "trained":
            network, params = load_network(world.folder / "network", world.inputs(train_params()), world.towers)
            reader = post_reader(
                network, world.inputs(params), world.posts(), read_images(world), world.folder / "root", world.towers
            )
            now = read_now(network, reader, np.arange(20))
            there = ~np.isnan(columns[way]["image"]).any(axis=1)
            np.testing.assert_allclose(columns[way]["image"][there], now["visual"].numpy()[there], atol=2e-3)
            np.testing.assert_allclose(columns[way]["post"], now["text"].numpy(), atol=2e-3)
            # They stand for the vectors of the same encoder alone: a stack with another one keeps that one's.
            other = tmp_path / "other"
            shutil.copytree(world.folder / "image", other)
            about = read_json(other / "pooled.json")
            write_json(other / "pooled.json", about | {"weights": "of another encoder"})
            kept = read_blocks(other, world.folder / "text", embedded)
            np.testing.assert_array_equal(part_rows(kept, "image", pids), columns["frozen"]["image"])
            np.testing.assert_array_equal(part_rows(kept, "post", pids), columns[way]["post"])
    for part in ("image", "post", "text"):
        assert changed(columns["frozen"][part], columns["trained"][part]), part
        assert changed(columns["frozen"][part], columns["instance"][part]) == (part != "image"), part
        assert columns["frozen"][part].shape == columns["trained"][part].shape


def changed(one: Float32Array, other: Float32Array) -> bool:
    """Whether any post's direction differs."""
    first, second = (normalize_rows(np.nan_to_num(values)) for values in (one, other))
    return bool(np.abs(first - second).max() > 0.02)
