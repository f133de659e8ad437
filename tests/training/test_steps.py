"""What a step launches and waits for, how posts are read, and checkpoints within an epoch: counted, never timed."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from benchmarks.speed.step import OperationCounter, task_launches
from popularity.core.arrays import Int64Array
from popularity.network.accelerator import PATIENCE, make_accelerator
from popularity.network.dataset import Batch, pad_tokens, to_device
from popularity.network.heads import loss_terms
from popularity.network.model import PrototypeNetwork
from popularity.training import loop
from popularity.training.batches import BatchLoader, TrainingPosts
from popularity.training.loop import CheckpointClock, train_network
from popularity.training.optimizer import GradientClipping
from tests.network.small_network import TOP_K, make_network, small_batch
from tests.training.small_training import (
    random_vectors,
    single_accelerator,
    small_network,
    small_run,
    small_tower,
    train_params,
)
from tests.training.test_loop import StoppedError, same

EVERYTHING: dict[str, Any] = {
    **TOP_K,
    "weights.contrastive": 0.5,
    "weights.consistency": 0.1,
    "attention.dropout": 0.2,
}


def operations(
    folder: Path, state: Path, steps: int, changes: dict[str, Any], accelerator: Accelerator
) -> OperationCounter:
    """Of a run of so many steps as an accelerator takes them."""
    params = train_params(epochs=1, batch_size=10, **changes)
    vectors, tower = random_vectors(params.network.prototypes.levels), small_tower(folder)
    network = small_network(params, vectors, tower)
    network.prompts_together, network.shared_attention = True, False
    rows = np.arange(10 * steps)
    counter = OperationCounter()
    with counter:
        train_network(network, TrainingPosts(vectors.reader, rows, rows[:0]), params, accelerator, state=state)
    return counter


@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["default", "everything"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_step_does_not_wait(
    changes: dict[str, Any], precision: str, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "fused_optimizer", lambda _: True)
    few, many = (
        operations(bert, tmp_path / str(steps), steps, changes, single_accelerator(precision)) for steps in (2, 5)
    )
    assert many.waits == few.waits
    assert many.launched > few.launched
    assert many.counts["_fused_adamw_"] - few.counts["_fused_adamw_"] <= 3 * 4  # groups of rate and decay


def fp16_accelerator(scale: float) -> Accelerator:
    """A stand-in for a GPU's: accelerate scales no gradients on a CPU."""
    accelerator = single_accelerator("fp16")
    accelerator.scaler, accelerator.native_amp = torch.amp.GradScaler("cpu", init_scale=scale), True
    return accelerator


def test_an_fp16_step_waits_once(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not loop.fused_optimizer(fp16_accelerator(1.0))
    # The numbers of steps of an AdamW that is not fused are on the host; these reads are no waits.
    monkeypatch.setattr(sys.modules[torch.optim.Adam.__module__], "_get_value", lambda value: 1)
    few, many = (operations(bert, tmp_path / str(steps), steps, {}, fp16_accelerator(1.0)) for steps in (2, 5))
    assert many.counts["_local_scalar_dense"] - few.counts["_local_scalar_dense"] == 3
    assert many.waits - few.waits == 3


def test_a_skipped_step_does_not_move_the_rates(bert: Path, tmp_path: Path) -> None:
    """The first steps overflow until the scale is small enough."""
    history, _ = small_run(train_params(epochs=8), bert, tmp_path, fp16_accelerator(2.0**26))
    moved = json.loads((tmp_path / "checkpoint" / "schedule.json").read_text())["last_epoch"]
    assert 0 < moved < 3 * len(history)
    whole, _ = small_run(train_params(epochs=8), bert, tmp_path / "small", fp16_accelerator(1.0))
    assert json.loads((tmp_path / "small" / "checkpoint" / "schedule.json").read_text())["last_epoch"] == 3 * len(whole)


@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["default", "everything"])
@pytest.mark.parametrize("training", [True, False])
def test_a_pass_never_reads_the_device(
    changes: dict[str, Any], training: bool, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors without values: whatever reads one, by a number, a mask or a copy to the host, is an error."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # not there for tensors without values
    network = make_network(small_tower(bert), changes).train(training)
    batch = small_batch(network)
    network.to("meta")
    network.text_tower.to("meta")
    network.prompts_together = True
    moved = to_device(batch, torch.device("meta"))
    network.class_prompts()  # the layouts are made once
    with OperationCounter() as counter:
        terms = loss_terms(network, network(moved), moved)
        torch.stack([values.mean() for values in terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
        GradientClipping(network, norm=1.0)()
    assert counter.waits == 0


def test_a_step_launches_about_half_the_operations(tmp_path: Path) -> None:
    """G and L in one pass, AdamW as one kernel: `python -m benchmarks.speed launches` prints those at CLIP's size."""
    flags = {"encoder": "minilm", "classes": 3, "dim": 16, "depth": 2}
    found = task_launches(tmp_path, json.dumps(flags))
    assert found["joint"]["waits"] == 0
    assert found["joint"]["launched"] < 0.6 * found["apart"]["launched"]


class WhoReads:
    """Reads posts; the fold of each is replaced by the id of the process that read it."""

    def __init__(self) -> None:
        self.vectors = random_vectors()

    def __call__(self, rows: Int64Array) -> Batch:
        batch = self.vectors.batch(rows)
        return batch._replace(fold=torch.full_like(batch.fold, os.getpid()))


def test_the_processes_of_a_loader_stay_for_all_sequences() -> None:
    loader = BatchLoader(WhoReads(), torch.device("cpu"), workers=1)
    readers = [
        {int(process) for batch in loader.batches([np.array(rows)]) for process in batch.fold}
        for rows in ([1, 2], [3], [4, 5, 6])
    ]
    assert readers[0] == readers[1] == readers[2]
    assert len(readers[0]) == 1
    assert os.getpid() not in readers[0]


def test_valid_posts_are_read_by_the_same_loader(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaders: list[BatchLoader] = []
    sequences: list[int] = []
    batches = BatchLoader.batches

    def spied(self: BatchLoader, passes: Any) -> Iterator[Batch]:
        loaders.append(self)
        sequences.append(len(passes))
        return batches(self, passes)

    monkeypatch.setattr(BatchLoader, "batches", spied)
    small_run(train_params(epochs=2), bert, tmp_path)
    assert len({id(loader) for loader in loaders}) == 1
    assert sequences == [3, 1, 3, 1]


def test_tokens_are_padded_to_a_few_widths(bert: Path) -> None:
    network = make_network(small_tower(bert)).eval()
    batch = small_batch(network, lengths=[1, 2, 3, 4, 5, 0, 2])
    padded = pad_tokens(batch, 8)
    assert padded.tokens.shape[1] == padded.token_mask.shape[1] == 8
    assert pad_tokens(padded, 8) is padded
    assert pad_tokens(batch, 1) is batch
    torch.testing.assert_close(network(padded).local_logits, network(batch).local_logits)


@pytest.mark.parametrize("last", [1, 4, 5, 7])
def test_a_run_that_was_stopped_within_an_epoch_ends_in_the_same_bits(
    last: int, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs of three steps; a checkpoint after each step."""
    params = train_params(epochs=3, checkpoint_minutes=1e-9, **{"attention.dropout": 0.2})
    whole, weights = small_run(params, bert, tmp_path / "whole")
    without, _ = small_run(train_params(epochs=3, **{"attention.dropout": 0.2}), bert, tmp_path / "without")
    assert without == whole
    calls = Counter[str]()
    forward = PrototypeNetwork.forward

    def stopping(self: PrototypeNetwork, *args: Any) -> Any:
        calls["training"] += self.training
        if calls["training"] > last:
            raise StoppedError
        return forward(self, *args)

    monkeypatch.setattr(PrototypeNetwork, "forward", stopping)
    with pytest.raises(StoppedError):
        small_run(params, bert, tmp_path / "state")
    begun = json.loads((tmp_path / "state" / "checkpoint" / "begun.json").read_text())
    assert begun["steps"] == last % 3
    calls["training"] = -100
    resumed, final = small_run(params, bert, tmp_path / "state")
    assert calls["training"] == -100 + 9 - last
    assert resumed == whole
    assert same(final, weights)


def test_when_a_checkpoint_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    never, clock = (CheckpointClock(minutes, single_accelerator()) for minutes in (0, 2))
    now = 119
    assert not clock.is_due(1)
    now = 120
    assert clock.is_due(2)
    assert not clock.is_due(3)
    now = 1e9
    assert not never.is_due(4)


def test_processes_exchange_no_buffers_and_notice_a_lost_one_within_an_hour() -> None:
    accelerator = make_accelerator("fp32")
    assert accelerator.ddp_handler is not None
    assert not accelerator.ddp_handler.broadcast_buffers
    assert PATIENCE.total_seconds() <= 3600


def test_a_frozen_tower_held_in_the_computing_precision_gives_the_same_bits(bert: Path) -> None:
    found = []
    for dtype in (None, torch.bfloat16):
        network = make_network(small_tower(bert))
        network.hold_in(dtype)
        with torch.autocast("cpu", torch.bfloat16), OperationCounter() as counter:
            prompts = network.class_prompts()
        found.append((prompts, counter.counts["_to_copy"]))
        kinds = {module.weight.dtype for module in network.text_tower.modules() if isinstance(module, nn.Linear)}
        assert kinds == {dtype or torch.float32}
        assert network.global_prompt.context.dtype == torch.float32
    assert all(torch.equal(one, other) for one, other in zip(found[0][0], found[1][0], strict=True))
    assert found[1][1] < found[0][1] / 2


def test_compiled_training_is_training(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    compile_ = nn.Module.compile

    def without_a_compiler(self: nn.Module) -> None:
        compiled.append(self)
        compile_(self, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", without_a_compiler)
    plain, _ = small_run(train_params(epochs=1), bert, tmp_path / "plain")
    assert not compiled
    history, _ = small_run(train_params(epochs=1, compile=True), bert, tmp_path / "compiled")
    assert len(compiled) == 1
    assert isinstance(compiled[0], PrototypeNetwork)
    assert history[0] == pytest.approx(plain[0], rel=1e-4)
