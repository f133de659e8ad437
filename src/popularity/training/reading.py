"""From the folders of earlier stages to what the network reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors import safe_open

from popularity.errors import DataError
from popularity.files import reading
from popularity.network.model import CLASS_LEVEL, Level
from popularity.prototypes.build import member_classes
from popularity.prototypes.classes import ClassIndex
from popularity.prototypes.vectors import ClassPrototypes, ClassSums
from popularity.schema import (
    CLASSES,
    LEVELS,
    MEMBERS,
    MODALITIES,
    Block,
    Tokens,
    read_block,
    read_table,
    read_tokens,
)
from popularity.training.data import Int64Array, PostVectors, draw_folds
from popularity.training.params import TrainParams


@dataclass(frozen=True)
class TowerOutputs:
    """Cached outputs of the frozen towers."""

    image: Block
    text: Block
    tokens: Tokens

    @classmethod
    def read(cls, image: Path, text: Path) -> TowerOutputs:
        """From the folders data/embeddings/image and data/embeddings/text."""
        return cls(read_block(image, "pooled"), read_block(text, "post"), read_tokens(text, "tokens"))


@dataclass(frozen=True)
class Inputs:
    """Posts and classes as the network reads them.

    Args:
        vectors: of all posts, in canonical order.
        levels: prototypes of every level.
        names: readable names of the K classes.
    """

    vectors: PostVectors
    levels: dict[str, Level]
    names: Sequence[str]


def read_inputs(posts: pl.DataFrame, blocks: TowerOutputs, prototypes: Path, params: TrainParams) -> Inputs:
    """What the network needs of `posts`.

    Args:
        posts: contract POSTS.
        blocks: of the same posts.
        prototypes: folder models/prototypes.
        params: of the network.

    Raises:
        DataError: a post without a text vector.
    """
    pids, folds = posts["pid"].to_list(), params.network.prototypes.folds
    levels: tuple[str, ...] = params.network.prototypes.levels
    classes, members = (
        read_table(prototypes / "classes.parquet", CLASSES),
        read_table(prototypes / "members.parquet", MEMBERS),
    )
    about = json.loads((prototypes / "about.json").read_text(encoding="utf-8"))
    index = ClassIndex.from_posts(posts, classes, about["class_path"])
    token_rows = _rows(blocks.tokens.pids, pids)
    file = prototypes / "prototypes.safetensors"
    places = [(level, kind) for level in LEVELS for kind in MODALITIES]
    sums = {place: ClassSums.read(file, *place) for place in places}
    own = {place: member_classes(members, posts, *place) for place in places}
    vectors = PostVectors(
        pids=pids,
        image=blocks.image.values,
        image_row=blocks.image.rows(pids),
        pooled=blocks.text.values,
        pooled_row=_rows(blocks.text.pids, pids),
        tokens=blocks.tokens.values,
        starts=blocks.tokens.offsets[token_rows],
        lengths=np.diff(blocks.tokens.offsets)[token_rows],
        target=np.stack([index.rows[level] for level in levels], axis=1),
        levels=levels,
        fold=draw_folds(index.rows[CLASS_LEVEL], folds, params.seed),
        prototypes=ClassPrototypes(LEVELS, sums, index.rows, own),
    )
    names = classes.filter(level=CLASS_LEVEL)["name"].to_list()
    return Inputs(vectors, {level: _level(file, level, vectors, folds) for level in levels}, names)


def _level(file: Path, level: str, vectors: PostVectors, folds: int) -> Level:
    with reading(file), safe_open(file, "pt") as stored:
        whole = Level(*(stored.get_tensor(f"{level}.{name}") for name in ("visual", "text", "parent")))
    if folds == 1:
        return whole
    visual, text = (
        torch.from_numpy(vectors.prototypes.without_folds(level, kind, vectors.fold, folds, read))
        for kind, read in (("visual", vectors.images), ("text", vectors.texts))
    )
    return whole._replace(fold_visual=visual, fold_text=text)


def _rows(order: Sequence[str], pids: Sequence[str]) -> Int64Array:
    place = {pid: row for row, pid in enumerate(order)}
    lost = [pid for pid in pids if pid not in place]
    if lost:
        raise DataError(
            f"{len(lost)} of {len(pids)} posts have no text vector, the first is {lost[0]}",
            expected="vectors of every post in the blocks 'post' and 'tokens'",
            fix="dvc repro embed_text",
        )
    return np.array([place[pid] for pid in pids], np.int64)


def training_rows(
    posts: pl.DataFrame, vectors: PostVectors, rows: str, validation_share: float, seed: int
) -> tuple[Int64Array, Int64Array]:
    """Rows that the network is trained on and rows that only measure it: posts whose class training knows.

    Args:
        rows: `all` posts, or those of the part `train`.
        validation_share: of them, drawn by `seed`.
    """
    known = vectors.target[:, vectors.levels.index(CLASS_LEVEL)] >= 0
    if rows == "train":
        known &= (posts["split"] == "train").to_numpy()
    order = np.random.default_rng(seed).permutation(np.flatnonzero(known))
    held_out = round(validation_share * len(order))
    return np.sort(order[held_out:]), np.sort(order[:held_out])
