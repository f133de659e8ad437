"""State folders, from which a killed run resumes."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from popularity.core.atomic import fingerprint, reporting_full_disk
from popularity.core.errors import BusyError

STATE_ROOT = Path(".state")


@cache
def code_fingerprint(*packages: str) -> str:
    """The `fingerprint` of this package's sources, or of those of some of its subpackages."""
    root = Path(__file__).parents[1]
    return fingerprint(*(file for name in packages or (".",) for file in sorted((root / name).rglob("*.py"))))


@contextmanager
def resume_state(stage: str, key: str, root: Path = STATE_ROOT) -> Iterator[Path]:
    """Yields the directory `.state/<stage>/<key>-<code>/`, in which a stage keeps finished work.

    It survives a kill or an error and is removed on success. `key` is a `fingerprint` of the stage's parameters and
    inputs: work from other inputs or other code is never reused.

    Raises:
        BusyError: another run holds it. The processes of one launch share it.
    """
    directory = root / stage / f"{key}-{code_fingerprint()}"
    lock = None
    try:
        if int(os.environ.get("RANK", "0")) == 0:
            lock = _own(directory)
        directory.mkdir(parents=True, exist_ok=True)
        with reporting_full_disk(directory):
            yield directory
        _remove(directory)
    finally:
        if lock is not None:
            os.close(lock)


def _remove(directory: Path) -> None:
    """Removes finished work under another name, so that a kill on the way leaves no part of it to go on from."""
    finished = directory.with_name(f"{directory.name}.finished")
    shutil.rmtree(finished, ignore_errors=True)
    with suppress(OSError):  # another process of the launch was faster
        directory.rename(finished)
    shutil.rmtree(finished, ignore_errors=True)


def _own(directory: Path) -> int:
    """Returns a handle that holds the directory's lock until it is closed or the process ends.

    The lock belongs to the process: loader processes that survive a kill for a moment do not hold it.
    """
    path = directory / "lock"
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # the other run has just ended
            continue
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            os.close(handle)
            raise BusyError(
                f"{directory}: another run of this stage works on the same inputs\n"
                "  expected: one run at a time in one folder\n"
                "  next: wait until it has ended, or stop it"
            ) from error
        except OSError:  # a disk without locks
            return handle
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)  # of a folder that was removed meanwhile
