"""Shared by all stages: logging, a record of time and memory, and errors shown as one message."""

from __future__ import annotations

import errno
import io
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

logger = logging.getLogger(__name__)

# Set by `popularity.launch` for the processes that it starts: its pid, and their number.
LAUNCHER_VARIABLE = "POPULARITY_LAUNCHER"
PROCESSES_VARIABLE = "POPULARITY_PROCESSES"
REFUSED = signal.SIGUSR1  # to the launcher: an error for people has been shown
# What torchrun, MPI, Slurm's srun and accelerate tell the processes that they start.
OF_LAUNCHERS = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK", "CROSS_RANK", "ROLE_NAME"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "CROSS_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
PREFIXES_OF_LAUNCHERS = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "OMPI_", "MPIR_", "MV2_", "PMI_", "PMIX_")
KEPT = ("ACCELERATE_USE_CPU",)  # a choice of the device, and of no launch
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
    """Sends log lines of this process to stderr."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it logs every file of a checkpoint


def run(main: Callable[[], None]) -> None:
    """Runs the `main` of a stage or command, logs to stderr, and exits 1 with one message on an error for people.

    Such an error is a PopularityError, or the system's error for a full disk or a folder that cannot be written.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal lacks is escaped
            stream.reconfigure(errors="backslashreplace")
    set_up_logging()
    refuse_other_code(Path.cwd())
    if not _started_by_us():
        put_aside_variables()
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # who read the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except PopularityError as error:
        _refuse(f"error: {error}")
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        if (
            error.errno == errno.EACCES
            and error.filename
            and (closed := _unreadable(Path(os.fsdecode(error.filename))))
        ):
            _refuse(
                f"error: {closed}: cannot be read: {error.strerror}\n"
                "  expected: files and folders that you may read\n"
                "  next: see to its owner and mode (ls -ld), and run the command again: finished work is kept"
            )
        _refuse(
            f"error: {error.filename or 'a file'}: {error.strerror}\n"
            "  expected: folders that can be written, on a disk with space left\n"
            "  next: make room, or make the folder writable, and run the command again: finished work is kept"
        )


def put_aside_variables() -> None:
    """Removes from the environment what another launch left there, with a line that names it.

    With such variables libraries would wait for processes that nobody started, or train otherwise than params.yaml
    says.
    """
    found = [
        name
        for name in sorted(os.environ)
        if (name in OF_LAUNCHERS or name.startswith(PREFIXES_OF_LAUNCHERS)) and name not in KEPT
    ]
    for name in found:
        del os.environ[name]
    if found:
        logger.warning("put aside %s: of a launch by another program (processes: configs/accelerate)", ", ".join(found))


def _started_by_us() -> bool:
    """True in a process that `popularity.launch` started or turned into."""
    return os.environ.get(LAUNCHER_VARIABLE) in (str(os.getppid()), str(os.getpid()))


def refuse_other_code(folder: Path) -> None:
    """Exits with 1 if `folder` holds this package and the running one is another: a change there would not be seen."""
    here, running = folder / "src" / "popularity", Path(__file__).resolve().parents[1]
    if (here / "__init__.py").is_file() and here.resolve() != running:
        sys.exit(
            f"error: {running} would run, not the code of this folder\n"
            f"  expected: {here.resolve()}\n"
            "  next: export PYTHONPATH=src, or make an environment of this folder: make env"
        )


def _unreadable(path: Path) -> Path | None:
    """`path`, or the nearest folder above it that exists, if it may not be read; None if only writing is refused."""
    nearest = next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))
    needed = os.R_OK | (os.X_OK if nearest.is_dir() else 0)
    return None if os.access(nearest, needed) else nearest


def _refuse(message: str) -> NoReturn:
    """Exits with 1. A launcher that started this process ends the others and restarts none."""
    if os.environ.get(LAUNCHER_VARIABLE) == str(os.getppid()):
        print(message, file=sys.stderr, flush=True)  # flushed: the launcher may end this process before it exits
        os.kill(os.getppid(), REFUSED)
        sys.exit(1)
    sys.exit(message)
