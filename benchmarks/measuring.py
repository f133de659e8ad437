"""Seconds, CPU seconds and peak memory of a task that runs in its own process."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
Task = Callable[..., dict[str, Any] | None]


class Clock:
    """Measures seconds and CPU seconds since its creation, ended child processes included."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), _cpu()

    def read(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self.wall, "cpu": _cpu() - self.cpu}


def _cpu() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run_task(tasks: Mapping[str, Task], arguments: list[str]) -> None:
    """Runs the task named by the first argument, and prints its result and cost as JSON.

    The other arguments are a folder and words. A task that excludes its start-up returns its own `seconds` and `cpu`.
    """
    name, folder, *rest = arguments
    clock = Clock()
    found = tasks[name](Path(folder), *rest) or {}
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps(clock.read() | {"mib": max(peaks)} | found))


def measure(module: str, task: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """The result and cost of a task of `benchmarks.<module>`, run in its own process."""
    command = [sys.executable, "-m", f"benchmarks.{module}", task, str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment())
    if done.returncode:
        raise RuntimeError(f"{module} {task}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def execute(folder: Path, *command: str) -> str:
    """The output of a command, run in `folder` with the code there.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def environment(root: Path = REPOSITORY) -> dict[str, str]:
    """The environment of this process with the code of `root` and without progress bars."""
    paths = os.pathsep.join([str(root / "src"), str(root)])
    return {**os.environ, "PYTHONPATH": paths, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
