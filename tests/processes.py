"""The processes that `popularity.launch` started: found, waited for, killed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 300.0  # s


def workers_of(launcher: subprocess.Popen[str]) -> dict[int, int]:
    """Rank -> pid of the processes that run below `launcher`."""
    found = {}
    for task in Path(f"/proc/{launcher.pid}/task").iterdir():
        for pid in (task / "children").read_text().split():
            given = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            ranks = [int(entry.partition(b"=")[2]) for entry in given if entry.startswith(b"RANK=")]
            if ranks:
                found[ranks[0]] = int(pid)
    return found


def wait_for(what: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    """Comes back when it is so; fails if `process` ends before, or it takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


def kill_everything(launcher: subprocess.Popen[str]) -> None:
    """The launcher first, so that it starts nothing again."""
    workers = workers_of(launcher).values()
    launcher.kill()
    launcher.wait()
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    for pid in workers:
        while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
            time.sleep(0.01)
