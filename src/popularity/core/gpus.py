"""The GPUs of this machine: how many torch can use, what keeps it from the others, and whether a run may use them.

Torch takes seconds to load, so it is loaded only if the machine has a driver.
"""

from __future__ import annotations

import ctypes
import logging
import os
import warnings
from functools import cache
from pathlib import Path

from popularity.core.config import read_yaml
from popularity.core.errors import ConfigError

logger = logging.getLogger(__name__)

TOPOLOGIES = Path("configs/accelerate")
TOPOLOGY_VARIABLE = "POPULARITY_TOPOLOGY"
USE_CPU_VARIABLE = "ACCELERATE_USE_CPU"  # `popularity.launch` sets it; accelerate reads it too
AMD_DRIVER = Path("/dev/kfd")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
NVIDIA_DEVICE = Path("/dev/nvidia0")


def topology_file(name: str, folder: Path = TOPOLOGIES) -> Path:
    """The file of a topology.

    Args:
        name: without ending.
        folder: of the topologies.

    Raises:
        ConfigError: there is none of that name.
    """
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"no topology {name!r} in {folder}; {TOPOLOGY_VARIABLE} may be: {', '.join(known)}")
    return folder / f"{name}.yaml"


def cpu_requested() -> bool:
    """True if this process has to run on the CPU: `popularity.launch` decided so, or without it the topology.

    Raises:
        ConfigError: POPULARITY_TOPOLOGY names no topology.
    """
    decided = os.environ.get(USE_CPU_VARIABLE)
    if decided:
        return decided.lower() in ("1", "true", "yes", "on")
    name = os.environ.get(TOPOLOGY_VARIABLE)
    return bool(name) and bool(read_yaml(topology_file(str(name))).get("use_cpu", False))


def usable_gpus() -> int:
    """Number of GPUs that torch can use."""
    return _torch_gpus() if _nvidia_library() is not None or AMD_DRIVER.exists() else 0


def unusable_gpus() -> str:
    """Why torch cannot use the GPUs of this machine, with all versions; empty if it can, or if there are none.

    GPUs that CUDA_VISIBLE_DEVICES hides are not there.
    """
    driver = _nvidia_driver() or _amd_driver()
    if not driver or _torch_gpus():
        return ""
    import torch  # noqa: PLC0415

    built = next(
        (f"built for {name} {version}" for name in ("cuda", "hip") if (version := getattr(torch.version, name, None))),
        "built without GPUs",
    )
    return f"this machine has a GPU ({driver}), but torch {torch.__version__} ({built}) cannot use it"


@cache
def warn_of_unusable_gpus() -> None:
    """Warns, once in a process, of GPUs that torch cannot use: the run takes a CPU, on which it can last for days."""
    if problem := unusable_gpus():
        logger.warning(
            "%s: running on the CPU\n  next: install a driver and a torch that fit each other, "
            "or set %s=cpu to run on the CPU without this warning",
            problem,
            TOPOLOGY_VARIABLE,
        )


def _torch_gpus() -> int:
    import torch  # noqa: PLC0415

    with warnings.catch_warnings():  # torch's own warning of the driver: ours says more
        warnings.simplefilter("ignore")
        # The count is the driver's own, also of GPUs that this torch cannot start.
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _nvidia_library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def _nvidia_driver() -> str:
    """The driver's versions; empty if it sees no GPU."""
    library = _nvidia_library()
    if library is None:
        return ""
    count, version = ctypes.c_int(0), ctypes.c_int(0)
    failure = library.cuInit(0)
    if failure:  # without a GPU too; a broken driver is one whose device is there
        if not NVIDIA_DEVICE.exists() or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
            return ""
    elif library.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return ""
    library.cuDriverGetVersion(ctypes.byref(version))
    kernel = NVIDIA_DRIVER.read_text(encoding="utf-8").partition("Module")[2].split() if NVIDIA_DRIVER.exists() else []
    own = f"driver {kernel[0]}" if kernel else "driver"
    error = f", error {failure}" if failure else ""
    return f"{own} for CUDA {version.value // 1000}.{version.value % 1000 // 10}{error}"


def _amd_driver() -> str:
    if not AMD_DRIVER.exists() or os.environ.get("HIP_VISIBLE_DEVICES") == "":
        return ""
    version = Path("/sys/module/amdgpu/version")
    return f"driver amdgpu {version.read_text(encoding='utf-8').strip() if version.exists() else 'of the kernel'}"
