"""One training step: what it launches; its attention, and that of embedding, in linear time and over all pairs.

The tasks of `python -m benchmarks.speed launches` and `attention`, on the random content of `network.py`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measuring import Clock, Task, run_task
from benchmarks.speed.network import Content, clip_sized, minilm, network_params, random_content, synchronize
from popularity.encoders.prompting import PromptTower, load_prompt_tower
from popularity.inference.outputs import describe_posts
from popularity.network.accelerator import make_accelerator
from popularity.network.dataset import to_device
from popularity.network.params import TrainParams
from popularity.training import loop
from popularity.training.batches import TrainingPosts
from popularity.training.optimizer import make_optimizer

NEAREST = 5  # classes in the explanation of a post
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")  # the host reads what the device computes
# No kernel: they allocate, make a number of the host a tensor, or mark a profile.
UNLAUNCHED = (
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "scalar_tensor",
    "lift_fresh",
    "detach",
    "_unsafe_view",
)


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations inside the context by name, those of gradients too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if masked:
            name = "nonzero"  # what an index by a mask is made of
        if name in WAITS or not (func.is_view or func.namespace == "profiler" or name in UNLAUNCHED):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def waits(self) -> int:
        return sum(self.counts[name] for name in WAITS)

    @property
    def launched(self) -> int:
        return sum(self.counts.values()) - self.waits


@contextmanager
def as_on_an_accelerator(*, kept: bool = True) -> Iterator[None]:
    """On a CPU too, AdamW is one kernel a group; without `kept` it is one operation after the other."""

    def plain(*args: Any, fused: bool = False) -> Any:
        del fused
        optimizer = make_optimizer(*args)
        for group in optimizer.param_groups:
            group["foreach"] = False
        return optimizer

    patched = mock.patch.object(loop, "fused_optimizer", return_value=True)
    with patched if kept else mock.patch.object(loop, "make_optimizer", plain):
        yield


def count_step(content: Content, tower: PromptTower, params: TrainParams, folder: Path, *, joint: bool) -> Counter[str]:
    """The operations of one training step, by name: those of two steps less those of one.

    Args:
        content: posts and prototypes.
        tower: text encoder.
        params: section train.
        folder: for checkpoints.
        joint: as an accelerator takes it, G and L in one pass and AdamW as one kernel; else each apart.
    """
    found = []
    for steps in (2, 1):
        accelerator = make_accelerator(params.precision)
        network = content.network(tower, params)
        network.prompts_together, network.shared_attention = joint, False
        draws = np.random.default_rng(0).integers(len(content.vectors.pids), size=steps * params.batch_size)
        posts = TrainingPosts(content.vectors.reader, draws, draws[:0])
        counter = OperationCounter()
        with tempfile.TemporaryDirectory(dir=folder) as state, as_on_an_accelerator(kept=joint), counter:
            loop.train_network(network, posts, params, accelerator, state=Path(state))
        found.append(counter.counts)
    return found[0] - found[1]


def task_launches(folder: Path, flags: str = "{}") -> dict[str, dict[str, int]]:
    """Launched operations and waits of a step: `apart` with G, L and each parameter's update apart, and `joint`.

    Args:
        folder: for the random content.
        flags: JSON of encoder, classes, dim, depth and precision.
    """
    given = {"encoder": "clip", "classes": 77, "dim": 512, "depth": 2, "precision": "fp32", **json.loads(flags)}
    params = network_params(given)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root = Path(name)
        tower = load_prompt_tower(clip_sized(root / "clip") if given["encoder"] == "clip" else minilm())
        content = random_content(root, 300, given["classes"], (512, tower.spec.width), params.network.prototypes.folds)
        result = {}
        for kind, joint in (("apart", False), ("joint", True)):
            counter = OperationCounter()
            counter.counts = count_step(content, tower, params, root, joint=joint)
            result[kind] = {"launched": counter.launched, "waits": counter.waits}
    return result


def task_attention(folder: Path, posts: str, flags: str = "{}") -> dict[str, dict[str, float]]:
    """The cost with attention in linear time (`shared`) and over all pairs (`pairs`), alternating.

    Of a training step, and of the columns of a batch as stage `embed_posts` makes them (`embed_...`).

    Args:
        folder: for the random content.
        posts: number of them.
        flags: JSON of classes, dim, depth, steps and precision; by default K = 174 and the default parameters.
    """
    given = {"classes": 174, "steps": 5, "precision": "auto", **json.loads(flags)}
    params, costs = network_params(given), dict[str, list[dict[str, float]]]()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        root, tower = Path(name), load_prompt_tower(minilm())
        widths, folds = (1280, tower.spec.width), params.network.prototypes.folds
        content = random_content(root, int(posts), given["classes"], widths, folds)
        for step in range(int(given["steps"]) + 1):
            for kind, shared in (("pairs", False), ("shared", True)):
                cost = _two_steps_less_one(content, tower, params, root, shared=shared)
                embedding = _embed_batch(content, tower, params, shared=shared)
                if step:  # the first one warms up
                    costs.setdefault(kind, []).append(cost)
                    costs.setdefault(f"embed_{kind}", []).append(embedding)
    return {
        kind: {key: float(np.median([cost[key] for cost in each])) for key in each[0]} for kind, each in costs.items()
    }


def _two_steps_less_one(
    content: Content, tower: PromptTower, params: TrainParams, folder: Path, *, shared: bool
) -> dict[str, float]:
    found = []
    for steps in (2, 1):
        accelerator = make_accelerator(params.precision)
        network = content.network(tower, params).to(accelerator.device)
        network.shared_attention = shared
        draws = np.random.default_rng(steps).integers(len(content.vectors.pids), size=steps * params.batch_size)
        with tempfile.TemporaryDirectory(dir=folder) as state:
            synchronize(accelerator.device)
            clock = Clock()
            posts = TrainingPosts(content.vectors.reader, draws, draws[:0])
            loop.train_network(network, posts, params, accelerator, state=Path(state))
            synchronize(accelerator.device)
            found.append(clock.read())
    return {key: found[0][key] - found[1][key] for key in found[0]}


def _embed_batch(content: Content, tower: PromptTower, params: TrainParams, *, shared: bool) -> dict[str, float]:
    """The cost of the columns of one batch, whose vectors are read before; G and L are made once for all batches."""
    accelerator = make_accelerator(params.precision)
    network = content.network(tower, params).to(accelerator.device).eval()
    network.shared_attention = shared
    batch = to_device(content.vectors.batch(np.arange(params.batch_size)), accelerator.device)
    with torch.inference_mode(), accelerator.autocast():
        prompts = network.class_prompts()
    synchronize(accelerator.device)
    clock = Clock()
    describe_posts(network, prompts, batch, NEAREST, accelerator.autocast())
    synchronize(accelerator.device)
    return clock.read()


TASKS: dict[str, Task] = {"launches": task_launches, "attention": task_attention}

if __name__ == "__main__":
    run_task(TASKS, sys.argv[1:])
