"""What every stage shares: logging, a cost record, and errors shown as one message."""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from popularity.core.atomic import write_json
from popularity.core.errors import PopularityError

# What `popularity.launch` tells the processes that it started: its pid, and how many it asked for.
LAUNCHER_VARIABLE = "POPULARITY_LAUNCHER"
PROCESSES_VARIABLE = "POPULARITY_PROCESSES"
REFUSED = signal.SIGUSR1  # tells it that an error for people has been shown
_UNWRITABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
}


@contextmanager
def record_resources(name: str, record: Path) -> Iterator[None]:
    """Runs a stage's work and writes its wall time (s) and peak memory (MiB) to `record` on success.

    Peak memory is the largest resident set of this process and of its largest child.
    """
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    own, children = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    write_json(
        record,
        {"stage": name, "seconds": round(seconds, 2), "peak_mib": round(own), "largest_child_mib": round(children)},
    )


def set_up_logging() -> None:
    """To stderr, in this process."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it tells of every file of a checkpoint


def run(main: Callable[[], None]) -> None:
    """Entry point of a stage or command: logs to stderr; an error for people exits 1 with its message.

    That is a PopularityError, or what the system says of a full disk and of a folder that cannot be written.
    """
    set_up_logging()
    try:
        main()
    except PopularityError as error:
        _refuse(f"error: {error}")
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        _refuse(
            f"error: {error.filename or 'a file'}: {error.strerror}\n"
            "  expected: folders that can be written, on a disk with space left\n"
            "  next: make room, or see to the folder, and run the command again: it goes on from what is finished"
        )


def _refuse(message: str) -> NoReturn:
    """Ends the process with 1; a launcher above it ends the other processes, and starts none of them again."""
    if os.environ.get(LAUNCHER_VARIABLE) == str(os.getppid()):
        print(message, file=sys.stderr, flush=True)  # now: the launcher may end this process before it exits
        os.kill(os.getppid(), REFUSED)
        sys.exit(1)
    sys.exit(message)
