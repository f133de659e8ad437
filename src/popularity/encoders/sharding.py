"""Passes a data set through an encoder in shards: resumable, divided among processes, loaded while the encoder runs."""

from __future__ import annotations

import atexit
import logging
import multiprocessing.queues
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
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

from popularity.core.allocation import SHARED_MEMORY, allocated_cores, free_shared_memory, local_processes
from popularity.core.arrays import Float16Array, Int64Array
from popularity.core.atomic import atomic_path, reading
from popularity.core.errors import ConfigError, ContractError, PopularityError
from popularity.core.gpus import cpu_requested, warn_of_unusable_gpus
from popularity.core.stage import PROCESSES_VARIABLE
from popularity.encoders.precision import resolve_precision
from popularity.encoders.sources import Precision

logger = logging.getLogger(__name__)

WORKERS_VARIABLE = "POPULARITY_WORKERS"
MORE_SHARED_MEMORY = "raise it (docker run --shm-size=8g, or mount a larger tmpfs)"
MAX_WORKERS = 8  # loader processes of a computing process; more only take memory
BATCHES_PER_WORKER = 3  # in shared memory: two that wait, and one that is being made
SHARED_MEMORY_FRACTION = 0.9  # of the free bytes, that batches may fill
PAGE = 4096  # bytes; a tensor in shared memory takes whole pages
BYTES_PER_WORKER = 16 * PAGE  # of the semaphores of a loader's queues
B = TypeVar("B")
Arrays = dict[str, npt.NDArray[Any]]


def start_processes(patience: timedelta = timedelta(days=1)) -> PartialState:
    """The state of this process among those that `popularity.launch` started: device, index, count.

    PartialState is the part of Accelerator that inference needs; it leaves a later Accelerator free to choose
    its own precision.

    The device is the CPU if the topology says so, also on a machine with a GPU, or if torch can use no GPU.

    Args:
        patience: time for which a process waits for the others before it fails, as the first call of a process sets it.
            By default long: one may wait for another's last shard for longer than the backends' default of minutes.

    Raises:
        ConfigError: the number of processes in the group is not the number that was launched.
    """
    on_cpu = cpu_requested()
    if not on_cpu and not _accelerator_available():
        warn_of_unusable_gpus()
        on_cpu = True
    state = PartialState(cpu=on_cpu, timeout=patience)
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


def _accelerator_available() -> bool:
    with warnings.catch_warnings():  # torch's own warning of a driver that it cannot use: ours says more
        warnings.simplefilter("ignore")
        return torch.accelerator.is_available()


def loader_workers() -> int:
    """Number of loader processes of each computing process: POPULARITY_WORKERS, by default cores over processes.

    The cores are those that the scheduler granted; MAX_WORKERS at most.
    """
    setting = os.environ.get(WORKERS_VARIABLE)
    if setting is None:
        return max(1, min(MAX_WORKERS, allocated_cores() // local_processes()))
    if not setting.isdecimal():
        raise ConfigError(f"{WORKERS_VARIABLE}: expected a whole number from 0 up, found {setting!r}")
    return int(setting)


def workers_that_fit(batch: Any, workers: int) -> int:
    """The number of loader processes, at most `workers`, whose batches have room in shared memory.

    A container often has 64 MB of it, and a loader that finds it full dies of SIGBUS. So fewer loaders run, and a
    warning says what to raise.

    Args:
        batch: as a loader makes it; tensors in tuples, lists, mappings or named tuples.
        workers: wanted number.
    """
    free, needed = free_shared_memory(), BATCHES_PER_WORKER * _tensor_bytes(batch) + BYTES_PER_WORKER
    if free is None:
        return workers
    room = int(SHARED_MEMORY_FRACTION * free / local_processes())
    fitting = min(workers, room // needed)
    if fitting < workers:
        logger.warning(
            "%d loader processes instead of %d: %s has %d MB free, and the batches of each need %d MB\n"
            f"  next: {MORE_SHARED_MEMORY}, or lower batch_size in params.yaml",
            *(fitting, workers, SHARED_MEMORY, free // 10**6, -(-needed // 10**6)),
        )
    return fitting


def end_where_memory_is_full(_worker: int = 0) -> None:
    """For a loader process: it ends when a batch does not fit into shared memory.

    Otherwise the thread that hands on the batches would lose this one, and the loader would be waited for without end.
    """

    def end(error: Exception, _batch: object) -> None:
        print(f"a loader process ends: {error}", file=sys.stderr, flush=True)
        os._exit(1)

    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(end)  # type: ignore[attr-defined]


def from_loader(batches: Iterable[B]) -> Iterator[B]:
    """The batches of a DataLoader.

    Raises:
        ConfigError: a loader process has ended or gave nothing for too long.
    """
    try:
        yield from batches
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        raise ConfigError(
            f"a loader process has ended: {str(error).splitlines()[0]}\n"
            f"  expected: memory for the batches in {SHARED_MEMORY} and for {loader_workers()} processes\n"
            f"  next: {MORE_SHARED_MEMORY}, or set {WORKERS_VARIABLE}=0, and run it again: finished work is kept"
        ) from error


def _tensor_bytes(batch: Any) -> int:
    """The bytes of shared memory that all tensors in `batch` take."""
    if isinstance(batch, Tensor):
        return -(-batch.numel() * batch.element_size() // PAGE) * PAGE
    if isinstance(batch, Mapping):
        return sum(map(_tensor_bytes, batch.values()))
    return sum(map(_tensor_bytes, batch)) if isinstance(batch, (tuple, list)) else 0


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """An autocast context of `precision` as `resolve_precision` understands it; none for float32.

    Args:
        device: that computes.
        precision: of a section of params.yaml.
    """
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(resolve_precision(precision, device))
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def start_copy(values: Tensor) -> Callable[[], Tensor]:
    """Starts the copy of `values` to the CPU; the result waits for it and returns it.

    On CUDA the device computes on meanwhile, and so does this process.
    """
    if values.device.type != "cuda":
        return values.cpu
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def wait() -> Tensor:
        copied.synchronize()
        return host

    return wait


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
    encode: Callable[[B], Callable[[], Arrays]],
    state: PartialState,
    title: str,
) -> None:
    """Leaves every shard of `plan` in `directory`; computes those that are not there yet.

    Reading, encoding, copying from the device and writing overlap: batches are read ahead, on an accelerator a batch
    starts before the one before it is waited for, and a thread writes the shards.

    Process k of n takes every n-th missing shard from the k-th on, so shards that a lost process or an earlier run left
    undone are divided anew. `directory` lies on a disk that all processes share.

    Args:
        directory: of finished shards, from `resume_state`.
        plan: shards and batches of the rows.
        prepare: rows -> batch; runs in loader processes, so it must hold no model and no open file.
        encode: starts a batch, and returns what waits for its arrays; they are concatenated within a shard.
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
    loaded = _read_ahead(_Prepared([rows for _, rows in batches], prepare), state)
    ahead = 0 if state.device.type == "cpu" else 1  # a CPU has finished a batch when it is started
    total, finished = sum(len(shards[index]) for index in mine), list[Arrays]()
    with (
        ThreadPoolExecutor(max_workers=1) as writer,
        tqdm(total=total, desc=title, unit="post", disable=not state.is_main_process) as progress,
    ):
        written: Future[Any] = writer.submit(int)
        for (index, rows), arrays in zip(batches, _in_order(loaded, encode, ahead), strict=True):
            finished.append(arrays)
            progress.update(len(rows))
            if rows.stop == shards[index].stop:
                written.result()  # one shard waits at most
                written = writer.submit(_save_shard, _shard_path(directory, index), finished)
                finished = []
        written.result()
    state.wait_for_everyone()


def _in_order(
    batches: Iterable[B | PopularityError], encode: Callable[[B], Callable[[], Arrays]], ahead: int
) -> Iterator[Arrays]:
    """The arrays of the batches in order; a batch is waited for when `ahead` more have been started."""
    started: deque[Callable[[], Arrays]] = deque()
    for batch in batches:
        if isinstance(batch, PopularityError):
            yield from (arrays() for arrays in started)
            raise batch
        started.append(encode(batch))
        if len(started) > ahead:
            yield started.popleft()()
    yield from (arrays() for arrays in started)


def _read_ahead(prepared: _Prepared[B], state: PartialState) -> Iterable[B | PopularityError]:
    """The batches in order, made by loader processes. The first is made here: its size says how many of them fit."""
    if len(prepared) < 2:  # a single batch overlaps with nothing
        return (prepared[index] for index in range(len(prepared)))
    first, rest = prepared[0], _Prepared(prepared.batches[1:], prepared.prepare)
    wanted = min(loader_workers(), len(rest))
    workers = workers_that_fit(first, wanted) if wanted else 0
    loader = DataLoader(
        rest,
        batch_size=None,
        num_workers=workers,
        pin_memory=state.device.type == "cuda",
        worker_init_fn=end_where_memory_is_full,
    )
    return chain([first], from_loader(iter(loader)))  # its processes start now, not when the first batch is encoded


def missing_shards(directory: Path, plan: ShardPlan, state: PartialState) -> list[int]:
    """Indices of the shards that `directory` lacks, as the main process sees it: nodes may see a disk differently.

    Args:
        directory: of finished shards.
        plan: shards of the rows.
        state: of this process.
    """
    names = [_shard_path(directory, index).name for index in range(len(plan.shards()))]
    return missing_files(directory, names, state)


def missing_files(directory: Path, names: Sequence[str], state: PartialState) -> list[int]:
    """Indices of the files `names` that `directory` lacks, as the main process sees it.

    Args:
        directory: of finished work, on a disk that all processes share.
        names: of all files.
        state: of this process.
    """
    # One listing, not a test of each name: a node may cache that a shared disk has no such file.
    there = {path.name for path in directory.iterdir()} if state.is_main_process else set()
    found = [[index for index, name in enumerate(names) if name not in there]]
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
