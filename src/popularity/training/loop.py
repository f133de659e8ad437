"""Trains the prototype network: one process or many, resumable after each epoch, with the same result.

accelerator = make_accelerator(params.precision)
history = train_network(network, TrainingPosts(reader, train, valid), params, accelerator, state=folder)
"""

from __future__ import annotations

import json
import logging
import math
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import RNG_STATE_NAME, broadcast_object_list, gather_object, load
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from popularity.core.arrays import Int64Array
from popularity.core.atomic import atomic_directory, reading, write_json
from popularity.core.errors import ContractError, DataError
from popularity.core.tensors import write_tensors
from popularity.encoders.sharding import loader_workers
from popularity.network.adapted import adapted_prototypes, set_prototypes
from popularity.network.dataset import Batch, PostReader
from popularity.network.heads import eligible_posts, head_log_probabilities, loss_terms, rank_of_target, term_weight
from popularity.network.model import PrototypeNetwork
from popularity.network.params import TrainParams
from popularity.training.adapted import rebuild_prototypes
from popularity.training.batches import BatchPlan, Step, TrainingPosts, load_batches, training_steps
from popularity.training.optimizer import clip, freeze_unused, make_optimizer, make_schedule

logger = logging.getLogger(__name__)

Epoch = dict[str, float]
OnEpoch = Callable[[int, Epoch], None]
PROGRESS_METRICS = ("train/loss", "validation/top1/mean")
CHECKPOINT = "checkpoint"
PROTOTYPES = "prototypes.safetensors"  # in the checkpoint: of encoders that train


class DivergenceError(DataError):
    """The loss is not finite: the network does not train with these parameters."""


def no_op(_index: int, _epoch: Epoch) -> None:
    """Does nothing with an epoch's values."""


def train_network(
    network: PrototypeNetwork,
    posts: TrainingPosts,
    params: TrainParams,
    accelerator: Accelerator,
    *,
    state: Path,
    on_epoch: OnEpoch = no_op,
) -> list[Epoch]:
    """Each epoch's `train/<term>`, `train/loss` and `validation/<...>` (`measure`); the network is trained in place.

    Source: Sec 3.4 (Eq 8) and 4.1.

    Args:
        network: on the CPU or on the device; encoders on the device.
        posts: train and validation rows, and their reader.
        params: section train.
        accelerator: of this process.
        state: folder of the checkpoint; a run that finds one resumes from it.
        on_epoch: on the main process called with (index from 0, values) of every epoch, also of
            those before an interruption.

    Raises:
        DataError: no rows to train on, or a checkpoint that cannot be read.
        DivergenceError: the loss of an epoch is not finite; the checkpoint stays that of the epoch before.
    """
    if not len(posts.train):
        raise DataError("no post to train on has a known class", expected="at least one")
    freeze_unused(network)
    steps_in_epoch = -(-len(posts.train) // params.batch_size)
    total = training_steps(len(posts.train), params)
    optimizer = make_optimizer(network, params)
    schedule = make_schedule(optimizer, total, params)
    model, optimizer = accelerator.prepare(network, optimizer)
    history = _restore(accelerator, schedule, state, on_epoch)
    network.text_tower.to(accelerator.device)
    _restore_prototypes(network, posts.reader, state)
    run = _Run(network, model, params, accelerator, _fixed_prompts(network, accelerator))
    done = min(len(history) * steps_in_epoch, total)
    with tqdm(
        total=total, initial=done, desc="train", unit="step", disable=not accelerator.is_main_process
    ) as progress:
        for index in range(len(history), -(-total // steps_in_epoch)):
            steps = run.plan.epoch(posts.train, index, params.seed)[: total - done]
            sums: list[dict[str, Tensor]] = []
            rebuild_prototypes(network, posts.reader, run.plan, accelerator)
            network.train()
            for means in run.backward(posts.reader, steps):
                sums.append(means)
                accelerator.unscale_gradients(optimizer)
                clip(network, params.clip_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                progress.update()
            done += len(steps)
            epoch = run.training_means(sums)
            _refuse_divergence(index, epoch)
            if len(posts.valid):
                scored = measure(network, posts.reader, posts.valid, params, accelerator)
                epoch |= {f"validation/{name}": value for name, value in scored.items()}
            history.append(epoch)
            progress.set_postfix(_progress(epoch))
            if accelerator.is_main_process:
                on_epoch(index, epoch)
            _save(accelerator, schedule, state, history, network.prototype_tensors)
    return history


@dataclass(frozen=True)
class _Run:
    """What every step of a training run needs.

    Args:
        network: the network that trains.
        model: the same network in the accelerator's wrapper.
        params: section train.
        accelerator: of this process.
        prompts: G and L where no term of the objective trains them.
    """

    network: PrototypeNetwork
    model: nn.Module
    params: TrainParams
    accelerator: Accelerator
    prompts: tuple[Tensor, Tensor] | None

    @property
    def plan(self) -> BatchPlan:
        return _plan(self.params, self.accelerator)

    def backward(self, reader: PostReader, steps: Sequence[Step]) -> Iterator[dict[str, Tensor]]:
        """Leaves the gradients of one step after the other in the network; yields the step's terms.

        Every term is the mean over the posts of all processes and passes that are eligible for it; what is yielded is
        this process's summand.
        """
        passes = [rows for step in steps for rows in step.passes]
        # On a CPU, reading cached vectors costs less than copying them between processes.
        workers = loader_workers() if self.accelerator.device.type == "cuda" else 0
        batches = load_batches(reader.read, passes, self.accelerator.device, workers)
        for step in steps:
            masks = eligible_posts(self.network, reader.metadata(step.everywhere))
            yield self._step(batches, len(step.passes), {name: int(mask.sum()) for name, mask in masks.items()})

    def _step(self, batches: Iterator[Batch], passes: int, counts: Mapping[str, int]) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for index in range(passes):
            batch = next(batches)
            with nullcontext() if index == passes - 1 else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast():
                    outputs = self.model(batch, self.prompts)
                    terms = loss_terms(self.network, outputs, batch)
                means = {name: values.sum() / max(counts[name], 1) for name, values in terms.items()}
                loss = torch.stack([term_weight(self.network, name) * mean for name, mean in means.items()]).sum()
                # The processes average their gradients; their sum is needed.
                self.accelerator.backward(loss * self.accelerator.num_processes)
            for name, mean in means.items():
                sums[name] = sums.get(name, torch.zeros((), device=mean.device)) + mean.detach()
        return sums

    def training_means(self, sums: Sequence[dict[str, Tensor]]) -> Epoch:
        names = list(sums[0])
        table = torch.stack([torch.stack([step[name] for name in names]) for step in sums])  # (steps, terms)
        means = self.accelerator.reduce(table, "sum").mean(dim=0).tolist()
        epoch = {f"train/{name}": mean for name, mean in zip(names, means, strict=True)}
        weighted = (term_weight(self.network, name) * mean for name, mean in zip(names, means, strict=True))
        epoch["train/loss"] = sum(weighted)
        return epoch


def _progress(epoch: Epoch) -> dict[str, str]:
    """The values of PROGRESS_METRICS that `epoch` has, as text for the progress bar."""
    return {name.partition("/")[2]: f"{epoch[name]:.3f}" for name in PROGRESS_METRICS if name in epoch}


def _plan(params: TrainParams, accelerator: Accelerator) -> BatchPlan:
    return BatchPlan(params.batch_size, params.micro_batch, accelerator.num_processes, accelerator.process_index)


def _fixed_prompts(network: PrototypeNetwork, accelerator: Accelerator) -> tuple[Tensor, Tensor] | None:
    """G and L if no term of the objective trains them; the text encoder then runs once instead of in every step."""
    weights = network.params.weights
    if weights.global_prompt or weights.local_prompt:
        return None
    with torch.no_grad(), accelerator.autocast():
        return network.class_prompts()


def _refuse_divergence(index: int, epoch: Epoch) -> None:
    if not math.isfinite(epoch["train/loss"]):
        raise DivergenceError(
            f"epoch {index}: the loss is {epoch['train/loss']}",
            expected="a finite number",
            fix="lower the rates or clip_norm, or raise the temperatures, in section train of params.yaml",
        )


@torch.no_grad()
def measure(
    network: PrototypeNetwork, reader: PostReader, rows: Int64Array, params: TrainParams, accelerator: Accelerator
) -> Epoch:
    """Means over the posts of the loss terms, and top-1 and top-5 accuracy of each head and of their mean.

    The mean head averages the log-probabilities of the three.

    Args:
        network: is left in evaluation mode.
        reader: of the posts.
        rows: (n,) posts that are scored.
        params: section train.
        accelerator: of this process.
    """
    network.eval()
    passes = [own for step in _plan(params, accelerator).steps(rows) for own in step.passes]
    found: list[dict[str, Any]] = []
    with accelerator.autocast():
        prompts = network.class_prompts()
        for batch in load_batches(reader.read, passes, accelerator.device, 0):
            outputs = network(batch, prompts)
            terms = loss_terms(network, outputs, batch)
            counted = eligible_posts(network, batch.metadata)
            target = batch.target[:, network.class_level]
            known = batch.valid & (target >= 0)
            ranks = {
                name: rank_of_target(values, target)
                for name, values in head_log_probabilities(network, outputs).items()
            }
            found.append(
                {
                    "losses": {name: (float(values.sum()), int(counted[name].sum())) for name, values in terms.items()},
                    "ranks": {name: values[known].tolist() for name, values in ranks.items()},
                }
            )
    return _means_and_accuracies(gather_object(found))


def _means_and_accuracies(found: Sequence[Mapping[str, Any]]) -> Epoch:
    """Means of the losses, and accuracies, over the batches of all processes."""
    epoch: Epoch = {}
    for name in found[0]["losses"]:
        total, count = (sum(batch["losses"][name][column] for batch in found) for column in (0, 1))
        epoch[name] = total / max(count, 1)
    for name in found[0]["ranks"]:
        all_ranks = np.array([rank for batch in found for rank in batch["ranks"][name]])
        for top in (1, 5):
            epoch[f"top{top}/{name}"] = float((all_ranks < top).mean()) if len(all_ranks) else 0.0
    return epoch


def _save(
    accelerator: Accelerator,
    schedule: LRScheduler,
    state: Path,
    history: list[Epoch],
    prototypes: dict[str, Tensor] | None,
) -> None:
    """Replaces the checkpoint as a whole: weights, optimiser, schedule, random states of all processes, history.

    The schedule is written as JSON: accelerate would pickle it, and reading a pickle can run code.
    """
    accelerator.wait_for_everyone()
    gathering = state / "gathering"
    accelerator.save_state(str(gathering))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(gathering / "schedule.json", schedule.state_dict())
        write_json(gathering / "history.json", history)
        if prototypes is not None:
            write_tensors(prototypes, None, gathering / PROTOTYPES)
        with atomic_directory(state / CHECKPOINT) as partial:
            for file in gathering.iterdir():
                file.rename(partial / file.name)
        gathering.rmdir()
    accelerator.wait_for_everyone()


def _restore_prototypes(network: PrototypeNetwork, reader: PostReader, state: Path) -> None:
    """Gives network and reader the prototypes of the last finished epoch, where encoders train."""
    file = state / CHECKPOINT / PROTOTYPES
    if reader.live is not None and file.is_file():
        with reading(file):
            network.prototype_tensors = load_file(file)
        reader.live.vectors = adapted_prototypes(reader.live.vectors, network.prototype_tensors)
        set_prototypes(network, reader.live.vectors)


def _restore(accelerator: Accelerator, schedule: LRScheduler, state: Path, on_epoch: OnEpoch) -> list[Epoch]:
    """The history so far, with all other state as in the checkpoint; empty without one."""
    folder = state / CHECKPOINT
    # A listing, not a test of the name: nodes that share a disk may cache what they last found at a name.
    found = CHECKPOINT in {path.name for path in state.glob("*")}
    text = (folder / "history.json").read_text(encoding="utf-8") if found else ""
    agreed = [text]
    if accelerator.num_processes > 1:
        broadcast_object_list(agreed)
    if text != agreed[0]:
        raise ContractError(
            f"{folder}: process {accelerator.process_index} finds another checkpoint than the main process\n"
            "  expected: one disk that all nodes share\n"
            "  next: run the command again"
        )
    if not found:
        return []
    try:
        history: list[Epoch] = json.loads(text)
        random_states = folder / f"{RNG_STATE_NAME}_{accelerator.process_index}.pkl"
        if random_states.exists():  # else the run before had fewer processes
            load(random_states)  # accelerate would silently skip damaged ones
        accelerator.load_state(str(folder))
        schedule.load_state_dict(json.loads((folder / "schedule.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        raise DataError(
            f"the checkpoint cannot be read: {str(error).splitlines()[0]}",
            file=folder,
            expected="the checkpoint of an earlier run of this stage, as it was written",
            fix=f"remove it, to train from the start: rm -r {folder}",
        ) from error
    logger.info("resuming after epoch %d", len(history))
    if accelerator.is_main_process:
        for index, epoch in enumerate(history):
            on_epoch(index, epoch)
    return history
