"""Posts that come to embedded ones: read as if they had been there, and their likeliest class."""

from __future__ import annotations

import numpy as np
import polars as pl
import torch
from accelerate.state import AcceleratorState

from popularity.core.contracts import IMAGES, PROTOTYPE_SCALARS, read_table
from popularity.core.vectors import read_block
from popularity.inference.embed import Folders, NetworkInputs, embed_posts, probable_classes
from popularity.network.accelerator import make_accelerator
from popularity.network.build import load_network
from tests.inference.small_world import EMBED, UNSEEN, World, vectors


def folders(world: World) -> Folders:
    return Folders(*(world.folder / name for name in ("root", "image", "text", "prototypes", "network")))


def inputs_of(world: World, posts: pl.DataFrame, images: pl.DataFrame) -> NetworkInputs:
    return NetworkInputs(posts, images, folders(world), world.towers, EMBED, make_accelerator("fp32"))


def test_posts_that_come_later_are_read_as_if_they_had_been_there(world: World) -> None:
    world.make_network()
    whole = world.embed("whole")
    posts, images = world.posts(), read_table(world.folder / "images.parquet", IMAGES)
    further = pl.col("pid").is_in(posts.filter(split="test")["pid"].gather_every(3).implode())
    (world.folder / "further-state").mkdir()
    AcceleratorState._reset_state()
    embed_posts(
        inputs_of(world, posts.filter(further), images.filter(further)),
        state=world.folder / "further-state",
        out=world.folder / "further",
        explain=world.folder / "further-explain",
    )
    scalars, expected = (
        read_table(folder / "scalars.parquet", PROTOTYPE_SCALARS) for folder in (world.folder / "further", whole)
    )
    same = scalars.select("pid").join(expected, on="pid", how="left", validate="1:1", maintain_order="left")
    for name in scalars.columns[1:]:
        assert np.allclose(scalars[name].fill_null(9.0), same[name].fill_null(9.0), atol=1e-5), name
    for name, block in vectors(world.folder / "further").items():
        other = read_block(whole, name)
        assert np.allclose(block.values, other.values[other.rows(block.pids)], atol=2e-3), name


def test_the_mixture_of_posts_without_a_class_is_by_these_probabilities(world: World) -> None:
    params = world.make_network()
    whole = world.embed("whole")
    posts, images = world.posts(), read_table(world.folder / "images.parquet", IMAGES)
    blank = posts.filter(subcategory=UNSEEN)
    AcceleratorState._reset_state()
    own_images = images.filter(pl.col("pid").is_in(blank["pid"].implode()))
    found = probable_classes(inputs_of(world, blank, own_images))
    assert np.allclose(found.sum(axis=1), 1, atol=1e-5)
    network, _ = load_network(world.folder / "network", world.inputs(params), world.towers)
    with torch.inference_mode():
        prompts = network.class_prompts()[0].numpy()
    block = read_block(whole, "global_prompt")
    assert np.allclose(found @ prompts, block.values[block.rows(blank["pid"].to_list())], atol=2e-3)
