"""Cores and shared memory as affinity, control groups and Slurm grant them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from popularity.core import allocation
from popularity.core.allocation import allocated_cores, free_shared_memory


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 cores without a scheduler."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    for name in allocation.SLURM_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n", encoding="utf-8")


def test_without_limits_all_bound_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert allocated_cores(tmp_path) == 64
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 9}, raising=False)
    assert allocated_cores(tmp_path) == 3


def test_the_quota_of_a_container_of_version_2(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/")
    write(tmp_path / "sys/fs/cgroup/cpu.max", "max 100000")
    assert allocated_cores(tmp_path) == 64
    write(tmp_path / "sys/fs/cgroup/cpu.max", "450000 100000")
    assert allocated_cores(tmp_path) == 4
    write(tmp_path / "sys/fs/cgroup/cpu.max", "20000 100000")
    assert allocated_cores(tmp_path) == 1


def test_the_least_quota_of_all_groups_above(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/user.slice/job/step")
    write(tmp_path / "sys/fs/cgroup/user.slice/job/step/cpu.max", "max 100000")
    write(tmp_path / "sys/fs/cgroup/user.slice/job/cpu.max", "800000 100000")
    write(tmp_path / "sys/fs/cgroup/user.slice/cpu.max", "1600000 100000")
    assert allocated_cores(tmp_path) == 8


def test_the_quota_of_version_1(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "4:memory:/x\n3:cpu,cpuacct:/docker/abc\n0::/")
    group = tmp_path / "sys/fs/cgroup/cpu,cpuacct"  # a container does not see its own path
    write(group / "cpu.cfs_quota_us", "-1")
    write(group / "cpu.cfs_period_us", "100000")
    assert allocated_cores(tmp_path) == 64
    write(group / "cpu.cfs_quota_us", "200000")
    assert allocated_cores(tmp_path) == 2


def test_what_slurm_granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "32")
    assert allocated_cores(tmp_path) == 32
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    assert allocated_cores(tmp_path) == 6
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "128")  # more than there are
    assert allocated_cores(tmp_path) == 64


def test_shared_memory(tmp_path: Path) -> None:
    assert free_shared_memory(tmp_path / "none") is None
    found = free_shared_memory(tmp_path)
    assert found is not None
    assert found > 0
