"""From the folders of earlier stages to what the network reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from safetensors import safe_open

from popularity.errors import DataError
from popularity.network.model import CLASS_LEVEL, Level
from popularity.prototypes.build import member_classes
from popularity.prototypes.classes import ClassIndex
from popularity.prototypes.vectors import ClassSums, leave_one_out
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
from popularity.training.data import Float32Array, Int64Array, PostVectors


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


def read_inputs(posts: pl.DataFrame, blocks: TowerOutputs, prototypes: Path, levels: tuple[str, ...]) -> Inputs:
    """What the network needs of `posts`, at `levels`.

    Args:
        posts: contract POSTS.
        blocks: of the same posts.
        prototypes: folder models/prototypes.
        levels: from the top down, with subcategory.

    Raises:
        DataError: a post without a text vector.
    """
    pids = posts["pid"].to_list()
    classes, members = (
        read_table(prototypes / "classes.parquet", CLASSES),
        read_table(prototypes / "members.parquet", MEMBERS),
    )
    about = json.loads((prototypes / "about.json").read_text(encoding="utf-8"))
    index = ClassIndex.from_posts(posts, classes, about["class_path"])
    token_rows = _rows(blocks.tokens.pids, pids)
    file = prototypes / "prototypes.safetensors"
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
        own=_OwnPrototypes(file, members, posts, index),
    )
    names = classes.filter(level=CLASS_LEVEL)["name"].to_list()
    return Inputs(vectors, {level: _level(file, level) for level in levels}, names)


class _OwnPrototypes:
    """The prototypes of posts' own classes, each without the post itself."""

    def __init__(self, file: Path, members: pl.DataFrame, posts: pl.DataFrame, index: ClassIndex) -> None:
        self.index = index
        self.sums = {(level, kind): ClassSums.read(file, level, kind) for level in LEVELS for kind in MODALITIES}
        self.members = {
            (level, kind): member_classes(members, posts, level, kind) for level in LEVELS for kind in MODALITIES
        }

    def __call__(self, level: str, kind: str, rows: Int64Array, vectors: Float32Array) -> Float32Array:
        """(b, d) of the posts `rows` with vectors (b, d); zeros for a post whose class training does not know."""
        above = LEVELS[: LEVELS.index(level) + 1]
        classes = self.index.rows[level][rows]
        known = classes >= 0
        result = np.zeros(vectors.shape, np.float32)
        result[known] = leave_one_out(
            [self.sums[name, kind] for name in above],
            classes[known],
            vectors[known],
            [self.members[name, kind][rows[known]] for name in above],
        )
        return result


def _level(file: Path, level: str) -> Level:
    with safe_open(file, "pt") as stored:
        return Level(*(stored.get_tensor(f"{level}.{name}") for name in ("visual", "text", "parent")))


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
