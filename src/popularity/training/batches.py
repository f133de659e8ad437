"""Which posts each optimiser step reads: the same for any number of processes and backward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from popularity.core.arrays import Int64Array
from popularity.encoders.sharding import end_where_memory_is_full, from_loader, workers_that_fit
from popularity.network.dataset import Batch, PostReader, pad_tokens, to_device
from popularity.network.params import TrainParams

TOKEN_MULTIPLE = 8
LOADER_TIMEOUT_SECONDS = 3600


@dataclass(frozen=True)
class TrainingPosts:
    """The posts of a training run.

    Args:
        reader: how they are read.
        train: (n,) rows that the network is trained on.
        valid: (m,) rows that are scored after each epoch and never trained on; may be empty.
    """

    reader: PostReader
    train: Int64Array
    valid: Int64Array


def training_steps(posts: int, params: TrainParams) -> int:
    """The optimiser steps of a training run: whole epochs, more if there are `params.min_steps`, and at
    most `params.max_steps`.

    Source: Sec 4.1, 4 epochs at 128 posts a step.

    Args:
        posts: number of posts that are trained on.
        params: section train.
    """
    steps = max(params.epochs * -(-posts // params.batch_size), params.min_steps)
    return min(steps, params.max_steps) if params.max_steps else steps


@dataclass(frozen=True)
class Step:
    """The rows of an optimiser step.

    Args:
        passes: rows of each backward pass of this process.
        everywhere: (n,) rows of all passes of all processes.
    """

    passes: Sequence[Int64Array]
    everywhere: Int64Array


@dataclass(frozen=True)
class BatchPlan:
    """How the posts of a step are divided among processes and backward passes.

    A step holds the same posts for any number of processes; the last one is smaller. Filler rows (-1) make the
    passes of all processes equally long.

    Args:
        batch_size: posts of a step over all processes.
        micro_batch: largest number of posts in a backward pass.
        processes: number of processes.
        process: index of this one.
    """

    batch_size: int
    micro_batch: int
    processes: int = 1
    process: int = 0

    def steps(self, rows: Int64Array) -> list[Step]:
        """The steps over `rows` (n,) in their order."""
        steps = []
        for start in range(0, len(rows), self.batch_size):
            everywhere = rows[start : start + self.batch_size]
            per_process = -(-len(everywhere) // self.processes)
            passes = -(-per_process // self.micro_batch)
            length = -(-per_process // passes)
            padded = np.full(self.processes * passes * length, -1, np.int64)
            padded[: len(everywhere)] = everywhere
            steps.append(Step(list(padded.reshape(self.processes, passes, length)[self.process]), everywhere))
        return steps

    def epoch(self, rows: Int64Array, epoch: int, seed: int) -> list[Step]:
        """The steps of an epoch over `rows` (n,), in the order that (seed, epoch) gives."""
        return self.steps(np.random.default_rng((seed, epoch)).permutation(rows))


class _Reading(Dataset[Batch]):
    """Rows (b,) -> Batch, in loader processes too."""

    def __init__(self, read: Callable[[Int64Array], Batch], multiple: int) -> None:
        self.read, self.multiple = read, multiple

    def __getitem__(self, rows: Int64Array) -> Batch:
        return pad_tokens(self.read(rows), self.multiple)


class _Order(Sampler[Int64Array]):
    """The rows of the batches that come next; replaced before each iteration."""

    def __init__(self) -> None:
        self.passes: Sequence[Int64Array] = ()

    def __iter__(self) -> Iterator[Int64Array]:
        return iter(self.passes)

    def __len__(self) -> int:
        return len(self.passes)


class BatchLoader:
    """Reads batches, on `device`; its processes stay alive from one sequence of batches to the next, unless `changing`.

    On an accelerator the width of the tokens is padded to a multiple of TOKEN_MULTIPLE: its kernels, and compiled
    graphs, then meet a few sizes.

    Args:
        read: rows (b,) -> Batch.
        device: the batches are moved to it.
        workers: number of processes that read ahead; 0 reads in this process.
        changing: what `read` reads may change between two sequences of batches; processes hold a copy of it.
    """

    def __init__(
        self, read: Callable[[Int64Array], Batch], device: torch.device, workers: int, changing: bool = False
    ) -> None:
        self.device, self._order = device, _Order()
        self._loader: DataLoader[Batch] = DataLoader(
            _Reading(read, 1 if device.type == "cpu" else TOKEN_MULTIPLE),
            batch_size=None,
            sampler=self._order,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0 and not changing,
            timeout=LOADER_TIMEOUT_SECONDS if workers else 0,
            worker_init_fn=end_where_memory_is_full,
            generator=torch.Generator(),  # else iterations would draw from that of the training
        )

    def batches(self, passes: Sequence[Int64Array]) -> Iterator[Batch]:
        """The batches of `passes`, each of rows (b,), in order; reading starts at once.

        The batches of an earlier call are lost.
        """
        self._order.passes = passes
        batches = iter(self._loader)
        return (to_device(batch, self.device) for batch in from_loader(batches))


def load_batches(
    read: Callable[[Int64Array], Batch], passes: Sequence[Int64Array], device: torch.device, workers: int
) -> Iterator[Batch]:
    """The batches of `passes` in order, once: see BatchLoader.

    Fewer workers are taken where shared memory has no room for their batches.
    """
    if workers and len(passes):
        workers = workers_that_fit(read(passes[0]), workers)
    return BatchLoader(read, device, workers).batches(passes)
