"""LightGBM on several machines: its own distributed mode, started on the workers of a Dask cluster.

Dask finds the workers, sends each its part of the rows and starts one rank on each; the ranks then communicate over
LightGBM's own sockets. `lightgbm.dask` is not used: it distributes the rows anew in every fit, and so the model
changes. Here the order of the rows decides which rank has them, whatever the address of its worker. So the same number
of workers gives the same bytes.

The rows are binned before they are sent. So every rank has the bins of a single machine (otherwise each rank finds bins
from its own rows), and a value is sent as one byte instead of four.

LightGBM may wait forever for a rank that is gone. So this module polls Dask for the workers that are alive: if one is
lost, or a rank fails, the workers of the other ranks are restarted and the whole fit is run again. Dask is imported
where it is used: the package works without it.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import lightgbm as lgb
import numpy as np
from pydantic import Field

from popularity.core.arrays import Int64Array
from popularity.core.config import Section
from popularity.core.errors import ClusterError, ConfigError

logger = logging.getLogger(__name__)

LOCAL = "local"
MAX_ATTEMPTS = 3  # of a fit
CONNECT_SECONDS = 10.0  # until an address counts as wrong
WORKERS_SECONDS = 120.0  # until all requested workers are there, and until restarted ones are back
POLL_SECONDS = 1.0  # between two checks for lost workers
R = TypeVar("R")
Options = dict[str, Any]
Task = Callable[[lgb.Dataset, Options], R]


@dataclass(frozen=True)
class ClusterParams(Section):
    """Where LightGBM's boosters are fitted.

    Args:
        workers: number of Dask workers, each with a part of the rows; 0: fit in this process. Part of the result.
        scheduler: address of the cluster, or `local`: processes of this machine for as long as the stage runs.
    """

    workers: Annotated[int, Field(ge=0)]
    scheduler: Annotated[str, Field(pattern=r"^(local|(tcp|tls)://\S+:\d+)$")]

    def __post_init__(self) -> None:
        if self.scheduler != LOCAL and not self.workers:
            raise ValueError("workers: say how many workers of the scheduler to use; with 0 it is not used")


class LostWorkerError(Exception):
    """A worker left the cluster while it was needed."""


def rows_of_workers(n_rows: int, workers: int) -> list[Int64Array]:
    """The row positions of each worker, in turn: consecutive rows, which are often alike, go to different workers."""
    return [np.arange(worker, n_rows, workers) for worker in range(workers)]


@contextmanager
def dask_client(params: ClusterParams) -> Iterator[None]:
    """Connects to the cluster for all fits inside the block; does nothing for 0 workers.

    Args:
        params: section stack.cluster.

    Raises:
        ConfigError: Dask is not installed, or nothing answers at the scheduler's address.
    """
    if not params.workers or _client() is not None:
        yield
        return
    library = _library()
    import dask  # noqa: PLC0415

    logging.getLogger("distributed").setLevel(logging.ERROR)  # it logs every key
    if params.scheduler == LOCAL:
        with (
            _same_environment(),
            # After this time Dask gives up a lost worker, even one that is being restarted at that moment.
            dask.config.set({"distributed.deploy.lost-worker-timeout": "1 day"}),
            library.LocalCluster(
                n_workers=params.workers,
                threads_per_worker=1,  # one rank at a time
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",  # any port: the default one may be taken
                memory_limit=0,
            ) as cluster,
            library.Client(cluster),
        ):
            yield
        return
    try:
        client = library.Client(params.scheduler, timeout=CONNECT_SECONDS)
    except OSError as error:
        raise ConfigError(
            f"stack.cluster.scheduler: no Dask scheduler answers at {params.scheduler}\n"
            "  expected: the address that `dask scheduler` prints, reachable from here\n"
            "  next: start it and its workers (docs/scaling.md), or set stack.cluster.scheduler: local"
        ) from error
    with client:
        yield


@contextmanager
def _same_environment() -> Iterator[None]:
    """Restores the environment: Dask sets one thread for its local workers, and in this process too."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def on_workers(params: ClusterParams, whole: lgb.Dataset, rows: Sequence[Int64Array], tasks: Sequence[Task[R]]) -> R:
    """The result of the tasks, which is the same for all: they run at once, one on each worker, as ranks of a network.

    Args:
        params: of the cluster; connected for this call alone unless `dask_client` has connected already.
        whole: all rows.
        rows: positions in `whole` of each worker's rows, ascending.
        tasks: of each worker, called with its rows and LightGBM's parameters that make it a rank.

    Raises:
        ConfigError: see `dask_client`.
        ClusterError: too few workers, or the fit failed `MAX_ATTEMPTS` times.
    """
    whole.construct()
    with dask_client(params):
        client = _client()
        lock = _library().Lock("popularity")
        if not lock.acquire(timeout=POLL_SECONDS):
            # Two fits whose ranks wait for each other's workers would wait forever.
            logger.info("another fit is running on the cluster: waiting for its end")
            lock.acquire()
        try:
            for attempt in range(1, MAX_ATTEMPTS + 1):
                try:
                    return _attempt(client, whole, rows, tasks)
                except _failures() as error:
                    last = error
                    logger.warning(
                        "attempt %d of %d on the cluster has failed: %s", attempt, MAX_ATTEMPTS, _first_line(error)
                    )
        finally:
            lock.release()
    raise ClusterError(
        f"{params.workers} workers of the cluster ({params.scheduler}) have failed {MAX_ATTEMPTS} times to fit "
        f"LightGBM, at last: {_first_line(last)}\n"
        "  expected: workers that stay up, reach each other on any port, and have this code and its environment\n"
        "  next: see the workers' logs, and run the command again: finished fits are kept"
    )


def _attempt(client: Any, whole: lgb.Dataset, rows: Sequence[Int64Array], tasks: Sequence[Task[R]]) -> R:
    workers = _workers(client, len(rows))

    def run(function: Callable[..., Any], *arguments: Sequence[Any]) -> list[Any]:
        """The results of one call on each worker."""
        futures = [
            client.submit(function, *own, workers=[worker], pure=False)
            for worker, *own in zip(workers, *arguments, strict=True)
        ]
        return _results(client, futures, workers)

    try:
        carried = [
            client.scatter(_binned(whole, own), workers=[worker], direct=True, hash=False, timeout=WORKERS_SECONDS)
            for own, worker in zip(rows, workers, strict=True)
        ]
        machines: list[str] = []
        while len(set(machines)) < len(workers):  # two workers of one machine may find the same free port
            machines = run(_endpoint)
        result: R = run(_rank, tasks, carried, [machines] * len(workers), range(len(workers)))[0]
    except Exception:
        # The other ranks may wait in LightGBM for one that is gone.
        with suppress(ClusterError, OSError, CancelledError):
            left = sorted(set(workers) & _alive(client))
            client.restart_workers(left, timeout=WORKERS_SECONDS, raise_for_error=False)
        raise
    return result


def _workers(client: Any, count: int) -> list[str]:
    """Addresses of `count` workers, on as many machines as possible; waits until they are there."""
    if (there := len(_alive(client))) < count:
        logger.info("waiting for %d workers, %d are there", count, there)
    try:
        client.wait_for_workers(count, timeout=WORKERS_SECONDS)
    except TimeoutError as error:
        raise ClusterError(
            f"stack.cluster.workers: {count} are requested, and after {WORKERS_SECONDS:.0f} s "
            f"{len(_alive(client))} are there\n"
            f"  next: start more (dask worker {client.scheduler.address}), or request fewer"
        ) from error
    workers = client.scheduler_info()["workers"]
    on_host: Counter[str | None] = Counter()
    order = []
    for address in sorted(workers):
        host = urlsplit(address).hostname
        order.append((on_host[host], address))
        on_host[host] += 1
    chosen = [address for _, address in sorted(order)[:count]]
    for address in chosen:
        if workers[address]["nanny"] is None:
            raise ClusterError(f"worker {address} could not be restarted: start it without --no-nanny")
    return chosen


def _results(client: Any, futures: list[Any], workers: Sequence[str]) -> list[Any]:
    """The results of all futures, in order; raises as soon as one has failed or a worker is lost."""
    while True:
        with suppress(TimeoutError, CancelledError):
            _library().wait(futures, timeout=POLL_SECONDS)
        if gone := sorted(set(workers) - _alive(client)):
            raise LostWorkerError(f"lost the worker {gone[0]}")
        ended = [future for future in futures if future.status != "pending"]
        if len(ended) == len(futures) or any(future.status != "finished" for future in ended):
            # A finished result is gone too if its worker is lost at this moment.
            return [future.result(timeout=WORKERS_SECONDS) for future in ended]


def _alive(client: Any) -> set[str]:
    """Addresses of all workers."""
    if client.status != "running":
        raise ClusterError(
            "lost the scheduler of the cluster\n"
            "  next: start it and its workers, and run the command again: finished fits are kept"
        )
    return set(client.nthreads())


def _binned(whole: lgb.Dataset, rows: Int64Array) -> bytes:
    """Some rows, with labels, weights and names, in LightGBM's binary form, which it writes to files only."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.bin"
        whole.subset(rows.tolist()).construct().save_binary(path)
        return path.read_bytes()


def _endpoint() -> str:
    """host:port for LightGBM on this worker: its address in the cluster, and a port that is free now."""
    host = urlsplit(_library().get_worker().address).hostname
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


def _rank(task: Task[R], rows: bytes, machines: Sequence[str], rank: int) -> R:
    """The result of the task as a rank; runs in a worker."""
    # The worker's own folder is removed even if the worker is killed.
    with tempfile.TemporaryDirectory(dir=_library().get_worker().local_directory) as folder:
        path = Path(folder) / "rows.bin"
        path.write_bytes(rows)
        # Any booster joins the network; as parameters of the fit the ports would be stored in the model.
        network = lgb.Booster({"verbosity": -1}, lgb.Dataset(np.zeros((1, 1)), [0.0], params={"verbosity": -1}))
        port = int(machines[rank].rpartition(":")[2])
        network.set_network(list(machines), port, num_machines=len(machines))
        try:
            return task(
                lgb.Dataset(path),
                {"num_machines": len(machines), "tree_learner": "data", "pre_partition": True},
            )
        finally:
            network.free_network()


def _client() -> Any:
    """Dask's open client of this process, or None."""
    try:
        return _library().Client.current()
    except ValueError:
        return None


def _failures() -> tuple[type[BaseException], ...]:
    """The errors of a lost worker, a broken connection, a port that was taken meanwhile, another environment."""
    return (LostWorkerError, OSError, CancelledError, ImportError, lgb.basic.LightGBMError, _library().KilledWorker)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _library() -> Any:
    try:
        import distributed  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            "stack.cluster.workers: Dask is not installed; run `pip install -e '.[cluster]'` or set it to 0"
        ) from error
    return distributed
