"""Batches are read while others are encoded."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from accelerate import PartialState

from popularity.encoders.sharding import _Prepared, _read_ahead

PATIENCE = 300.0  # s


def test_the_second_batch_is_read_before_the_first_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPULARITY_WORKERS", "1")

    def prepare(rows: range) -> torch.Tensor:
        (tmp_path / str(rows.start)).touch()
        return torch.tensor(list(rows))

    batches = iter(_read_ahead(_Prepared([range(0, 2), range(2, 4), range(4, 6)], prepare), PartialState(cpu=True)))
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "2").exists():  # nothing was taken yet
        assert time.monotonic() < deadline, "the second batch waits for the first"
        time.sleep(0.01)
    assert [batch.tolist() for batch in batches if isinstance(batch, torch.Tensor)] == [[0, 1], [2, 3], [4, 5]]
