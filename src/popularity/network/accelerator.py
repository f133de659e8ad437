"""The device and the precision that the network runs with."""

from __future__ import annotations

from datetime import timedelta

from accelerate import Accelerator, DistributedDataParallelKwargs

from popularity.encoders.precision import resolve_precision
from popularity.encoders.sharding import start_processes
from popularity.encoders.sources import Precision

PATIENCE = timedelta(minutes=50)  # a process that hangs is noticed within the hour; no step and no shard takes as long


def make_accelerator(precision: Precision) -> Accelerator:
    """The accelerator of this process, at the wanted precision.

    Args:
        precision: `fp32`, `bf16`, `fp16`, or `auto`: see `resolve_precision`.

    Raises:
        ConfigError: several processes were launched, but they form no group.
    """
    device = start_processes(PATIENCE).device
    resolved = resolve_precision(precision, device)
    return Accelerator(
        mixed_precision="no" if resolved == "fp32" else resolved,
        cpu=device.type == "cpu",
        # Buffers are prototypes, which all processes change alike.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
