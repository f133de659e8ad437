"""Cached vectors of posts, and the batches that the network reads; numpy and torch only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from popularity.arrays import normalize_rows
from popularity.network.model import Batch, Facts
from popularity.prototypes.vectors import ClassPrototypes

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]
HalfArray = npt.NDArray[np.float16]


@dataclass(frozen=True)
class PostVectors:
    """Cached outputs of the frozen towers for n posts; arrays may be memory maps.

    Args:
        pids: n, in canonical order.
        image: (pictures, d_I).
        image_row: (n,) row of each post in `image`, -1 without a picture.
        pooled: (texts, d_T) h.
        pooled_row: (n,) row of each post in `pooled`.
        tokens: (total, d_T) H of all posts.
        starts: (n,) row in `tokens` of each post's first token.
        lengths: (n,) number of its tokens.
        target: (n, levels) class of each level, -1 where training does not know it.
        levels: their names.
        fold: (n,) whose representatives are left out of the prototypes that the post sees in training.
        prototypes: of the classes.
    """

    pids: Sequence[str]
    image: HalfArray
    image_row: Int64Array
    pooled: HalfArray
    pooled_row: Int64Array
    tokens: HalfArray
    starts: Int64Array
    lengths: Int64Array
    target: Int64Array
    levels: tuple[str, ...]
    fold: Int64Array
    prototypes: ClassPrototypes

    def batch(self, rows: Int64Array) -> Batch:
        """The posts `rows`; -1 stands for a row that only fills the batch."""
        valid, rows = rows >= 0, np.maximum(rows, 0)
        image, pooled = self.images(rows), self.texts(rows)
        tokens, content = self._tokens(rows)
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
            content=torch.from_numpy(content),
            target=torch.from_numpy(self.target[rows]),
            fold=torch.from_numpy(self.fold[rows]),
            own_visual=torch.from_numpy(own["visual"]),
            own_text=torch.from_numpy(own["text"]),
            valid=torch.from_numpy(valid),
        )

    def images(self, rows: Int64Array) -> Float32Array:
        """(b, d_I) f_I(x), L2-normalised; zeros without a picture."""
        row = self.image_row[rows]
        vectors = np.zeros((len(rows), self.image.shape[1]), np.float32)
        vectors[row >= 0] = normalize_rows(self.image[row[row >= 0]], dtype=np.float32)
        return vectors

    def texts(self, rows: Int64Array) -> Float32Array:
        """(b, d_T) h, L2-normalised."""
        return normalize_rows(self.pooled[self.pooled_row[rows]], dtype=np.float32)

    def facts(self, rows: Int64Array) -> Facts:
        """Without reading a vector; all rows are posts."""
        return Facts(
            torch.ones(len(rows), dtype=torch.bool),
            torch.from_numpy(self.image_row[rows] >= 0),
            torch.from_numpy(self.lengths[rows] > 0),
            torch.from_numpy(self.target[rows]),
        )

    def _tokens(self, rows: Int64Array) -> tuple[Float32Array, BoolArray]:
        """H (b, l, d_T), padded with zeros to the longest of the batch (at least 1), and where a token stands."""
        starts, lengths = self.starts[rows], self.lengths[rows]
        content = np.arange(max(1, lengths.max(initial=0))) < lengths[:, None]
        values = np.zeros((*content.shape, self.tokens.shape[1]), np.float32)
        places = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        values[content] = self.tokens[places]
        return values, content


def draw_folds(classes: Int64Array, folds: int, seed: int) -> Int64Array:
    """(n,) fold of each post, drawn so that those of a class (n,) are spread evenly."""
    order = np.random.default_rng(seed).permutation(len(classes))
    order = order[np.argsort(classes[order], kind="stable")]
    fold = np.empty(len(classes), np.int64)
    fold[order] = np.arange(len(classes)) % folds
    return fold


@dataclass(frozen=True)
class Step:
    """One process's share of an optimiser step: the rows of each backward pass, and the rows of all processes."""

    passes: Sequence[Int64Array]
    everywhere: Int64Array


def steps_of_epoch(
    rows: Int64Array, epoch: int, *, batch_size: int, micro_batch: int, processes: int, process: int, seed: int
) -> list[Step]:
    """The steps of an epoch over `rows`, in the order that (seed, epoch) gives; else as `steps_over`."""
    order = np.random.default_rng((seed, epoch)).permutation(rows)
    return steps_over(order, batch_size=batch_size, micro_batch=micro_batch, processes=processes, process=process)


def steps_over(rows: Int64Array, *, batch_size: int, micro_batch: int, processes: int, process: int) -> list[Step]:
    """The steps over `rows` as they stand.

    A step holds the same posts for any number of processes; the last one is smaller. Filler rows (-1) make the
    passes of all processes equally long.
    """
    steps = []
    for start in range(0, len(rows), batch_size):
        everywhere = rows[start : start + batch_size]
        share = -(-len(everywhere) // processes)
        passes = -(-share // micro_batch)
        length = -(-share // passes)
        padded = np.full(processes * passes * length, -1, np.int64)
        padded[: len(everywhere)] = everywhere
        steps.append(Step(list(padded.reshape(processes, passes, length)[process]), everywhere))
    return steps


class _Passes(Dataset[Batch]):
    def __init__(self, read: Callable[[Int64Array], Batch], passes: Sequence[Int64Array]) -> None:
        self.read, self.passes = read, passes

    def __len__(self) -> int:
        return len(self.passes)

    def __getitem__(self, index: int) -> Batch:
        return self.read(self.passes[index])


def load_batches(
    read: Callable[[Int64Array], Batch], passes: Sequence[Int64Array], device: torch.device, workers: int
) -> Iterator[Batch]:
    """The batches of `passes` in order, on `device`, read ahead by `workers` processes."""
    loader: DataLoader[Batch] = DataLoader(
        _Passes(read, passes), batch_size=None, num_workers=workers, pin_memory=device.type == "cuda"
    )
    return (to_device(batch, device) for batch in loader)


def to_device(batch: Batch, device: torch.device) -> Batch:
    parts: list[Any] = [part.to(device, non_blocking=True) if isinstance(part, Tensor) else part for part in batch]
    return Batch(*parts)
