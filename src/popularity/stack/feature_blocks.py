"""What the stack reads beside the features: stored vectors and named scalars of posts, keyed by pid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from popularity.core.contracts import IMAGE_STATISTICS, PROTOTYPE_SCALARS, read_table
from popularity.core.errors import ConfigError, ContractError
from popularity.core.vectors import Block, read_block
from popularity.stack.oof_ridge import FloatArray

PrototypePart = Literal[
    "global_prompt",  # G_y
    "local_prompt",  # L_y
    "attended_image",  # x~
    "attended_visual",  # V~_y
    "attended_text",  # T~_y
    "logits",  # p, p', q of every class, and scalars of the own class
    "losses",
    "distance",
    "unseen",
]

# Stored vectors of the block `prototype`, one a part (Eq 11 and the logits).
PROTOTYPE_VECTORS: tuple[PrototypePart, ...] = (
    "global_prompt",
    "local_prompt",
    "attended_image",
    "attended_visual",
    "attended_text",
    "logits",
)
# The stored vectors that side by side make up a part.
PART_VECTORS: Mapping[str, tuple[str, ...]] = {
    "image": ("image",),
    "text": ("title", "tags"),
    **{part: (part,) for part in PROTOTYPE_VECTORS},
}
# Part of the block `prototype` by what its scalar columns are called before the first dot.
PROTOTYPE_SCALAR_PARTS: Mapping[str, PrototypePart] = {
    "logits": "logits",
    "losses": "losses",
    "distance": "distance",
    "class_unseen": "unseen",
}


@dataclass(frozen=True)
class Blocks:
    """Everything dense that a fit may read.

    Args:
        vectors: `image`, `title`, `tags` and those of PROTOTYPE_VECTORS that are there.
        scalars: columns of PROTOTYPE_SCALARS and, named picture.<what>, of IMAGE_STATISTICS.
    """

    vectors: Mapping[str, Block]
    scalars: pl.DataFrame


def read_blocks(image: Path, text: Path, prototype: Path) -> Blocks:
    """The blocks in the folders of the three embed stages; vectors stay on disk (memory maps).

    Raises:
        ContractError: a scalar column is no Float32 or belongs to no part of the block.
    """
    scalars = read_table(prototype / "scalars.parquet", PROTOTYPE_SCALARS)
    for column, dtype in list(scalars.schema.items())[1:]:
        if dtype != pl.Float32 or _prefix(column) not in PROTOTYPE_SCALAR_PARTS:
            raise ContractError(
                f"{prototype / 'scalars.parquet'}: expected Float32 columns named "
                f"{'.*, '.join(PROTOTYPE_SCALAR_PARTS)}; found {column} {dtype}"
            )
    vectors = {"image": read_block(image, "pooled")}
    vectors |= {name: read_block(text, name) for name in ("title", "tags")}
    # A network without visual or text prototypes in its sequence has no such attended vectors.
    vectors |= {
        name: read_block(prototype, name) for name in PROTOTYPE_VECTORS if (prototype / f"{name}.npy").is_file()
    }
    if (image / "statistics.parquet").is_file():  # a folder of before there were any does without
        statistics = read_table(image / "statistics.parquet", IMAGE_STATISTICS)
        scalars = scalars.join(statistics, on="pid", how="full", coalesce=True, validate="1:1").sort("pid")
    return Blocks(vectors, scalars)


def dense_parts(block: str, prototype_parts: Sequence[PrototypePart]) -> tuple[str, ...]:
    """The parts of a block that are vectors, in order; each is reduced on its own.

    Parts of `prototype` differ in width and in kind (some are constant within a class), so each gets
    components of its own. `metadata` has none.
    """
    if block == "prototype":
        return tuple(part for part in PROTOTYPE_VECTORS if part in prototype_parts)
    return (block,) if block in PART_VECTORS else ()


def dense_rows(blocks: Blocks, name: str, pids: Sequence[str]) -> FloatArray:
    """(n, d) float32 vectors of `pids`; a post without a vector is a row of NaN.

    Raises:
        ConfigError: the network that made the block `prototype` has no such vectors.
    """
    if name not in blocks.vectors:
        raise ConfigError(
            f"stack.columns.prototype_parts: {name} is not there: train.network.attention.prototypes leaves it out"
        )
    block = blocks.vectors[name]
    rows = block.rows(pids)
    result = np.full((len(pids), block.values.shape[1]), np.nan, dtype=np.float32)
    known = rows >= 0
    result[known] = block.values[rows[known]]
    return result


def part_rows(blocks: Blocks, part: str, pids: Sequence[str]) -> FloatArray:
    """(n, sum of d) vectors of a part: its stored vectors side by side."""
    return np.hstack([dense_rows(blocks, name, pids) for name in PART_VECTORS[part]])


def scalar_names(block: str, blocks: Blocks, prototype_parts: Sequence[PrototypePart]) -> tuple[str, ...]:
    """The columns that `scalar_columns` can give of a block, or of the feature_groups `picture`, in order."""
    if block == "picture":
        names = tuple(column for column in blocks.scalars.columns if _prefix(column) == block)
        if not names:
            raise ConfigError(
                "stack.columns.feature_groups: picture needs data/embeddings/image/statistics.parquet, which is not there; "
                "run `dvc repro embed_image`"
            )
        return names
    if block == "prototype":
        kept = [prefix for prefix, part in PROTOTYPE_SCALAR_PARTS.items() if part in prototype_parts]
        return tuple(column for column in blocks.scalars.columns if _prefix(column) in kept)
    return {"image": ("image_norm",), "text": ("title_tags_cosine",)}.get(block, ())


def scalar_columns(block: str, names: Sequence[str], blocks: Blocks, pids: Sequence[str]) -> dict[str, FloatArray]:
    """Named scalars (n,) of a block, kept beside its components; NaN where a post has none.

    image: the vector's norm (how much the encoder responds). text: cosine of title and tags. prototype: those
    of its table that are in `names`.
    """
    if block == "image":
        vectors = dense_rows(blocks, "image", pids)
        return {"image_norm": np.linalg.norm(vectors, axis=1).astype(np.float32)}
    if block == "text":
        title, tags = (dense_rows(blocks, part, pids) for part in ("title", "tags"))
        norms = np.linalg.norm(title, axis=1) * np.linalg.norm(tags, axis=1)
        return {"title_tags_cosine": ((title * tags).sum(axis=1) / np.maximum(norms, 1e-6)).astype(np.float32)}
    table = prototype_scalars(blocks.scalars.select("pid", *names), pids)
    return {name: table[name].cast(pl.Float32).fill_null(float("nan")).to_numpy() for name in names}


def prototype_scalars(scalars: pl.DataFrame, pids: Sequence[str]) -> pl.DataFrame:
    """The rows of `scalars` in the order of `pids`; null for posts that are not in it."""
    wanted = pl.DataFrame({"pid": list(pids)}, schema={"pid": pl.String})
    return wanted.join(scalars, on="pid", how="left", validate="1:1", maintain_order="left").drop("pid")


def _prefix(column: str) -> str:
    return column.partition(".")[0]
