"""The precision that `auto` takes on each device; no GPU is needed."""

from __future__ import annotations

import logging

import pytest
import torch

from popularity.encoders import precision as module
from popularity.encoders.precision import resolve_precision
from popularity.encoders.sharding import autocast
from popularity.encoders.sources import Precision

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def have_gpu(monkeypatch: pytest.MonkeyPatch, *, native: bool) -> None:
    """A GPU that computes in bf16, or one that only emulates it, as every GPU of NVIDIA does."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    module._warn_of_emulation.cache_clear()


@pytest.mark.parametrize(("native", "taken"), [(True, "bf16"), (False, "fp16")])
def test_auto_asks_for_native_bf16(native: bool, taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    have_gpu(monkeypatch, native=native)
    assert resolve_precision("auto", GPU) == taken
    assert resolve_precision("fp32", GPU) == "fp32"


@pytest.mark.parametrize(
    ("capability", "native", "taken"),
    [("AVX512", True, "bf16"), ("AVX512", False, "fp32"), ("AVX2", True, "fp32"), ("AVX2", False, "fp32")],
)
def test_auto_on_a_cpu(capability: str, native: bool, taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """AVX2 with native bf16: ATEN_CPU_CAPABILITY asks for an older instruction set than the CPU has."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    assert resolve_precision("auto", CPU) == taken
    assert resolve_precision("bf16", CPU) == "bf16"


def test_emulated_bf16_is_one_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    have_gpu(monkeypatch, native=False)
    with caplog.at_level(logging.WARNING):
        assert [resolve_precision("bf16", GPU) for _ in range(3)] == ["bf16"] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "cuda:0 emulates bf16, which is slow; precision: auto takes fp16 there"
    ]


@pytest.mark.parametrize(
    ("precision", "computed"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_encoders_compute_in_the_precision(precision: Precision, computed: torch.dtype) -> None:
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == computed
