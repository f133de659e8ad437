"""What the stage embed_posts reads, made of random vectors: posts of every awkward kind, prototypes, a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from ruamel.yaml import YAML

from popularity.core.contracts import IMAGES, POSTS, read_table, write_table
from popularity.core.vectors import Block, read_block, write_block, write_tokens
from popularity.inference.embed import EmbedPostsParams
from popularity.network.build import build_network, save_network
from popularity.network.inputs import EncoderOutputs, EncoderPair, NetworkData, read_network_data
from popularity.network.params import TrainParams
from popularity.prototypes.build import PrototypesParams, build_prototypes, write_prototypes
from stages import embed_posts
from tests.encoders.tiny_encoders import encoder_sections, image_params, text_params
from tests.network.small_inputs import random_block, random_outputs
from tests.network.small_network import total_loss
from tests.random_posts import random_images, random_posts
from tests.repository import stage_flags
from tests.training.small_training import train_params

EMBED = EmbedPostsParams(batch_size=8, shard_rows=20, nearest=3)
LONE, UNSEEN = "C0/the sea", "C1/never"
NAMES = ("cat", "dog", "sunset", "sea")  # words of the tiny tokenizer, for the classes S0 to S3


def readable_posts(train: int, test: int, seed: int = 0) -> pl.DataFrame:
    """Random posts of classes that the tiny tower distinguishes."""
    names = {f"/S{index}": f"/{name}" for index, name in enumerate(NAMES)}
    return random_posts(seed, train, test).with_columns(
        pl.col(level).str.replace_many(names) for level in ("subcategory", "concept")
    )


def awkward_posts() -> pl.DataFrame:
    """40 training and 16 test posts: one training post alone in its class, three test posts of an unseen class."""
    posts = readable_posts(train=40, test=16)
    alone = posts.filter(split="train")["pid"][0]
    unseen = posts.filter(split="test")["pid"].head(3)
    key = (
        pl.when(pl.col("pid") == alone)
        .then(pl.lit(LONE))
        .when(pl.col("pid").is_in(unseen.implode()))
        .then(pl.lit(UNSEEN))
    )
    return posts.with_columns(
        category=key.str.slice(0, 2).fill_null(pl.col("category")),
        subcategory=key.fill_null(pl.col("subcategory")),
        concept=(key + "/x").fill_null(pl.col("concept")),
    )


@dataclass(frozen=True)
class World:
    """Everything in one folder, under the names of the stage's flags.

    Args:
        folder: posts.parquet, images.parquet, image/, text/, prototypes/, network/.
        towers: entries of embed_image and embed_text.
    """

    folder: Path
    towers: EncoderPair

    def posts(self) -> pl.DataFrame:
        return read_table(self.folder / "posts.parquet", POSTS)

    def outputs(self) -> EncoderOutputs:
        return EncoderOutputs.read(self.folder / "image", self.folder / "text")

    def inputs(self, params: TrainParams) -> NetworkData:
        return read_network_data(self.posts(), self.outputs(), self.folder / "prototypes", params)

    def make_prototypes(self, without: Sequence[str] = ()) -> None:
        """Every post is a representative, but for those in `without`."""
        posts, outputs = self.posts().filter(~pl.col("pid").is_in(list(without))), self.outputs()
        params = PrototypesParams(seed=0, max_per_class=256, class_name_format="path")
        write_prototypes(
            build_prototypes(posts, outputs.image, outputs.text, params, transductive=True), self.folder / "prototypes"
        )

    def make_network(self, **changes: Any) -> TrainParams:
        """A network one step away from where its seed put it."""
        params = train_params(**changes)
        inputs = self.inputs(params)
        network = build_network(params, inputs, self.towers)
        optimizer = torch.optim.SGD([each for each in network.parameters() if each.requires_grad], lr=0.1)
        rows = (inputs.vectors.target[:, 0] >= 0).nonzero()[0][:24]
        total_loss(network, inputs.vectors.batch(rows)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        save_network(network, params, [], self.folder / "network")
        return params

    def arguments(self, name: str = "out", **changes: int) -> list[str]:
        """Of the stage, with outputs <name> and <name>-explain."""
        values = encoder_sections(self.towers.image, self.towers.text)
        params = self.folder / f"{name}.yaml"
        YAML().dump(values | {"embed_posts": {**asdict(EMBED), **changes}}, params)
        paths = {"params": params.name, "posts": "posts.parquet", "images": "images.parquet"}
        paths |= {key: key for key in ("root", "image", "text", "prototypes", "network")}
        paths |= {"out": name, "explain": f"{name}-explain", "resources": f"{name}.json", "state": ".state"}
        return stage_flags("embed_posts", self.folder, **paths)

    def embed(self, name: str = "out", **changes: int) -> Path:
        """The folder that the stage writes, run in this process."""
        embed_posts.main(self.arguments(name, **changes))
        return self.folder / name


def make_world(folder: Path, bert: Path) -> World:
    """Without a network yet. Some posts lack an image, some texts, some both; among the unseen classes too."""
    posts = awkward_posts()
    write_table(posts, folder / "posts.parquet", POSTS)
    write_table(random_images(posts, seed=0), folder / "images.parquet", IMAGES)
    unseen = posts.filter(subcategory=UNSEEN)["pid"].to_list()
    known = posts.filter(~pl.col("subcategory").is_in([UNSEEN, LONE]))["pid"].to_list()
    outputs = random_outputs(posts, {unseen[0], *known[2:10:3]}, {unseen[1], *known[5:15:3]})
    write_block(outputs.image, folder / "image", "pooled")
    for name in ("title", "tags"):
        write_block(random_block(posts["pid"].to_list(), 4, seed=3), folder / "text", name)
    write_block(outputs.text, folder / "text", "post")
    write_tokens(outputs.tokens, folder / "text", "tokens")
    world = World(folder, EncoderPair(image_params(), text_params(weights=f"path:{bert}", max_tokens=12)))
    world.make_prototypes()
    return world


def contents(*folders: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for folder in folders for path in sorted(folder.iterdir())}


def vectors(folder: Path) -> dict[str, Block]:
    """All blocks of an output folder by name."""
    return {path.stem: read_block(folder, path.stem) for path in sorted(folder.glob("*.npy"))}
