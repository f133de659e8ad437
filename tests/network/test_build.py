"""A network is put together, written and read back bit for bit; posts are read live where cached vectors do not do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from popularity.core.contracts import IMAGES, read_table
from popularity.core.errors import ContractError
from popularity.encoders.image import load_image_encoder
from popularity.network.build import build_network, load_network, save_network
from popularity.network.heads import loss_terms
from popularity.network.inputs import EncoderPair, NetworkData, post_reader, read_network_data
from popularity.network.model import PrototypeNetwork
from popularity.network.params import TrainParams
from tests.encoders.tiny_encoders import Images, image_params, make_images, text_params
from tests.network.small_inputs import make_prototypes, random_block, random_outputs
from tests.network.small_network import INSTANCE, TOP_K, taken, total_loss
from tests.random_posts import random_posts
from tests.training.small_training import train_params

EVERYTHING = {**TOP_K, **INSTANCE, "weights.contrastive": 0.5, "weights.consistency": 0.1, "temperatures.learn": True}


@pytest.fixture(scope="module")
def posts() -> pl.DataFrame:
    return random_posts(0)


@pytest.fixture(scope="module")
def prototypes(posts: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prototypes(posts, random_outputs(posts, set(), set()), tmp_path_factory.mktemp("prototypes"))


@pytest.fixture
def towers(bert: Path) -> EncoderPair:
    return EncoderPair(image_params(), text_params(weights=f"path:{bert}", max_tokens=12))


def inputs_of(posts: pl.DataFrame, prototypes: Path, params: TrainParams) -> NetworkData:
    return read_network_data(posts, random_outputs(posts, set(), set()), prototypes, params)


def one_step(network: PrototypeNetwork, inputs: NetworkData) -> None:
    """So that no weight is where the seed put it."""
    optimizer = torch.optim.SGD([each for each in network.parameters() if each.requires_grad], lr=0.1)
    total_loss(network, inputs.vectors.batch(np.arange(16))).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


@pytest.mark.parametrize("changes", [{}, EVERYTHING])
def test_what_is_read_back_is_the_same_network(
    changes: dict[str, Any], posts: pl.DataFrame, prototypes: Path, towers: EncoderPair, tmp_path: Path
) -> None:
    params = train_params(**changes)
    inputs = inputs_of(posts, prototypes, params)
    network = build_network(params, inputs, towers)
    one_step(network, inputs)
    save_network(network, params, [{"train/loss": 1.5}], tmp_path)
    found, read = load_network(tmp_path, inputs, towers)
    assert read == params
    assert not found.training
    batch = inputs.vectors.batch(np.arange(40))
    batch = batch._replace(texts=network.text_tower.tokenize(["the sea"] * 40, 12))
    with torch.no_grad():
        expected, outputs = network.eval()(batch), found(batch)
    for name, values in expected._asdict().items():
        if name != "levels":
            assert torch.equal(getattr(outputs, name), values), name
    for name, level in expected.levels.items():
        assert torch.equal(outputs.levels[name].logits, level.logits)
        assert torch.equal(outputs.levels[name].visual, level.visual)
    for name, loss in loss_terms(network, expected, batch).items():
        assert torch.equal(loss_terms(found, outputs, batch)[name], loss)
    assert json.loads((tmp_path / "network.json").read_text())["history"] == [{"train/loss": 1.5}]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save_network(found, read, [{"train/loss": 1.5}], tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_initial_weights_follow_the_seed(posts: pl.DataFrame, prototypes: Path, towers: EncoderPair) -> None:
    params = train_params()
    inputs = inputs_of(posts, prototypes, params)
    first, again, other = (build_network(replace(params, seed=seed), inputs, towers).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(values, again[name]) for name, values in first.items())
    assert not torch.equal(first["global_prompt.context"], other["global_prompt.context"])


def fewer(inputs: NetworkData, count: int) -> NetworkData:
    level = inputs.levels["subcategory"]
    return replace(
        inputs,
        levels={**inputs.levels, "subcategory": taken(level, slice(count))},
        names=inputs.names[:count],
    )


def test_other_classes_and_other_encoders_are_refused(
    posts: pl.DataFrame, prototypes: Path, towers: EncoderPair, tmp_path: Path
) -> None:
    params = train_params()
    inputs = inputs_of(posts, prototypes, params)
    save_network(build_network(params, inputs, towers), params, [], tmp_path)
    load_network(tmp_path, inputs, towers)
    level = inputs.levels["subcategory"]
    wider = level._replace(visual=torch.cat([level.visual, level.visual], dim=1))
    for other, what in (
        (fewer(inputs, len(level.parent) - 1), "classes"),
        (replace(inputs, names=["cat", *inputs.names[1:]]), "classes"),
        (replace(inputs, levels={"subcategory": wider}), "attention.image_projection.weight"),
    ):
        with pytest.raises(ContractError, match=rf"trained with other classes or encoders \({what} differs\)"):
            load_network(tmp_path, other, towers)


@pytest.fixture(scope="module")
def image_set(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return make_images(tmp_path_factory.mktemp("image_set"))


def test_unfrozen_towers_read_images_and_texts(image_set: Images, towers: EncoderPair, tmp_path: Path) -> None:
    """20 posts: two broken images and a missing one; the state holds the towers."""
    images = read_table(image_set.table, IMAGES)
    pids = images["pid"].to_list()
    lost = {image_set.missing, image_set.broken}
    lost |= {pid for pid, content in image_set.contents.items() if len(content) < 300}
    posts = random_posts(0, train=15, test=5).with_columns(pid=pl.Series(sorted(pids))).sort("pid")
    towers = replace(towers, image=image_set.params())
    encoder = load_image_encoder(towers.image)
    blocks = replace(
        random_outputs(posts, set(), set()),
        image=random_block([pid for pid in posts["pid"] if pid not in lost], encoder.out_features, 1),
    )
    params = train_params(**INSTANCE, unfreeze_layers=1)
    inputs = read_network_data(posts, blocks, make_prototypes(posts, blocks, tmp_path / "prototypes"), params)
    network = build_network(params, inputs, towers)
    reader = post_reader(network, inputs, posts, images, image_set.root, towers)
    rows = np.array([4, 0, posts["pid"].to_list().index(image_set.missing), 19, -1])
    batch = reader.read(rows)
    assert batch.pixels is not None
    assert batch.texts is not None
    assert batch.pixels.shape == (5, 3, 32, 32)
    assert batch.has_image.tolist()[2] is False
    assert (batch.pixels[2] == 0).all()
    for position, row in enumerate(np.maximum(rows, 0)):
        title, tags = posts.row(int(row), named=True)["title"], posts.row(int(row), named=True)["tags"]
        expected = network.text_tower.tokenize([title if title.strip() else tags], 12)
        length = int(batch.texts.lengths[position])
        assert length == int(expected.lengths[0])
        assert batch.texts.ids[position, :length].tolist() == expected.ids[0, :length].tolist()
    with torch.no_grad():
        features = encoder(batch.pixels).float()
        outputs = network(batch)
    expected_image = torch.nn.functional.normalize(features, dim=-1) * batch.has_image[:, None]
    torch.testing.assert_close(outputs.projected_image, network.attention.image_projection(expected_image))
    for name, found in zip(("valid", "has_image", "has_token", "target"), reader.metadata(rows[:4]), strict=True):
        assert torch.equal(found, getattr(batch.metadata, name)[:4])
    save_network(network, params, [], tmp_path / "network")
    found_network, _ = load_network(tmp_path / "network", inputs, towers)
    assert {name.partition(".")[0] for name in found_network.state_dict()} >= {"tower", "image_tower"}
    assert torch.equal(found_network(batch).attended, network.eval()(batch).attended)
