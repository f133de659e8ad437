"""GPUs that torch cannot use, and the topology that says whether a process may use one; all with mocked drivers."""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from popularity.core import gpus
from popularity.core.errors import ConfigError
from popularity.core.gpus import cpu_requested, unusable_gpus, usable_gpus, warn_of_unusable_gpus
from tests.repository import REPOSITORY


class Driver:
    """A driver of NVIDIA that sees `count` GPUs, or fails to start."""

    def __init__(self, count: int, failure: int = 0) -> None:
        self.count, self.failure = count, failure

    def cuInit(self, flags: int) -> int:  # noqa: N802 (the library's name)
        return self.failure + flags

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.count
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 11040
        return 0


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    warn_of_unusable_gpus.cache_clear()
    for name in ("POPULARITY_TOPOLOGY", "ACCELERATE_USE_CPU", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpus, "AMD_DRIVER", Path("/no/driver"))


def install(monkeypatch: pytest.MonkeyPatch, driver: Driver, usable: int, tmp_path: Path) -> None:
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13\n", encoding="utf-8")
    monkeypatch.setattr(gpus, "NVIDIA_DRIVER", version)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: driver)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: driver.count)  # NVML's, whether torch can use them or not
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable > 0)


def test_a_gpu_that_torch_cannot_use_is_one_warning_with_versions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, Driver(2), 0, tmp_path)
    assert usable_gpus() == 0
    with caplog.at_level(logging.WARNING):
        warn_of_unusable_gpus()
        warn_of_unusable_gpus()
    (record,) = caplog.records
    assert "driver 470.57.02 for CUDA 11.4" in record.getMessage()
    assert f"torch {torch.__version__} (built for cuda {torch.version.cuda})" in record.getMessage()
    assert "POPULARITY_TOPOLOGY=cpu" in record.getMessage()


def test_a_driver_that_fails_to_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, Driver(0, failure=803), 0, tmp_path)
    monkeypatch.setattr(gpus, "NVIDIA_DEVICE", tmp_path)
    assert "driver 470.57.02 for CUDA 11.4, error 803" in unusable_gpus()
    monkeypatch.setattr(gpus, "NVIDIA_DEVICE", tmp_path / "none")
    assert unusable_gpus() == ""


@pytest.mark.parametrize(("driver", "usable"), [(Driver(1), 1), (Driver(0), 0), (Driver(0, failure=100), 0)])
def test_no_warning_for_a_usable_gpu_or_none(
    driver: Driver, usable: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, driver, usable, tmp_path)
    monkeypatch.setattr(gpus, "NVIDIA_DEVICE", tmp_path / "none")
    warn_of_unusable_gpus()
    assert unusable_gpus() == ""
    assert not caplog.records


def test_the_launch_decides_before_the_topology(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert not cpu_requested()
    for topology, on_cpu in (("cpu", True), ("two_cpu_processes", True), ("gpu", False), ("nodes", False)):
        monkeypatch.setenv("POPULARITY_TOPOLOGY", topology)
        assert cpu_requested() == on_cpu
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # nodes without GPUs
    assert cpu_requested()
    monkeypatch.setenv("POPULARITY_TOPOLOGY", "cpu")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    assert not cpu_requested()
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setenv("POPULARITY_TOPOLOGY", "three")
    with pytest.raises(ConfigError, match="no topology 'three' in configs/accelerate; POPULARITY_TOPOLOGY may be: cpu"):
        cpu_requested()
