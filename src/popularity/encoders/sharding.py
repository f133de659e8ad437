"""Passes a data set through an encoder in shards: resumable, divided among processes, loaded while the encoder runs."""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from popularity.core.arrays import Float16Array, Int64Array
from popularity.core.atomic import atomic_path, reading
from popularity.core.errors import ConfigError, ContractError, PopularityError
from popularity.core.stage import PROCESSES_VARIABLE
from popularity.encoders.sources import Precision

logger = logging.getLogger(__name__)

WORKERS_VARIABLE = "POPULARITY_WORKERS"
B = TypeVar("B")
Arrays = dict[str, npt.NDArray[Any]]


def start_processes(patience: timedelta = timedelta(days=1)) -> PartialState:
    """The state of this process among those that `popularity.launch` started: device, index, count.

    PartialState is the part of Accelerator that inference needs; it leaves a later Accelerator free to choose
    its own precision.

    Args:
        patience: time for which a process waits for the others before it fails, as the first call of a process sets it.
            By default long: one may wait for another's last shard for longer than the backends' default of minutes.

    Raises:
        ConfigError: the number of processes in the group is not the number that was launched.
    """
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=patience)
    launched = int(os.environ.get(PROCESSES_VARIABLE) or os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != launched:
        alone = "each of them runs alone" if state.num_processes == 1 else f"{state.num_processes} form a group"
        raise ConfigError(
            f"{launched} processes were launched, but {alone}; launch them with a file of configs/accelerate: "
            "POPULARITY_TOPOLOGY=... python -m popularity.launch ..."
        )
    if state.num_processes > 1:
        # The threads of an open group may abort a process that ends after the main process.
        atexit.register(state.destroy_process_group)
    return state


def loader_workers() -> int:
    """Number of loader processes of each computing process: POPULARITY_WORKERS, by default cores over processes."""
    setting = os.environ.get(WORKERS_VARIABLE)
    if setting is None:
        return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if not setting.isdecimal():
        raise ConfigError(f"{WORKERS_VARIABLE}: expected a whole number from 0 up, found {setting!r}")
    return int(setting)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """An autocast context: bf16 if `precision` is bf16 and the device supports it, else float32.

    Args:
        device: on which the encoder runs.
        precision: bf16 or fp32.
    """
    wanted = precision == "bf16"
    supported = device.type != "cuda" or torch.cuda.is_bf16_supported()
    if wanted and not supported:
        logger.warning("%s has no bf16: running in fp32", device)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted and supported)


def as_float16(values: Tensor, encoder: str) -> Float16Array:
    """The values on the CPU in float16.

    Args:
        values: (...), on any device.
        encoder: its name, for the message.

    Raises:
        ContractError: a NaN, an infinity, or a value beyond float16's 65,504.
    """
    half: Float16Array = values.to(torch.float16).cpu().numpy()
    if not np.isfinite(half).all():
        raise ContractError(
            f"{encoder}: output is NaN, infinite or beyond 65,504; check the weights, or try precision: fp32"
        )
    return half


@dataclass(frozen=True)
class ShardPlan:
    """Rows 0 to `rows` in shards of `shard_rows`, each in batches of `batch_size`.

    No batch crosses the end of a shard, so a row's batch, and with it every bit of the result, is the same
    however many processes share the shards.
    """

    rows: int
    shard_rows: int
    batch_size: int

    def shards(self) -> list[range]:
        """The rows of each shard."""
        return _pieces(range(self.rows), self.shard_rows)

    def batches(self, shard: range) -> list[range]:
        """The rows of each batch of a shard."""
        return _pieces(shard, self.batch_size)


def _pieces(rows: range, size: int) -> list[range]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


class _Prepared(Dataset[B | PopularityError], Generic[B]):
    """Batches that are made on access: in a loader process, or in this one without loaders."""

    def __init__(self, batches: Sequence[range], prepare: Callable[[range], B]) -> None:
        self.batches, self.prepare = batches, prepare

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> B | PopularityError:
        try:
            return self.prepare(self.batches[index])
        except PopularityError as error:
            return error  # returned, because the loader would wrap the message in a traceback


def encode_shards(
    directory: Path,
    plan: ShardPlan,
    prepare: Callable[[range], B],
    encode: Callable[[B], Arrays],
    state: PartialState,
    title: str,
) -> None:
    """Leaves every shard of `plan` in `directory`; computes those that are not there yet.

    Process k of n takes every n-th missing shard from the k-th on, so shards that a lost process or an earlier run left
    undone are divided anew. `directory` lies on a disk that all processes share.

    Args:
        directory: of finished shards, from `resume_state`.
        plan: shards and batches of the rows.
        prepare: rows -> batch; runs in loader processes, so it must hold no model and no open file.
        encode: batch -> arrays, concatenated within a shard.
        state: of this process.
        title: of the progress bar.
    """
    shards = plan.shards()
    missing = missing_shards(directory, plan, state)
    mine = missing[state.process_index :: state.num_processes]
    if state.is_main_process and len(missing) < len(shards):
        logger.info("%s: %d of %d shards are there from an earlier run", title, len(shards) - len(missing), len(shards))
    if state.num_processes > 1:
        logger.info("%s: process %d of %d has %d shards", title, state.process_index, state.num_processes, len(mine))
    batches = [(index, rows) for index in mine for rows in plan.batches(shards[index])]
    workers = min(loader_workers(), len(batches)) if len(batches) > 1 else 0  # a single batch overlaps with nothing
    loader = DataLoader(
        _Prepared([rows for _, rows in batches], prepare),
        batch_size=None,
        num_workers=workers,
        pin_memory=state.device.type == "cuda",
    )
    total, finished = sum(len(shards[index]) for index in mine), list[Arrays]()
    with tqdm(total=total, desc=title, unit="post", disable=not state.is_main_process) as progress:
        for (index, rows), batch in zip(batches, loader, strict=True):
            if isinstance(batch, PopularityError):
                raise batch
            finished.append(encode(batch))
            progress.update(len(rows))
            if rows.stop == shards[index].stop:
                _save_shard(_shard_path(directory, index), finished)
                finished = []
    state.wait_for_everyone()


def missing_shards(directory: Path, plan: ShardPlan, state: PartialState) -> list[int]:
    """Indices of the shards that `directory` lacks, as the main process sees it: nodes may see a disk differently.

    Args:
        directory: of finished shards.
        plan: shards of the rows.
        state: of this process.
    """
    # One listing, not a test of each name: a node may cache that a shared disk has no such file.
    there = {path.name for path in directory.iterdir()} if state.is_main_process else set()
    found = [[index for index in range(len(plan.shards())) if _shard_path(directory, index).name not in there]]
    if state.num_processes > 1:
        broadcast_object_list(found)
    return found[0]


def read_shards(directory: Path, plan: ShardPlan, name: str) -> Iterator[npt.NDArray[Any]]:
    """The array `name` of each finished shard in order, one at a time in memory.

    Args:
        directory: of finished shards.
        plan: shards of the rows.
        name: of the array, as `encode` gave it.

    Raises:
        ContractError: a shard is missing: the processes do not share the disk.
    """
    for index in range(len(plan.shards())):
        path = _shard_path(directory, index)
        if not path.is_file():
            raise ContractError(f"{path} is missing: .state/ must lie on a disk that all processes share")
        with reading(path), np.load(path, allow_pickle=False) as stored:
            array = stored[name]
        yield array


def gather(vectors: Iterator[npt.NDArray[Any]], index: Int64Array, path: Path, columns: int) -> Float16Array:
    """Row i of the result (len(index), columns) is row `index[i]` of the concatenated `vectors`.

    The result is a memory map of a new file `path`: only one of `vectors` is in memory at a time.

    Args:
        vectors: (rows of a shard, columns) of each shard, in order.
        index: (n,) rows of all shards together.
        path: of the file.
        columns: width of the vectors.

    Raises:
        OSError: no room for the file.
    """
    shape = (len(index), columns)
    if 0 in shape:  # nothing to map
        return np.zeros(shape, dtype=np.float16)
    result: Float16Array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS. A map of a file with holes dies of SIGBUS where the disk is full
        with path.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    order = np.argsort(index, kind="stable")
    ordered, start = index[order], 0
    for block in vectors:
        first, last = np.searchsorted(ordered, [start, start + len(block)])
        result[order[first:last]] = block[ordered[first:last] - start]
        start += len(block)
    return result


def _shard_path(directory: Path, index: int) -> Path:
    return directory / f"shard-{index:06d}.npz"


def _save_shard(path: Path, batches: Sequence[Arrays]) -> None:
    arrays: dict[str, Any] = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    with atomic_path(path) as partial, partial.open("wb") as stream:
        np.savez(stream, **arrays)
