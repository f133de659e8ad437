"""The precision that a device computes in."""

from __future__ import annotations

import logging
from functools import cache

import torch

from popularity.encoders.sources import ComputedPrecision, Precision

logger = logging.getLogger(__name__)


def resolve_precision(precision: Precision, device: torch.device) -> ComputedPrecision:
    """`auto` as the device's own precision: bf16 where it computes in bf16, else fp16 on a GPU and fp32 on a CPU.

    GPUs before Ampere (V100, T4) only emulate bf16, which is slower than fp32, but compute in fp16. CPUs compute in it
    with AVX512-BF16, and with AMX, which comes with that. Any other `precision` is what it is.

    Args:
        precision: a key `precision` of params.yaml.
        device: that computes.
    """
    native = _has_bf16(device)
    if precision == "auto":
        return "bf16" if native else "fp16" if device.type == "cuda" else "fp32"
    if precision == "bf16" and device.type == "cuda" and not native:
        _warn_of_emulation(str(device))
    return precision


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # The capability is what PyTorch uses, which ATEN_CPU_CAPABILITY may lower; AVX-512 alone only emulates bf16.
    wide = device.type == "cpu" and "AVX512" in torch.backends.cpu.get_cpu_capability()
    return wide and torch.cpu._is_avx512_bf16_supported()


@cache
def _warn_of_emulation(device: str) -> None:
    logger.warning("%s emulates bf16, which is slow; precision: auto takes fp16 there", device)
