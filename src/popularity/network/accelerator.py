"""The device and the precision that the network runs with."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from popularity.encoders.sharding import start_processes

PATIENCE = timedelta(minutes=50)  # a process that hangs is noticed within the hour; no step and no shard takes as long


def make_accelerator(precision: str) -> Accelerator:
    """The accelerator of this process, at the wanted precision.

    Args:
        precision: `fp32`, `bf16`, `fp16`, or `auto`: bf16 where it is supported, else fp16 on a GPU and fp32 on a CPU.

    Raises:
        ConfigError: several processes were launched, but they form no group.
    """
    device = start_processes(PATIENCE).device
    if precision == "auto":
        if device.type == "cuda":
            precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        else:
            precision = "bf16" if _fast_bf16() else "fp32"
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=device.type == "cpu",
        # Buffers are prototypes, which never change.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def _fast_bf16() -> bool:
    return "AVX512" in torch.backends.cpu.get_cpu_capability()
