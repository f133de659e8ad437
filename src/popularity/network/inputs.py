"""Reads the tables and folders of earlier stages into the inputs of the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors import safe_open

from popularity.core.arrays import Int64Array
from popularity.core.atomic import read_json, reading
from popularity.core.contracts import CLASSES, LEVELS, MEMBERS, MODALITIES, read_table
from popularity.core.errors import DataError
from popularity.core.vectors import Block, Tokens, read_block, read_tokens
from popularity.encoders.image import EmbedImageParams, ImageTransform, network_image_params
from popularity.encoders.image_blocks import ImageBatches
from popularity.encoders.prompting import PromptTower
from popularity.encoders.text import EmbedTextParams, network_text_params
from popularity.encoders.text_blocks import post_text
from popularity.network.adapted import adapted_prototypes
from popularity.network.dataset import Batch, PostReader, PostVectors, draw_folds
from popularity.network.model import PrototypeNetwork, TaxonomyLevel
from popularity.network.params import CLASS_LEVEL, TrainParams
from popularity.prototypes.build import member_classes, member_rows
from popularity.prototypes.classes import ClassIndex, with_clusters
from popularity.prototypes.vectors import ClassPrototypes, ClassSums


@dataclass(frozen=True)
class EncoderPair:
    """The entries of embed_image and embed_text behind the cached vectors; their last layers may train."""

    image: EmbedImageParams
    text: EmbedTextParams

    @classmethod
    def load(cls, path: Path) -> EncoderPair:
        """The pair that section encoders.network of the file of parameters names."""
        return cls(network_image_params(path), network_text_params(path))


@dataclass(frozen=True)
class EncoderOutputs:
    """Cached outputs of the frozen encoders."""

    image: Block
    text: Block
    tokens: Tokens

    @classmethod
    def read(cls, image: Path, text: Path) -> EncoderOutputs:
        """From the encoders' folders in data/embeddings."""
        return cls(read_block(image, "pooled"), read_block(text, "post"), read_tokens(text, "tokens"))


@dataclass(frozen=True)
class NetworkData:
    """Posts and classes as the network reads them.

    Args:
        vectors: of all posts, in canonical order.
        levels: prototypes of every level.
        names: readable names of the K classes.
    """

    vectors: PostVectors
    levels: dict[str, TaxonomyLevel]
    names: Sequence[str]


def read_network_data(
    posts: pl.DataFrame, outputs: EncoderOutputs, prototypes: Path, params: TrainParams
) -> NetworkData:
    """Vectors, classes and prototypes of `posts` for the network.

    Args:
        posts: contract POSTS.
        outputs: of the encoders for the same posts.
        prototypes: folder models/prototypes.
        params: section train.

    Raises:
        DataError: a post without a text vector.
    """
    posts = with_clusters(posts, prototypes)
    pids, folds = posts["pid"].to_list(), params.network.prototypes.folds
    levels: tuple[str, ...] = params.network.prototypes.levels
    classes = read_table(prototypes / "classes.parquet", CLASSES)
    members = read_table(prototypes / "members.parquet", MEMBERS)
    metadata = read_json(prototypes / "metadata.json")
    index = ClassIndex.from_posts(posts, classes, metadata["class_name_format"])
    token_rows = _rows(outputs.tokens.pids, pids)
    file = prototypes / "prototypes.safetensors"
    keys = [(level, kind) for level in LEVELS for kind in MODALITIES]
    sums = {key: ClassSums.read(file, *key) for key in keys}
    own = {key: member_classes(members, posts, *key) for key in keys}
    stored = {kind: member_rows(members, posts, kind) for kind in MODALITIES}
    vectors = PostVectors(
        pids=pids,
        image=outputs.image.values,
        image_row=outputs.image.rows(pids),
        pooled=outputs.text.values,
        pooled_row=_rows(outputs.text.pids, pids),
        tokens=outputs.tokens.values,
        starts=outputs.tokens.offsets[token_rows],
        lengths=np.diff(outputs.tokens.offsets)[token_rows],
        target=np.stack([index.rows[level] for level in levels], axis=1),
        levels=levels,
        fold=draw_folds(index.rows[CLASS_LEVEL], folds, params.seed),
        prototypes=ClassPrototypes(LEVELS, sums, index.rows, own, stored),
    )
    names = classes.filter(level=CLASS_LEVEL)["name"].to_list()
    return NetworkData(vectors, {level: _level(file, level, vectors, folds) for level in levels}, names)


def training_rows(posts: pl.DataFrame, vectors: PostVectors, params: TrainParams) -> tuple[Int64Array, Int64Array]:
    """Rows (n,) to train on and validation rows (m,), both sorted; transductive training has rows of both splits.

    Only posts whose class training knows.

    Args:
        posts: contract POSTS.
        vectors: of the same posts.
        params: `transductive` takes the posts of both splits, else those of the split `train`; `valid_fraction`
            of them is drawn by `seed`.
    """
    known = vectors.target[:, vectors.levels.index(CLASS_LEVEL)] >= 0
    if not params.transductive:
        known &= (posts["split"] == "train").to_numpy()
    order = np.random.default_rng(params.seed).permutation(np.flatnonzero(known))
    held_out = round(params.valid_fraction * len(order))
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def post_reader(
    network: PrototypeNetwork,
    data: NetworkData,
    posts: pl.DataFrame,
    images: pl.DataFrame,
    root: Path,
    encoders: EncoderPair,
) -> PostReader:
    """The reader of the posts: cached vectors, and images and texts where `network` encodes them itself.

    Args:
        network: with the encoders that train.
        data: of the same posts.
        posts: contract POSTS.
        images: contract IMAGES.
        root: of the data set.
        encoders: behind the cached vectors.
    """
    if network.image_tower is None and network.instance_prompt is None:
        return data.vectors.reader
    texts = posts.select(post_text())[:, 0].to_list()
    pixels = None
    if network.image_tower is not None:
        pixels = _Pixels(data, images, root, encoders.image, network)
    vectors = data.vectors
    if network.prototype_tensors is not None:
        vectors = adapted_prototypes(vectors, network.prototype_tensors)
    read = _LiveReader(vectors, texts, network.text_tower, encoders.text.max_tokens, pixels)
    return PostReader(read, vectors.metadata, read)


class _LiveReader:
    """Batches with the texts' own tokens and, for unfrozen encoders, the pixels.

    Its `vectors` are replaced when prototypes are made anew: processes that read ahead must start after that.
    """

    def __init__(
        self, vectors: PostVectors, texts: Sequence[str], tower: PromptTower, max_tokens: int, pixels: _Pixels | None
    ) -> None:
        self.vectors, self.texts, self.pixels = vectors, texts, pixels
        self.tokenize, self.max_tokens = tower.tokenize, max_tokens

    def __call__(self, rows: Int64Array) -> Batch:
        batch = self.vectors.batch(rows)
        texts = self.tokenize([self.texts[row] for row in np.maximum(rows, 0)], self.max_tokens)
        pixels = None if self.pixels is None else self.pixels(rows)
        return batch._replace(texts=texts, pixels=pixels)


class _Pixels:
    """Pixels (b, 3, size, size) of the posts `rows`; zeros for posts without a readable image."""

    def __init__(
        self, data: NetworkData, images: pl.DataFrame, root: Path, params: EmbedImageParams, network: PrototypeNetwork
    ) -> None:
        encoder: Any = network.image_tower
        self.has_image = data.vectors.image_row >= 0
        pids = pl.DataFrame({"pid": data.vectors.pids})
        stored = pids.join(images, on="pid", how="left", validate="1:1", maintain_order="left")
        transform = ImageTransform(encoder.preprocessing)
        self.read = ImageBatches(root, stored, params.image_size, transform, described=False)
        self.size = params.image_size

    def __call__(self, rows: Int64Array) -> torch.Tensor:
        pixels = torch.zeros(len(rows), 3, self.size, self.size, dtype=torch.uint8)
        with_image = np.flatnonzero(self.has_image[np.maximum(rows, 0)])
        found = self.read([int(row) for row in np.maximum(rows, 0)[with_image]])
        pixels[torch.from_numpy(with_image)] = found.pixels
        return pixels


def _level(file: Path, level: str, vectors: PostVectors, folds: int) -> TaxonomyLevel:
    with reading(file), safe_open(file, "pt") as stored:
        whole = TaxonomyLevel(*(stored.get_tensor(f"{level}.{name}") for name in ("visual", "text", "parent")))
    if folds == 1:
        return whole
    visual, text = (
        torch.from_numpy(vectors.prototypes.without_folds(level, kind, vectors.fold, folds, read))
        for kind, read in (("visual", vectors.images), ("text", vectors.texts))
    )
    return whole._replace(fold_visual=visual, fold_text=text)


def _rows(order: Sequence[str], pids: Sequence[str]) -> Int64Array:
    row_of = {pid: row for row, pid in enumerate(order)}
    missing = [pid for pid in pids if pid not in row_of]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(pids)} posts have no text vector, the first is {missing[0]}",
            expected="vectors of every post in the blocks 'post' and 'tokens'",
            fix="dvc repro embed_text",
        )
    return np.array([row_of[pid] for pid in pids], np.int64)
