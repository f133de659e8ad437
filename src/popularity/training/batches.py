"""Which posts each optimiser step reads: the same for any number of processes and backward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from popularity.core.arrays import Int64Array
from popularity.network.dataset import Batch, PostReader, to_device
from popularity.network.params import TrainParams


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
    """The optimiser steps of a training run: whole epochs, or more if there are `params.min_steps`.

    Source: Sec 4.1, 4 epochs at 128 posts a step.

    Args:
        posts: number of posts that are trained on.
        params: section train.
    """
    return max(params.epochs * -(-posts // params.batch_size), params.min_steps)


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
    """The batches of `passes` in order, on `device`, read ahead by `workers` processes.

    Args:
        read: rows (b,) -> Batch.
        passes: rows (b,) of each batch.
        device: the batches are moved to it.
        workers: 0 reads in this process.
    """
    loader: DataLoader[Batch] = DataLoader(
        _Passes(read, passes), batch_size=None, num_workers=workers, pin_memory=device.type == "cuda"
    )
    return (to_device(batch, device) for batch in loader)
