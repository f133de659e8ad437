"""Puts a network together from parameters, prototypes and towers; writes and reads models/network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file, save_file

from popularity.config import load_params, parse_section
from popularity.encoders.image import EmbedImageParams, load_image_encoder, picture_transform
from popularity.encoders.image_blocks import PictureBatches
from popularity.encoders.prompting import PromptTower, load_prompt_tower, unfreeze_last
from popularity.encoders.text import EmbedTextParams
from popularity.encoders.text_blocks import post_text
from popularity.errors import ContractError
from popularity.files import atomic_path, fingerprint, reading, write_json
from popularity.network.model import Batch, PrototypeNetwork
from popularity.training.data import Int64Array
from popularity.training.loop import Epoch, Posts
from popularity.training.params import TrainParams
from popularity.training.reading import Inputs


@dataclass(frozen=True)
class EncoderPair:
    """Sections embed_image and embed_text: the encoders of the cached vectors, whose last blocks may train."""

    image: EmbedImageParams
    text: EmbedTextParams

    @classmethod
    def load(cls, path: Path) -> EncoderPair:
        """From the file of parameters."""
        image = load_params("embed_image", EmbedImageParams, path)
        return cls(image, load_params("embed_text", EmbedTextParams, path))


def build_network(params: TrainParams, inputs: Inputs, towers: EncoderPair) -> PrototypeNetwork:
    """A network with fresh weights drawn by `params.seed`, on the CPU."""
    tower = load_prompt_tower(towers.text)
    unfreeze_last(tower, params.unfreeze_blocks)
    image_tower = None
    if params.unfreeze_blocks:
        image_tower = load_image_encoder(towers.image)
        unfreeze_last(image_tower, params.unfreeze_blocks)
    names = tower.tokenize(inputs.names, towers.text.max_tokens)
    torch.manual_seed(params.seed)  # after the towers, whose loading may draw too
    return PrototypeNetwork(params.network, inputs.levels, tower, names, image_tower)


def posts_for(
    network: PrototypeNetwork,
    inputs: Inputs,
    posts: pl.DataFrame,
    images: pl.DataFrame,
    root: Path,
    towers: EncoderPair,
) -> Posts:
    """How `network` reads the posts: cached vectors, and pictures and texts where it needs them itself."""
    if network.image_tower is None and network.instance_prompt is None:
        return Posts(inputs.vectors.batch, inputs.vectors.facts)
    texts = posts.select(post_text())[:, 0].to_list()
    pictures = None
    if network.image_tower is not None:
        pictures = _Pictures(inputs, images, root, towers.image, network)
    return Posts(_LiveReader(inputs, texts, network.text_tower, towers.text.max_tokens, pictures), inputs.vectors.facts)


class _LiveReader:
    """Batches with the texts' own tokens and, for unfrozen towers, the pictures."""

    def __init__(
        self, inputs: Inputs, texts: Sequence[str], tower: PromptTower, max_tokens: int, pictures: _Pictures | None
    ) -> None:
        self.vectors, self.texts, self.pictures = inputs.vectors, texts, pictures
        self.tokenize, self.max_tokens = tower.tokenize, max_tokens

    def __call__(self, rows: Int64Array) -> Batch:
        batch = self.vectors.batch(rows)
        texts = self.tokenize([self.texts[row] for row in np.maximum(rows, 0)], self.max_tokens)
        pixels = None if self.pictures is None else self.pictures(rows)
        return batch._replace(texts=texts, pixels=pixels)


class _Pictures:
    """Pixels (b, 3, size, size) of the posts `rows`; zeros for posts without a readable picture."""

    def __init__(
        self, inputs: Inputs, images: pl.DataFrame, root: Path, params: EmbedImageParams, network: PrototypeNetwork
    ) -> None:
        encoder: Any = network.image_tower
        self.has_image = inputs.vectors.image_row >= 0
        pids = pl.DataFrame({"pid": inputs.vectors.pids})
        stored = pids.join(images, on="pid", how="left", validate="1:1", maintain_order="left")
        self.read = PictureBatches(root, stored, params.image_size, picture_transform(encoder.preprocessing))
        self.size = params.image_size

    def __call__(self, rows: Int64Array) -> torch.Tensor:
        pixels = torch.zeros(len(rows), 3, self.size, self.size, dtype=torch.uint8)
        there = np.flatnonzero(self.has_image[np.maximum(rows, 0)])
        found = self.read([int(row) for row in np.maximum(rows, 0)[there]])
        pixels[torch.from_numpy(there)] = found.pixels
        return pixels


def save_network(network: PrototypeNetwork, params: TrainParams, history: list[Epoch], folder: Path) -> None:
    """Writes network.safetensors (what trains; frozen towers stay with their encoders) and network.json."""
    tensors = {name: values.detach().cpu().contiguous() for name, values in network.state_dict().items()}
    with atomic_path(folder / "network.safetensors") as partial:
        save_file(tensors, partial)
    write_json(folder / "network.json", {"train": asdict(params), "classes": _classes_of(network), "history": history})


def trained_params(folder: Path) -> TrainParams:
    """Section train as it was when the network in `folder` was trained."""
    about = json.loads((folder / "network.json").read_text(encoding="utf-8"))
    return parse_section("train", about["train"], TrainParams, str(folder / "network.json"))


def load_network(folder: Path, inputs: Inputs, towers: EncoderPair) -> tuple[PrototypeNetwork, TrainParams]:
    """The network that `save_network` wrote, in evaluation mode on the CPU.

    Raises:
        ContractError: it was trained with other classes or encoders than those at hand.
    """
    params = trained_params(folder)
    network = build_network(params, inputs, towers)
    with reading(folder / "network.safetensors"):
        tensors = load_file(folder / "network.safetensors")
    own = network.state_dict()
    other = sorted(
        name
        for name in {*own, *tensors}
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape
    )
    about = json.loads((folder / "network.json").read_text(encoding="utf-8"))
    if about["classes"] != _classes_of(network):
        other = ["classes"]
    if other:
        raise ContractError(f"{folder}: the network was trained with other classes or encoders ({other[0]} differs)")
    network.load_state_dict(tensors)
    return network.eval(), params


def _classes_of(network: PrototypeNetwork) -> dict[str, Any]:
    """How many classes each level has, and which: no weight would tell, for none is a class's own."""
    names = [ids[:length].tolist() for ids, length in zip(*network.names, strict=True)]
    counts = {name: len(network.get_buffer(f"{name}_parent")) for name in network.level_names}
    return {"counts": counts, "names": fingerprint(names)}
