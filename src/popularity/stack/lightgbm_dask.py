"""LightGBM on several machines: its own distributed mode, started on the workers of a Dask cluster.

Dask finds the workers, carries to each its share of the rows and starts there one rank; the ranks then talk to each
other over LightGBM's own sockets. `lightgbm.dask` is not used: it deals the rows out anew in every fit, and with them
the model changes. Here a rank has the rows that their order gives it, whatever the address of its worker, so the same
number of workers gives the same bytes.

The rows are binned before they are dealt out. Every rank has the bins that a single machine would have, which are
otherwise found by each rank from its own rows, and a binned value is one byte to carry instead of four.

LightGBM may wait for a rank that is gone until the end of time, so Dask is asked which workers are alive: once one
is not, or a rank fails, the other ranks' workers are restarted and the whole fit is run again. Dask is imported where
it is used: the package works without it.
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
ATTEMPTS = 3  # of a fit
CONNECT_SECONDS = 10.0  # until an address counts as a wrong one
WORKERS_SECONDS = 120.0  # for as many workers as are asked for to be there, and for lost ones to come back
POLL_SECONDS = 1.0  # between two looks at which workers are alive
R = TypeVar("R")
Options = dict[str, Any]
Task = Callable[[lgb.Dataset, Options], R]


@dataclass(frozen=True)
class ClusterParams(Section):
    """Where LightGBM's boosters are fitted.

    Args:
        workers: of a Dask cluster, each with a share of the rows; 0: none, in this process. Part of the result.
        scheduler: of the cluster: its address, or `local`: processes of this machine for as long as the stage runs.
    """

    workers: Annotated[int, Field(ge=0)]
    scheduler: Annotated[str, Field(pattern=r"^(local|(tcp|tls)://\S+:\d+)$")]

    def __post_init__(self) -> None:
        if self.scheduler != LOCAL and not self.workers:
            raise ValueError("workers: say how many of the scheduler's; with 0 nothing is fitted there")


class LostWorkerError(Exception):
    """A worker has left the cluster while it was needed."""


def shares(rows: int, workers: int) -> list[Int64Array]:
    """The rows 0 to `rows` of each worker, in turn: neighbours in order, often alike, go to different workers."""
    return [np.arange(worker, rows, workers) for worker in range(workers)]


@contextmanager
def dask_client(params: ClusterParams) -> Iterator[None]:
    """Has the cluster open inside the block, for all fits in it; opens none for 0 workers.

    Raises:
        ConfigError: Dask is not installed, or nothing answers at the scheduler's address.
    """
    if not params.workers or _client() is not None:
        yield
        return
    library = _library()
    import dask  # noqa: PLC0415

    logging.getLogger("distributed").setLevel(logging.ERROR)  # it tells of every key; what matters is told here
    if params.scheduler == LOCAL:
        with (
            _same_environment(),
            # So long after a loss Dask gives up a worker that is away in that moment, even in another restart.
            dask.config.set({"distributed.deploy.lost-worker-timeout": "1 day"}),
            library.LocalCluster(
                n_workers=params.workers,
                threads_per_worker=1,  # of Dask: one rank at a time
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",  # any port: the usual one may be taken
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
            "  next: start it and its workers (README, Beyond one machine), or set stack.cluster.scheduler: local"
        ) from error
    with client:
        yield


@contextmanager
def _same_environment() -> Iterator[None]:
    """Takes back what Dask sets for its local workers in this process too: one thread for whatever starts after it."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def on_workers(params: ClusterParams, whole: lgb.Dataset, rows: Sequence[Int64Array], tasks: Sequence[Task[R]]) -> R:
    """What the tasks return, which all return the same: one a worker, all at once, joined by LightGBM's network.

    Args:
        params: of the cluster; opened for this call alone where `dask_client` has not opened it.
        whole: all rows.
        rows: of each worker, out of `whole`, in ascending order.
        tasks: of each worker; called there with its rows and LightGBM's parameters that make it a rank.

    Raises:
        ConfigError: see `dask_client`.
        ClusterError: too few workers, or the fit has failed `ATTEMPTS` times.
    """
    whole.construct()
    with dask_client(params):
        client = _client()
        lock = _library().Lock("popularity")
        if not lock.acquire(timeout=POLL_SECONDS):
            # Two fits whose ranks wait for each other's workers would wait forever.
            logger.info("another fit is at work on the cluster: waiting for its end")
            lock.acquire()
        try:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    return _attempt(client, whole, rows, tasks)
                except _failures() as error:
                    last = error
                    logger.warning("attempt %d of %d on the cluster has failed: %s", attempt, ATTEMPTS, _words(error))
        finally:
            lock.release()
    raise ClusterError(
        f"{params.workers} workers of the cluster ({params.scheduler}) have failed {ATTEMPTS} times to fit LightGBM, "
        f"at last: {_words(last)}\n"
        "  expected: workers that stay up, reach each other on any port, and have this code and its environment\n"
        "  next: see the workers' logs, and run the command again: it goes on from what is finished"
    )


def _attempt(client: Any, whole: lgb.Dataset, rows: Sequence[Int64Array], tasks: Sequence[Task[R]]) -> R:
    workers = _workers(client, len(rows))

    def run(function: Callable[..., Any], *arguments: Sequence[Any]) -> list[Any]:
        """One call a worker."""
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
        while len(set(machines)) < len(workers):  # two workers of one machine may be given the same free port
            machines = run(_endpoint)
        result: R = run(_rank, tasks, carried, [machines] * len(workers), range(len(workers)))[0]
    except Exception:
        # Those that are left wait in LightGBM for one that may be gone.
        with suppress(ClusterError, OSError, CancelledError):
            left = sorted(set(workers) & _alive(client))
            client.restart_workers(left, timeout=WORKERS_SECONDS, raise_for_error=False)
        raise
    return result


def _workers(client: Any, count: int) -> list[str]:
    """Addresses of `count` workers, of as many machines as there are; waits until they are there."""
    if (there := len(_alive(client))) < count:
        logger.info("waiting for %d workers, %d are there", count, there)
    try:
        client.wait_for_workers(count, timeout=WORKERS_SECONDS)
    except TimeoutError as error:
        raise ClusterError(
            f"stack.cluster.workers: {count} are asked for, and after {WORKERS_SECONDS:.0f} s "
            f"{len(_alive(client))} are there\n"
            f"  next: start more (dask worker {client.scheduler.address}), or ask for fewer"
        ) from error
    facts = client.scheduler_info()["workers"]
    before: Counter[str | None] = Counter()
    order = []
    for address in sorted(facts):
        host = urlsplit(address).hostname
        order.append((before[host], address))
        before[host] += 1
    chosen = [address for _, address in sorted(order)[:count]]
    for address in chosen:
        if facts[address]["nanny"] is None:
            raise ClusterError(f"worker {address} could not be restarted: start it without --no-nanny")
    return chosen


def _results(client: Any, futures: list[Any], workers: Sequence[str]) -> list[Any]:
    """Of all futures, in order; an error as soon as one of them has one, or one of the workers is gone."""
    while True:
        with suppress(TimeoutError, CancelledError):
            _library().wait(futures, timeout=POLL_SECONDS)
        if gone := sorted(set(workers) - _alive(client)):
            raise LostWorkerError(f"lost the worker {gone[0]}")
        ended = [future for future in futures if future.status != "pending"]
        if len(ended) == len(futures) or any(future.status != "finished" for future in ended):
            # What a worker had finished is to be had no more if it is lost in this moment.
            return [future.result(timeout=WORKERS_SECONDS) for future in ended]


def _alive(client: Any) -> set[str]:
    """Addresses of all workers."""
    if client.status != "running":
        raise ClusterError(
            "lost the scheduler of the cluster\n"
            "  next: start it and its workers, and run the command again: it goes on from what is finished"
        )
    return set(client.nthreads())


def _binned(whole: lgb.Dataset, rows: Int64Array) -> bytes:
    """Some rows, with labels, weights and names, in LightGBM's binary form, which it writes to files alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.bin"
        whole.subset(rows.tolist()).construct().save_binary(path)
        return path.read_bytes()


def _endpoint() -> str:
    """host:port of this worker for LightGBM: its address in the cluster, and a port that is free now."""
    host = urlsplit(_library().get_worker().address).hostname
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


def _rank(task: Task[R], rows: bytes, machines: Sequence[str], rank: int) -> R:
    """Runs in a worker."""
    # A folder of the worker's own goes with it, should it be killed.
    with tempfile.TemporaryDirectory(dir=_library().get_worker().local_directory) as folder:
        path = Path(folder) / "rows.bin"
        path.write_bytes(rows)
        # LightGBM joins a network through a booster, any one; named in the parameters, ports would be in the model.
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
    """Dask's client that is open in this process, or None."""
    try:
        return _library().Client.current()
    except ValueError:
        return None


def _failures() -> tuple[type[BaseException], ...]:
    """What a lost worker, a broken connection, a port taken in the meantime or another environment raise."""
    return (LostWorkerError, OSError, CancelledError, ImportError, lgb.basic.LightGBMError, _library().KilledWorker)


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _library() -> Any:
    try:
        import distributed  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            "stack.cluster.workers: Dask is not installed; run `pip install -e '.[cluster]'` or set it to 0"
        ) from error
    return distributed
