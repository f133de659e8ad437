"""Steps hold the same posts for any number of processes, and batches come in their order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from popularity.encoders import sharding
from popularity.network.dataset import Batch
from popularity.training import batches
from popularity.training.batches import BatchPlan, load_batches
from tests.network.test_dataset import post_vectors


def test_steps_hold_the_same_posts_for_any_number_of_processes() -> None:
    rows = np.arange(100, 150)
    alone = BatchPlan(16, 16).epoch(rows, 3, seed=5)
    assert sorted(np.concatenate([step.everywhere for step in alone]).tolist()) == rows.tolist()
    assert [len(step.everywhere) for step in alone] == [16, 16, 16, 2]
    assert all(np.array_equal(step.passes[0], step.everywhere) for step in alone)
    for processes, micro_batch in ((2, 16), (3, 4), (1, 5), (4, 1)):
        shares = [BatchPlan(16, micro_batch, processes, process).epoch(rows, 3, seed=5) for process in range(processes)]
        for index, step in enumerate(alone):
            found = [part for share in shares for part in share[index].passes]
            assert len({len(part) for part in found}) == 1  # equally long everywhere: nobody waits
            assert len({len(share[index].passes) for share in shares}) == 1
            assert len(found[0]) <= micro_batch
            together = np.concatenate(found)
            assert sorted(together[together >= 0].tolist()) == sorted(step.everywhere.tolist())
            assert all(np.array_equal(share[index].everywhere, step.everywhere) for share in shares)


def test_the_order_follows_seed_and_epoch() -> None:
    def order(epoch: int, seed: int) -> list[int]:
        steps = BatchPlan(8, 8).epoch(np.arange(30), epoch, seed)
        return [int(row) for step in steps for row in step.everywhere]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(epoch, seed)) for epoch in (0, 1) for seed in (0, 1)}) == 4


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_come_in_order(workers: int) -> None:
    vectors = post_vectors()
    passes = [np.array([3, 1]), np.array([8, -1]), np.array([0])]
    found = list(load_batches(vectors.batch, passes, torch.device("cpu"), workers))
    for batch, rows in zip(found, passes, strict=True):
        for name, expected in vectors.batch(rows)._asdict().items():
            part = getattr(batch, name)
            assert torch.equal(part, expected) if isinstance(expected, Tensor) else part is expected


def test_loaders_whose_batches_have_no_room_are_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, started = post_vectors(), list[int]()

    def loader(*_: object, num_workers: int, **__: object) -> list[Batch]:
        started.append(num_workers)
        return []

    monkeypatch.setattr(sharding, "free_shared_memory", lambda: 100)
    monkeypatch.setattr(batches, "DataLoader", loader)
    assert not list(load_batches(vectors.batch, [np.array([3, 1])], torch.device("cpu"), workers=2))
    assert started == [0]
