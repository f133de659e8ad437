"""Training that stops where the class accuracy of held-out posts stops rising: when, with which weights, resumed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from popularity.network.adapted import network_tensors
from popularity.network.model import PrototypeNetwork
from popularity.training import loop
from popularity.training.loop import CHECKPOINT, Epoch
from popularity.training.stopping import ACCURACY, BEST, best_epoch, has_stopped, kept_epoch
from tests.training.small_training import TRAIN, small_run, train_params
from tests.training.test_loop import StoppedError, same


def epochs(*accuracies: float) -> list[Epoch]:
    return [{ACCURACY: accuracy} for accuracy in accuracies]


@pytest.mark.parametrize(
    ("accuracies", "patience", "stopped", "kept"),
    [
        ((0.1, 0.2, 0.3), 1, False, 2),
        ((0.1, 0.3, 0.2), 1, True, 1),
        ((0.1, 0.3, 0.3), 1, True, 1),  # as high is no rise
        ((0.1, 0.3, 0.2), 2, False, 2),
        ((0.1, 0.3, 0.2, 0.3), 2, True, 1),
        ((0.3, 0.2, 0.1, 0.0), 0, False, 3),  # never
        ((), 1, False, -1),
    ],
)
def test_when_it_stops_and_what_is_kept(accuracies: Sequence[float], patience: int, stopped: bool, kept: int) -> None:
    history = epochs(*accuracies)
    assert has_stopped(history, patience) == stopped
    assert kept_epoch(history, patience) == kept


def test_without_held_out_posts_it_never_stops() -> None:
    history: list[Epoch] = [{"train/loss": 1.0}] * 9
    assert best_epoch(history) == 8
    assert not has_stopped(history, 1)


class Scripted:
    """In place of `measure`: the accuracies of a script, and the tensors after each epoch."""

    def __init__(self, patch: pytest.MonkeyPatch, accuracies: Sequence[float]) -> None:
        self.accuracies, self.tensors = accuracies, dict[int, dict[str, Tensor]]()
        self.next = 0
        patch.setattr(loop, "measure", self)

    def __call__(self, network: PrototypeNetwork, *_others: Any) -> Epoch:
        found = {name: values.detach().clone() for name, values in network_tensors(network).items()}
        self.tensors[self.next] = found
        self.next += 1
        return {"top1/mean": self.accuracies[self.next - 1]}


SCRIPT = (0.2, 0.5, 0.4, 0.5, 0.9, 0.9)
ENDS = 4  # epochs, with a patience of 2; the best is epoch 1


@pytest.mark.parametrize("unfreeze", [0, 1])
def test_a_run_that_stops_has_the_weights_of_its_best_epoch(
    unfreeze: int, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Scripted(monkeypatch, SCRIPT)
    params = train_params(epochs=6, patience=2, unfreeze_layers=unfreeze)
    history, weights = small_run(params, bert, tmp_path)
    assert [epoch[ACCURACY] for epoch in history] == list(SCRIPT[:ENDS])
    assert kept_epoch(history, params.patience) == 1
    best, last = (
        {name: values for name, values in script.tensors[index].items() if name in weights} for index in (1, 3)
    )
    assert same(weights, best)
    assert not same(weights, last)


@pytest.mark.parametrize(("accuracies", "patience"), [((0.1, 0.2, 0.2, 0.3), 2), ((0.4, 0.3, 0.2, 0.1), 0)])
def test_a_run_that_reaches_its_ceiling_has_the_weights_of_its_last_step(
    accuracies: Sequence[float], patience: int, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Scripted(monkeypatch, accuracies)
    history, weights = small_run(train_params(epochs=4, patience=patience), bert, tmp_path)
    assert len(history) == 4
    assert same(weights, script.tensors[3])
    assert (tmp_path / CHECKPOINT / BEST).exists() == (patience > 0)
    plain = Scripted(monkeypatch, accuracies)
    small_run(train_params(epochs=4), bert, tmp_path / "without")
    assert same(weights, plain.tensors[3])  # what may stop changes nothing before it does


@pytest.mark.parametrize("last", [0, 1, 2, 3])
def test_a_run_that_was_killed_stops_at_the_same_epoch_with_the_same_bits(
    last: int, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = train_params(epochs=6, patience=2, **{"attention.dropout": 0.2})
    Scripted(monkeypatch, SCRIPT)
    whole, weights = small_run(params, bert, tmp_path / "whole")

    def stop(index: int, _epoch: Epoch) -> None:
        if index == last:
            raise StoppedError

    script = Scripted(monkeypatch, SCRIPT)
    with pytest.raises(StoppedError):
        small_run(params, bert, tmp_path / "state", on_epoch=stop)
    script.next = last  # its last epoch was not kept
    resumed, final = small_run(params, bert, tmp_path / "state")
    assert resumed == whole
    assert same(final, weights)
    again, kept = small_run(params, bert, tmp_path / "state")
    assert again == whole  # nothing was left to do, and the best epoch is still known
    assert same(kept, weights)


def test_a_run_stopped_by_its_own_accuracy_is_the_same_twice(bert: Path, tmp_path: Path) -> None:
    """Rates so high that the accuracy soon falls: seeded, so that both runs stop at the same epoch."""
    params = train_params(epochs=30, patience=2, lr_prompt=1.0, lr_attention=1.0, schedule="constant")
    first, again = (small_run(params, bert, tmp_path / name) for name in ("first", "again"))
    assert TRAIN["patience"] == 0  # of all other tests
    assert len(first[0]) < 30
    assert first[0] == again[0]
    assert same(first[1], again[1])
    assert all(torch.isfinite(values).all() for values in first[1].values())
