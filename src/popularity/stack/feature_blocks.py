"""The dense blocks that the stack reads: stored vectors and named scalars of posts, by pid."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from popularity.core.arrays import Float32Array, chunks
from popularity.core.contracts import (
    CLASS_LOSSES,
    IMAGE_STATISTICS,
    POST_CLASSES,
    PROTOTYPE_SCALARS,
    empty_table,
    read_table,
)
from popularity.core.errors import ConfigError, ContractError
from popularity.core.vectors import ADAPTED_FROM, Block, read_block

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

TextVectors = Literal["title_and_tags", "post"]  # of the block `text`; post: f_T(r) of Eq 11

# Stored vectors of the block `prototype`, one for each part (Eq 11 and the logits).
PROTOTYPE_VECTORS: tuple[PrototypePart, ...] = (
    "global_prompt",
    "local_prompt",
    "attended_image",
    "attended_visual",
    "attended_text",
    "logits",
)
# The stored vectors that are joined to a part.
PART_VECTORS: Mapping[str, tuple[str, ...]] = {
    "image": ("image",),
    "text": ("title", "tags"),
    "post": ("post",),
    **{part: (part,) for part in PROTOTYPE_VECTORS},
}
# What a network with adapted encoders reads, f_I(x) and f_T(t) of Eq 11, takes the place of the vectors that the same
# encoder gave before.
ADAPTED: Mapping[str, str] = {"image": "adapted_image", "title": "adapted_text", "post": "adapted_text"}
# Part of the block `prototype`, by the prefix of its scalar columns (before the first dot).
PROTOTYPE_SCALAR_PARTS: Mapping[str, PrototypePart] = {
    "logits": "logits",
    "losses": "losses",
    "distance": "distance",
    "class_unseen": "unseen",
}
IMAGE_STATISTICS_BLOCK = "image_statistics"  # of the feature group `image`


@dataclass(frozen=True)
class Blocks:
    """The dense blocks of all posts.

    Args:
        vectors: `image`, `title`, `tags`, `post` and those of PROTOTYPE_VECTORS and ADAPTED that the network has. Where
            the stack reads several encoders of a kind, the names of their vectors end with `.<encoder>`.
        scalars: columns of PROTOTYPE_SCALARS and, named image_statistics.<name>, of IMAGE_STATISTICS.
        losses: contract CLASS_LOSSES; row selection alone reads them.
        masked: likewise `vectors` and `scalars` of posts whose class is masked.
        masked_pids: posts whose class is masked.
    """

    vectors: Mapping[str, Block]
    scalars: pl.DataFrame
    losses: pl.DataFrame = field(default_factory=lambda: empty_table(CLASS_LOSSES))
    masked: MaskedBlocks | None = None
    masked_pids: frozenset[str] = frozenset()

    def blocks_of(self, kind: str) -> tuple[str, ...]:
        """The blocks of a kind of `stack.columns.feature_blocks`: one, or `<kind>.<encoder>` for each of several."""
        first = {"image": "image", "text": "title"}.get(kind, "")
        ends = [name.removeprefix(first) for name in self.vectors if first and name.partition(".")[0] == first]
        return tuple(kind + end for end in ends) or (kind,)

    def with_masked(self, pids: Collection[str]) -> Blocks:
        """The blocks in which the posts `pids` are read as if no training post were of their class."""
        return replace(self, masked_pids=frozenset(pids))

    def classes_of(self, pids: pl.Series) -> pl.Series | None:
        """(n,) the classes of n posts; "" for an empty one. None where the blocks hold nothing of masked posts."""
        if self.masked is None:
            return None
        known = self.masked.classes
        return pids.replace_strict(known["pid"], known["class"], default=None, return_dtype=pl.String).fill_null("")

    def masked_rows(self, pids: Sequence[str]) -> list[int]:
        """The positions in `pids` of posts whose class is masked; none where the blocks hold nothing of them."""
        if self.masked is None or not self.masked_pids:
            return []
        return [row for row, pid in enumerate(pids) if pid in self.masked_pids]


@dataclass(frozen=True)
class MaskedBlocks:
    """Values of every post as if no training post were of its class; where they do not depend on the class, none.

    Args:
        vectors: by the names of Blocks.vectors.
        scalars: with columns of Blocks.scalars.
        classes: contract POST_CLASSES: the class that is meant.
    """

    vectors: Mapping[str, Block]
    scalars: pl.DataFrame
    classes: pl.DataFrame


def read_blocks(image: Path, text: Path, prototype: Path) -> Blocks:
    """The blocks that the three embed stages wrote; vectors stay on disk (memory maps).

    Args:
        image: folder of an image encoder that stage embed_image wrote, or a folder that holds one for each encoder.
        text: likewise for stage embed_text.
        prototype: folder of stage embed_posts.

    Raises:
        ContractError: a scalar column is not Float32 or belongs to no part of the block.
    """
    scalars = read_table(prototype / "scalars.parquet", PROTOTYPE_SCALARS)
    for column, dtype in list(scalars.schema.items())[1:]:
        if dtype != pl.Float32 or _prefix(column) not in PROTOTYPE_SCALAR_PARTS:
            raise ContractError(
                f"{prototype / 'scalars.parquet'}: expected Float32 columns named "
                f"{'.*, '.join(PROTOTYPE_SCALAR_PARTS)}; found {column} {dtype}"
            )
    images, texts = _by_ending(image, "pooled"), _by_ending(text, "title")
    vectors = {f"image{end}": read_block(folder, "pooled") for end, folder in images.items()}
    vectors |= {
        f"{name}{end}": read_block(folder, name) for end, folder in texts.items() for name in ("title", "tags", "post")
    }
    # A network without visual or text prototypes in its sequence has no such attended vectors.
    vectors |= {
        name: read_block(prototype, name) for name in PROTOTYPE_VECTORS if (prototype / f"{name}.npy").is_file()
    }
    for name, adapted in ADAPTED.items():
        if (prototype / f"{adapted}.npy").is_file():
            block = read_block(prototype, adapted)
            for end in images if name == "image" else texts:
                if block.metadata["preprocessing"].get(ADAPTED_FROM) == vectors[name + end].metadata["weights"]:
                    vectors[adapted + end] = block
    first = next(iter(images.values()))  # each encoder's folder has those of the same images
    if (first / "statistics.parquet").is_file():  # folders of older versions have none
        statistics = read_table(first / "statistics.parquet", IMAGE_STATISTICS)
        scalars = scalars.join(statistics, on="pid", how="full", coalesce=True, validate="1:1").sort("pid")
    masked: dict[str, Block] = {
        name: read_block(prototype, f"masked_{name}")
        for name in PROTOTYPE_VECTORS
        if (prototype / f"masked_{name}.npy").is_file()
    }
    return Blocks(
        vectors,
        scalars,
        read_table(prototype / "losses.parquet", CLASS_LOSSES),
        MaskedBlocks(
            masked,
            read_table(prototype / "masked_scalars.parquet", PROTOTYPE_SCALARS),
            read_table(prototype / "classes.parquet", POST_CLASSES),
        ),
    )


def _by_ending(folder: Path, block: str) -> dict[str, Path]:
    """The folders of the encoders, by the ending of their blocks' names: "" for one, `.<encoder>` for several.

    Raises:
        ContractError: there is none.
    """
    if (folder / f"{block}.npy").is_file():
        return {"": folder}
    found = sorted(path.parent for path in folder.glob(f"*/{block}.npy"))
    if not found:
        raise ContractError(f"{folder} holds no vectors of an encoder\n  next: dvc repro stack_vectors")
    return {"": found[0]} if len(found) == 1 else {f".{path.name}": path for path in found}


def block_kind(block: str) -> str:
    """The entry of `stack.columns.feature_blocks` that a block belongs to.

    >>> block_kind("text.mpnet")
    'text'
    """
    return block.partition(".")[0]


def _ending(block: str) -> str:
    return block.removeprefix(block_kind(block))


def dense_parts(
    block: str, prototype_parts: Sequence[PrototypePart], text_vectors: TextVectors = "title_and_tags"
) -> tuple[str, ...]:
    """The parts of a block that are vectors, in order; each gets components of its own.

    Parts of `prototype` differ in width and in kind: some are constant within a class. `metadata` has no vectors.

    Args:
        block: one of `Blocks.blocks_of`.
        prototype_parts: of the block `prototype`.
        text_vectors: of the block `text`.
    """
    if block_kind(block) == "text" and text_vectors == "post":
        return (f"post{_ending(block)}",)
    if block == "prototype":
        return tuple(part for part in PROTOTYPE_VECTORS if part in prototype_parts)
    return (block,) if block_kind(block) in PART_VECTORS else ()


def dense_rows(blocks: Blocks, name: str, pids: Sequence[str]) -> Float32Array:
    """(n, d) float32 vectors of `pids`; a post without a vector is a row of NaN.

    Raises:
        ConfigError: the network that made the block `prototype` has no such vectors.
    """
    if name not in blocks.vectors:
        raise ConfigError(
            f"stack.columns.prototype_parts: {name} is missing: train.network.attention.prototypes leaves it out"
        )
    result = _rows(blocks.vectors[name], pids)
    masked = blocks.masked_rows(pids)
    if blocks.masked is not None and masked and name in blocks.masked.vectors:
        result[masked] = _rows(blocks.masked.vectors[name], [pids[row] for row in masked])
    return result


def _rows(block: Block, pids: Sequence[str]) -> Float32Array:
    """(n, d) vectors of `pids`; NaN where the block has none."""
    rows = block.rows(pids)
    result = np.full((len(pids), block.values.shape[1]), np.nan, dtype=np.float32)
    known = rows >= 0
    for part in chunks(np.flatnonzero(known)):
        result[part] = block.values[rows[part]]
    return result


def part_rows(blocks: Blocks, part: str, pids: Sequence[str]) -> Float32Array:
    """(n, sum of d) vectors of a part: its stored vectors joined; adapted ones where there are such."""
    end = _ending(part)
    adapted = {name: other for name, other in ADAPTED.items() if other + end in blocks.vectors}
    names = [adapted.get(name, name) + end for name in PART_VECTORS[block_kind(part)]]
    each = [dense_rows(blocks, name, pids) for name in names]
    return each[0] if len(each) == 1 else np.hstack(each)


def joined_rows(
    blocks: Blocks, parts: Sequence[str], pids: Sequence[str]
) -> tuple[Float32Array, dict[str, Float32Array]]:
    """(n, sum of d) vectors of parts, and views of those of each, in place of copies."""
    each = [part_rows(blocks, part, pids) for part in parts]
    joined = each[0] if len(each) == 1 else np.hstack([np.empty((len(pids), 0), np.float32), *each])
    ends = np.cumsum([own.shape[1] for own in each])
    return joined, {part: joined[:, end - own.shape[1] : end] for part, own, end in zip(parts, each, ends, strict=True)}


def has_vectors(blocks: Blocks, part: str) -> bool:
    """False if no post of the data set has the vectors of a part: no post has a picture, or none has tags."""
    names = [name + _ending(part) for name in PART_VECTORS[block_kind(part)]]
    return all(len(blocks.vectors[name].values) for name in names if name in blocks.vectors)


def scalar_names(block: str, blocks: Blocks, prototype_parts: Sequence[PrototypePart]) -> tuple[str, ...]:
    """The columns that `scalar_columns` can give of a block, or of IMAGE_STATISTICS_BLOCK, in order."""
    if block == IMAGE_STATISTICS_BLOCK:
        names = tuple(column for column in blocks.scalars.columns if _prefix(column) == block)
        if not names:
            raise ConfigError(
                "stack.columns.feature_groups: image needs statistics.parquet of the image encoder, which is missing; "
                "run `dvc repro embed_image`"
            )
        return names
    if block == "prototype":
        kept = [prefix for prefix, part in PROTOTYPE_SCALAR_PARTS.items() if part in prototype_parts]
        return tuple(column for column in blocks.scalars.columns if _prefix(column) in kept)
    return {"image": (f"{block}_norm",), "text": (f"title_tags_cosine{_ending(block)}",)}.get(block_kind(block), ())


def scalar_columns(block: str, names: Sequence[str], blocks: Blocks, pids: Sequence[str]) -> dict[str, Float32Array]:
    """Scalars (n,) of a block, by name; NaN where a post has none.

    image: the vector's norm (how much the encoder responds). text: cosine of title and tags. Other blocks: the columns
    `names` of the stored scalars.

    Args:
        block: name of the block.
        names: from `scalar_names`.
        blocks: of all posts.
        pids: of n posts.
    """
    if not names:
        return {}
    if block_kind(block) == "image":
        vectors = dense_rows(blocks, block, pids)
        return {names[0]: np.linalg.norm(vectors, axis=1).astype(np.float32)}
    if block_kind(block) == "text":
        title, tags = (dense_rows(blocks, part + _ending(block), pids) for part in ("title", "tags"))
        norms = np.linalg.norm(title, axis=1) * np.linalg.norm(tags, axis=1)
        return {names[0]: ((title * tags).sum(axis=1) / np.maximum(norms, 1e-6)).astype(np.float32)}
    table = scalar_rows(blocks.scalars.select("pid", *names), pids)
    found = {name: table[name].cast(pl.Float32).fill_null(float("nan")).to_numpy().copy() for name in names}
    masked = blocks.masked_rows(pids)
    if blocks.masked is not None and masked:
        other = scalar_rows(blocks.masked.scalars, [pids[row] for row in masked])
        for name in set(names) & set(other.columns):
            found[name][masked] = other[name].cast(pl.Float32).fill_null(float("nan")).to_numpy()
    return found


def scalar_rows(scalars: pl.DataFrame, pids: Sequence[str]) -> pl.DataFrame:
    """The rows of `scalars` in the order of `pids`; null for posts that it lacks."""
    wanted = pl.DataFrame({"pid": list(pids)}, schema={"pid": pl.String})
    return wanted.join(scalars, on="pid", how="left", validate="1:1", maintain_order="left").drop("pid")


def _prefix(column: str) -> str:
    return column.partition(".")[0]
