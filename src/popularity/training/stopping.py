"""When a training stops before its ceiling: the class accuracy on held-out posts has stopped rising.

Popularity is never looked at. A run that reaches its ceiling keeps the weights of its last step, as in the method: the
rates have fallen by then, and the accuracies of its last epochs differ by less than their error. A run that stopped
has the length of its best epoch, and keeps the weights of that one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from popularity.core.atomic import reading
from popularity.network.adapted import network_tensors
from popularity.network.model import PrototypeNetwork

ACCURACY = "validation/top1/mean"  # of the values of an epoch: of the mean head
BEST = "best.safetensors"  # in the checkpoint: the best epoch's tensors so far


def best_epoch(history: Sequence[Mapping[str, float]]) -> int:
    """The first epoch, from 0, with the highest accuracy; the last one where no post was held out."""
    accuracies = [epoch.get(ACCURACY) for epoch in history]
    known = [value for value in accuracies if value is not None]
    return accuracies.index(max(known)) if known else len(history) - 1


def has_stopped(history: Sequence[Mapping[str, float]], patience: int) -> bool:
    """Whether `patience` epochs have passed since the accuracy was highest; never where it is 0."""
    return 0 < patience < len(history) - best_epoch(history)


def kept_epoch(history: Sequence[Mapping[str, float]], patience: int) -> int:
    """The epoch, from 0, whose weights a run ends with."""
    return best_epoch(history) if has_stopped(history, patience) else len(history) - 1


def snapshot(network: PrototypeNetwork) -> dict[str, Tensor]:
    """A copy on the CPU of the tensors of `save_network`."""
    return {name: values.detach().cpu().clone() for name, values in network_tensors(network).items()}


def read_best(checkpoint: Path) -> dict[str, Tensor] | None:
    """The best epoch's tensors in a checkpoint, if it has any."""
    file = checkpoint / BEST
    if not file.is_file():
        return None
    with reading(file):
        tensors: dict[str, Tensor] = load_file(file)
    return tensors
