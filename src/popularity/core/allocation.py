"""The part of its machine that a process may use: cores and shared memory, as scheduler and container grant them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
# Cores of a task on a node, or else of the job on this node. Not every cluster binds processes to their cores.
SLURM_VARIABLES = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")


def allocated_cores(root: Path = Path("/")) -> int:
    """The number of cores that this process may use, at least 1.

    It is the least of the cores that the process is bound to, the CPU quota of its control groups (containers), and the
    cores that Slurm granted.

    Args:
        root: of the file system with proc/ and sys/.
    """
    limits = [bound_cores()]
    limits += [int(quota) for quota in _quotas(root)]  # part of a core is no core to count on
    granted = next((value for name in SLURM_VARIABLES if (value := os.environ.get(name, "")).isdecimal()), None)
    if granted:
        limits.append(int(granted))
    return max(1, min(limits))


def bound_cores() -> int:
    """The number of cores that this process may run on: its affinity, or all cores where there is none."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def local_processes() -> int:
    """The number of processes of this launch on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def free_shared_memory(folder: Path = SHARED_MEMORY) -> int | None:
    """Free bytes of the memory through which loader processes hand on their batches; None without such a folder."""
    return shutil.disk_usage(folder).free if folder.is_dir() else None


def _quotas(root: Path) -> Iterator[float]:
    """The CPU quotas, in cores, of the control groups of this process and of the groups above them."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in ("sys/fs/cgroup", *([f"sys/fs/cgroup/{controllers}", "sys/fs/cgroup/cpu"] if controllers else [])):
            folder = root / mount / path.strip("/")
            # In a container its own group is the root of the mount, whatever the path says.
            for group in (folder, *folder.parents[: len(Path(path.strip("/")).parts)]):
                yield from _quota(group)


def _quota(group: Path) -> Iterator[float]:
    """The quota of one control group, of version 2 (cpu.max) or 1 (cpu.cfs_quota_us), if it has one."""
    values = _words(group / "cpu.max") or [
        *_words(group / "cpu.cfs_quota_us"),
        *_words(group / "cpu.cfs_period_us"),
    ]
    if len(values) == 2 and values[0].isdecimal() and int(values[1]):  # `max` and -1 are no quota
        yield int(values[0]) / int(values[1])


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except OSError:
        return []
