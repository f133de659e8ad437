"""Cost of a part of a benchmark that runs in a process of its own: seconds, CPU seconds, peak memory."""

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
Part = Callable[..., dict[str, Any] | None]


class Clock:
    """Seconds and CPU seconds, those of ended child processes included, since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), _cpu()

    def read(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self.wall, "cpu": _cpu() - self.cpu}


def _cpu() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run_part(parts: Mapping[str, Part], arguments: list[str]) -> None:
    """Runs the part that the first argument names, on a folder and words, and prints what it returns and costs as JSON.

    A part that has start-up to leave out returns `seconds` and `cpu` of its own.
    """
    name, folder, *rest = arguments
    clock = Clock()
    found = parts[name](Path(folder), *rest) or {}
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps(clock.read() | {"mib": max(peaks)} | found))


def measure(module: str, part: str, folder: Path, *arguments: str) -> dict[str, Any]:
    """What `run_part` prints in a process of its own."""
    command = [sys.executable, "-m", f"benchmarks.{module}", part, str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment())
    if done.returncode:
        raise RuntimeError(f"{module} {part}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def execute(folder: Path, *command: str) -> str:
    """What a command printed, run in `folder` with its code.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def environment(root: Path = REPOSITORY) -> dict[str, str]:
    """This process's, with the code of `root` and without progress bars."""
    paths = os.pathsep.join([str(root / "src"), str(root)])
    return {**os.environ, "PYTHONPATH": paths, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
