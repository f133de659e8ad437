"""The device and the precision that the network runs with."""

from __future__ import annotations

from accelerate import Accelerator

from popularity.encoders.precision import resolve_precision
from popularity.encoders.sharding import start_processes
from popularity.encoders.sources import Precision


def make_accelerator(precision: Precision) -> Accelerator:
    """The accelerator of this process, at the wanted precision.

    Args:
        precision: `fp32`, `bf16`, `fp16`, or `auto`: see `resolve_precision`.

    Raises:
        ConfigError: several processes were launched, but they form no group.
    """
    device = start_processes().device
    resolved = resolve_precision(precision, device)
    return Accelerator(mixed_precision="no" if resolved == "fp32" else resolved, cpu=device.type == "cpu")
