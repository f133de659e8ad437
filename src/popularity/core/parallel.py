"""Runs several fits at a time: a single one keeps few cores busy.

Torch, which takes seconds to load, is not needed here: the stages of the stack and their processes do without it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from threading import Thread
from typing import TypeVar

from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky import get_reusable_executor
from threadpoolctl import threadpool_limits

from popularity.core.errors import ClusterError
from popularity.core.stage import set_up_logging

Task = TypeVar("Task")
Result = TypeVar("Result")


def ordered_map(
    work: Callable[[Task], Result], tasks: Iterable[Task], *, parallel: int, threads: int
) -> Iterator[Result]:
    """The results of `work` in the order of `tasks`.

    Args:
        work: function of one task.
        tasks: arguments of `work`, one a call.
        parallel: tasks at a time, each in a process of its own: LightGBM crashes where threads make data sets at the
            same time. With 1 they run in this process.
        threads: of linear algebra, at most, as of LightGBM: more would sum in another order, and the result would
            depend on the number of cores.

    Raises:
        Exception: of a task; no further task starts.
        ClusterError: a process was killed.
    """
    if parallel == 1:
        with threadpool_limits(threads, user_api="blas"):
            yield from map(work, tasks)
        return
    with parallel_config("loky", inner_max_num_threads=threads):
        # Without batches, which begin when finished fits took no time; memory maps stay memory maps.
        run = Parallel(parallel, batch_size=1, return_as="generator", max_nbytes=None)
        try:
            yield from run(delayed(_in_worker)(work, task, os.getpid()) for task in tasks)
        except BrokenProcessPool as error:
            raise ClusterError(
                "the process of a fit was killed, as a rule because memory ran out\n"
                f"  expected: memory for {parallel} fits at a time\n"
                "  next: lower parallel_folds in params.yaml and run the command again: finished fits are kept"
            ) from error
        finally:
            get_reusable_executor().shutdown()  # so that their memory is in this process's resource record


def _in_worker(work: Callable[[Task], Result], task: Task, parent: int) -> Result:
    set_up_logging()
    _end_with(parent)
    return work(task)


@cache
def _end_with(parent: int) -> None:
    """Ends this process a second after its parent is gone: a killed one leaves no fits behind."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    Thread(target=watch, daemon=True).start()
