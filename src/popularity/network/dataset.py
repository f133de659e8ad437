"""Batches of posts, the cached vectors of all posts, and how the vectors become batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from popularity.core.arrays import BoolArray, Float16Array, Float32Array, Int64Array, normalize_rows
from popularity.encoders.prompting import PromptTokens
from popularity.prototypes.vectors import ClassPrototypes


class PostMetadata(NamedTuple):
    """The fields of `Batch` that decide which terms of the objective each of b posts is eligible for.

    Args:
        valid: (b,) bool.
        has_image: (b,) bool.
        has_token: (b,) bool, false for an empty text.
        target: (b, levels) int64.
    """

    valid: Tensor
    has_image: Tensor
    has_token: Tensor
    target: Tensor


class Batch(NamedTuple):
    """b posts. Vectors are L2-normalised; levels are those of `NetworkParams.prototypes.levels`, in that order.

    Args:
        image: (b, d_I) f_I(x); zeros where a post has no image.
        has_image: (b,) bool.
        pooled: (b, d_T) h.
        tokens: (b, l, d_T) H, padded.
        token_mask: (b, l) bool, false on the padding.
        target: (b, levels) class of each level, -1 where training does not know it.
        fold: (b,) the fold whose prototypes the post sees in training.
        own_visual: (b, levels, d_I) the visual prototype of the post's class without the post itself.
        own_text: (b, levels, d_T) likewise.
        valid: (b,) bool, false on rows that only fill the batch.
        texts: tokens of the text r; only instance prompts and unfrozen encoders read them.
        pixels: (b, 3, size, size); only unfrozen encoders read them.
    """

    image: Tensor
    has_image: Tensor
    pooled: Tensor
    tokens: Tensor
    token_mask: Tensor
    target: Tensor
    fold: Tensor
    own_visual: Tensor
    own_text: Tensor
    valid: Tensor
    texts: PromptTokens | None = None
    pixels: Tensor | None = None

    @property
    def metadata(self) -> PostMetadata:
        return PostMetadata(self.valid, self.has_image, self.token_mask.any(dim=1), self.target)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`; texts stay where they are: the text encoder moves them."""
    fields: list[Any] = [field.to(device, non_blocking=True) if isinstance(field, Tensor) else field for field in batch]
    return Batch(*fields)


def pad_tokens(batch: Batch, multiple: int) -> Batch:
    """The batch with the width of its tokens padded to a multiple of `multiple`."""
    missing = -batch.tokens.shape[1] % multiple
    if not missing:
        return batch
    tokens = nn.functional.pad(batch.tokens, (0, 0, 0, missing))
    return batch._replace(tokens=tokens, token_mask=nn.functional.pad(batch.token_mask, (0, missing)))


class HasVectors(Protocol):
    """A reader whose vectors, with the prototypes that leave a post out, can be replaced."""

    vectors: PostVectors


@dataclass(frozen=True)
class PostReader:
    """How posts are read.

    Args:
        read: rows (b,), -1 for filler -> Batch.
        metadata: rows (b,) -> PostMetadata; reads no vector.
        live: of posts that the network encodes itself, what `read` reads; else None.
    """

    read: Callable[[Int64Array], Batch]
    metadata: Callable[[Int64Array], PostMetadata]
    live: HasVectors | None = None


@dataclass(frozen=True)
class PostVectors:
    """Cached outputs of the frozen encoders for n posts; arrays may be memory maps.

    Args:
        pids: n, in canonical order.
        image: (images, d_I).
        image_row: (n,) row of each post in `image`, -1 without an image.
        pooled: (texts, d_T) h.
        pooled_row: (n,) row of each post in `pooled`.
        tokens: (total, d_T) H of all posts.
        starts: (n,) row in `tokens` of each post's first token.
        lengths: (n,) number of its tokens.
        target: (n, levels) class of each level, -1 where training does not know it.
        levels: their names.
        fold: (n,) fold of each post; in training it sees prototypes without the representatives of its fold.
        prototypes: of the classes.
    """

    pids: Sequence[str]
    image: Float16Array
    image_row: Int64Array
    pooled: Float16Array
    pooled_row: Int64Array
    tokens: Float16Array
    starts: Int64Array
    lengths: Int64Array
    target: Int64Array
    levels: tuple[str, ...]
    fold: Int64Array
    prototypes: ClassPrototypes

    @property
    def reader(self) -> PostReader:
        return PostReader(self.batch, self.metadata)

    def batch(self, rows: Int64Array) -> Batch:
        """The posts of `rows` (b,); -1 is a row that only fills the batch."""
        valid, rows = rows >= 0, np.maximum(rows, 0)
        image, pooled = self.images(rows), self.texts(rows)
        tokens, token_mask = self._tokens(rows)
        vectors = {"visual": image, "text": pooled}
        own = {
            kind: np.stack([self.prototypes.own(level, kind, rows, values) for level in self.levels], axis=1)
            for kind, values in vectors.items()
        }
        return Batch(
            image=torch.from_numpy(image),
            has_image=torch.from_numpy(self.image_row[rows] >= 0),
            pooled=torch.from_numpy(pooled),
            tokens=torch.from_numpy(tokens),
            token_mask=torch.from_numpy(token_mask),
            target=torch.from_numpy(self.target[rows]),
            fold=torch.from_numpy(self.fold[rows]),
            own_visual=torch.from_numpy(own["visual"]),
            own_text=torch.from_numpy(own["text"]),
            valid=torch.from_numpy(valid),
        )

    def images(self, rows: Int64Array) -> Float32Array:
        """(b, d_I) f_I(x) of `rows` (b,), L2-normalised; zeros without an image."""
        row = self.image_row[rows]
        vectors = np.zeros((len(rows), self.image.shape[1]), np.float32)
        vectors[row >= 0] = normalize_rows(self.image[row[row >= 0]], dtype=np.float32)
        return vectors

    def texts(self, rows: Int64Array) -> Float32Array:
        """(b, d_T) h of `rows` (b,), L2-normalised."""
        return normalize_rows(self.pooled[self.pooled_row[rows]], dtype=np.float32)

    def metadata(self, rows: Int64Array) -> PostMetadata:
        """Metadata of `rows` (b,), which hold no filler; reads no vector."""
        return PostMetadata(
            torch.ones(len(rows), dtype=torch.bool),
            torch.from_numpy(self.image_row[rows] >= 0),
            torch.from_numpy(self.lengths[rows] > 0),
            torch.from_numpy(self.target[rows]),
        )

    def _tokens(self, rows: Int64Array) -> tuple[Float32Array, BoolArray]:
        """H (b, l, d_T), padded with zeros to the longest of the batch (at least 1), and its mask (b, l)."""
        starts, lengths = self.starts[rows], self.lengths[rows]
        token_mask = np.arange(max(1, lengths.max(initial=0))) < lengths[:, None]
        values = np.zeros((*token_mask.shape, self.tokens.shape[1]), np.float32)
        index = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        values[token_mask] = self.tokens[index]
        return values, token_mask


def draw_folds(classes: Int64Array, folds: int, seed: int) -> Int64Array:
    """(n,) fold of each post, drawn so that those of a class (n,) are spread evenly."""
    order = np.random.default_rng(seed).permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    fold = np.empty(len(classes), np.int64)
    fold[order] = np.arange(len(classes)) % folds
    return fold
