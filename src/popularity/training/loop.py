"""Trains the prototype network: one process or many, resumable within an epoch, with the same result.

accelerator = make_accelerator(params.precision)
history = train_network(network, TrainingPosts(reader, train, valid), params, accelerator, state=folder)
"""

from __future__ import annotations

import json
import logging
import math
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
from popularity.encoders.sharding import loader_workers, workers_that_fit
from popularity.network.adapted import adapted_prototypes, set_network_tensors, set_prototypes
from popularity.network.dataset import Batch, PostReader
from popularity.network.heads import eligible_posts, head_log_probabilities, loss_terms, rank_of_target, term_weight
from popularity.network.model import COMPUTING_TYPES, PrototypeNetwork
from popularity.network.params import TrainParams
from popularity.training.adapted import rebuild_prototypes
from popularity.training.batches import BatchLoader, BatchPlan, Step, TrainingPosts, training_steps
from popularity.training.optimizer import GradientClipping, freeze_unused, make_optimizer, make_schedule
from popularity.training.stopping import BEST, best_epoch, has_stopped, read_best, snapshot

logger = logging.getLogger(__name__)

Epoch = dict[str, float]
OnEpoch = Callable[[int, Epoch], None]
PROGRESS_METRICS = ("train/loss", "validation/top1/mean")
CHECKPOINT = "checkpoint"
AGREE_STEPS = 16  # of several processes, between two questions whether a checkpoint is due
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

    Training stops sooner where the class accuracy stops rising: see stopping.py.

    Source: Sec 3.4 (Eq 8) and 4.1.

    Args:
        network: on the CPU or on the device; encoders on the device.
        posts: train and validation rows, and their reader.
        params: section train.
        accelerator: of this process.
        state: folder of the checkpoint, which is made after each epoch and every `params.checkpoint_minutes`; a run
            that finds one resumes from it.
        on_epoch: on the main process called with (index from 0, values) of every epoch, also of
            those before an interruption.

    Raises:
        DataError: no rows to train on, or a checkpoint that cannot be read.
        DivergenceError: the loss of an epoch is not finite; the checkpoint is of a step before its end.
    """
    if not len(posts.train):
        raise DataError("no post to train on has a known class", expected="at least one")
    freeze_unused(network)
    steps_in_epoch = -(-len(posts.train) // params.batch_size)
    total = training_steps(len(posts.train), params)
    optimizer = make_optimizer(network, params, fused=fused_optimizer(accelerator))
    schedule = make_schedule(optimizer, total, params)
    if params.compile:
        network.compile()
    model, optimizer = accelerator.prepare(network, optimizer)
    history, begun = _restore(accelerator, schedule, state, on_epoch)
    network.text_tower.to(accelerator.device)
    network.hold_in(COMPUTING_TYPES.get(accelerator.mixed_precision))
    _restore_prototypes(network, posts.reader, state)
    best = read_best(state / CHECKPOINT)
    loader = _loader(posts, params, accelerator.device)
    prompts = _fixed_prompts(network, accelerator)
    run = _Run(network, model, params, accelerator, prompts, loader, optimizer, schedule)
    clock = CheckpointClock(params.checkpoint_minutes, accelerator)
    done = min(len(history) * steps_in_epoch + begun.steps, total)
    with tqdm(
        total=total, initial=done, desc="train", unit="step", disable=not accelerator.is_main_process
    ) as progress:
        for index in range(len(history), -(-total // steps_in_epoch)):
            if has_stopped(history, params.patience):
                break
            steps = run.plan.epoch(posts.train, index, params.seed)[: total - index * steps_in_epoch]
            if not begun.steps:  # else its prototypes were in the checkpoint
                rebuild_prototypes(network, posts.reader, run.plan, accelerator)
            network.train()
            table = None
            for finished, table in run.epoch(posts.reader, steps, begun):
                progress.update()
                if finished < len(steps) and clock.is_due(finished):
                    unfinished = _Begun.of(accelerator, finished, table)
                    _save(accelerator, schedule, state, _Progress(history, unfinished, network.prototype_tensors, best))
            assert table is not None
            epoch, begun = run.training_means(table, posts.reader, steps), _Begun()
            _refuse_divergence(index, epoch)
            if len(posts.valid):
                scored = measure(network, posts.reader, posts.valid, params, accelerator, loader)
                epoch |= {f"validation/{name}": value for name, value in scored.items()}
            history.append(epoch)
            if params.patience and best_epoch(history) == index:
                best = snapshot(network)
            progress.set_postfix(_progress(epoch))
            if accelerator.is_main_process:
                on_epoch(index, epoch)
            _save(accelerator, schedule, state, _Progress(history, begun, network.prototype_tensors, best))
            clock.restart()
    if best is not None and has_stopped(history, params.patience):
        _put_back(network, best, posts.reader, history)
    return history


def _put_back(network: PrototypeNetwork, best: dict[str, Tensor], reader: PostReader, history: list[Epoch]) -> None:
    """Gives the network the tensors of its best epoch."""
    logger.info("stopped after epoch %d: the weights are those of epoch %d", len(history) - 1, best_epoch(history))
    set_network_tensors(network, best, None if reader.live is None else reader.live.vectors)


def _loader(posts: TrainingPosts, params: TrainParams, device: torch.device) -> BatchLoader:
    """The loader of all batches. On a CPU, reading cached vectors costs less than copying them to a process."""
    workers = loader_workers() if device.type == "cuda" else 0
    if workers:
        workers = workers_that_fit(posts.reader.read(posts.train[: params.micro_batch]), workers)
    return BatchLoader(posts.reader.read, device, workers, changing=posts.reader.live is not None)


def fused_optimizer(accelerator: Accelerator) -> bool:
    """Whether AdamW runs as one kernel: on CUDA, but for fp16, where a skipped step must be known on the host."""
    return bool(accelerator.device.type == "cuda" and accelerator.mixed_precision != "fp16")


@dataclass(frozen=True)
class _Begun:
    """An epoch that has begun.

    Args:
        steps: of it that are done.
        table: (steps, terms) the means of each, as sums over the processes; empty for 0 steps.
    """

    steps: int = 0
    table: Sequence[Sequence[float]] = ()

    @classmethod
    def of(cls, accelerator: Accelerator, steps: int, table: Tensor) -> _Begun:
        return cls(steps, accelerator.reduce(table[:steps].clone(), "sum").tolist())


class _Progress(NamedTuple):
    """How far a run is.

    Args:
        history: of the finished epochs.
        begun: the epoch that has begun.
        prototypes: the network's `prototype_tensors`.
        best: tensors of the best epoch so far, where training may stop early.
    """

    history: list[Epoch]
    begun: _Begun
    prototypes: dict[str, Tensor] | None
    best: dict[str, Tensor] | None


class _Terms(NamedTuple):
    """The terms of the objective in one step, on the device.

    Args:
        counts: (terms,) posts that each is averaged over.
        weights: (terms,) of Eq 8.
        sums: (terms,) this process's summand of their means; grows with each pass.
    """

    counts: Tensor
    weights: Tensor
    sums: Tensor


class CheckpointClock:
    """Says when a checkpoint within an epoch is due; all processes get the same answer.

    Several processes ask the main process at every AGREE_STEPS-th step alone, because the answer is waited for.

    Args:
        minutes: between checkpoints; 0: never.
        accelerator: of this process.
    """

    def __init__(self, minutes: float, accelerator: Accelerator) -> None:
        self.seconds, self.accelerator = 60 * minutes, accelerator
        self.restart()

    def restart(self) -> None:
        """A checkpoint was made."""
        self.start = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether one is due after `step` steps of the epoch; if so, the clock starts anew."""
        several = self.accelerator.num_processes > 1
        if not self.seconds or (several and step % AGREE_STEPS):
            return False
        answer = [time.monotonic() - self.start >= self.seconds]
        if several:
            broadcast_object_list(answer)
        if answer[0]:
            self.restart()
        return answer[0]


@dataclass(frozen=True)
class _Run:
    """What every step of a training run needs.

    Args:
        network: the network that trains.
        model: the same network in the accelerator's wrapper.
        params: section train.
        accelerator: of this process.
        prompts: G and L where no term of the objective trains them.
        loader: of the posts.
        optimizer: in the accelerator's wrapper.
        schedule: of its rates.
    """

    network: PrototypeNetwork
    model: nn.Module
    params: TrainParams
    accelerator: Accelerator
    prompts: tuple[Tensor, Tensor] | None
    loader: BatchLoader
    optimizer: Any
    schedule: LRScheduler

    @property
    def plan(self) -> BatchPlan:
        return _plan(self.params, self.accelerator)

    def epoch(self, reader: PostReader, steps: Sequence[Step], begun: _Begun) -> Iterator[tuple[int, Tensor]]:
        """Takes the steps of an epoch that are left; yields after each how many are done, and their terms.

        No step waits for the device, but for fp16, where the host must know whether the step was skipped. The terms
        (steps, terms) are this process's summands of the means over the posts of all processes and passes that are
        eligible for them.
        """
        batches = self.loader.batches([rows for step in steps[begun.steps :] for rows in step.passes])
        counts = self.eligible_counts(reader, steps)
        weights = torch.tensor([term_weight(self.network, name) for name in counts], device=self.accelerator.device)
        of_steps = torch.tensor(list(zip(*counts.values(), strict=True)), device=self.accelerator.device)
        table = torch.zeros(len(steps), len(counts), device=self.accelerator.device)
        if begun.steps and self.accelerator.is_main_process:
            table[: begun.steps] = torch.tensor(begun.table, device=table.device)
        clipping = GradientClipping(self.network, self.params.clip_norm)
        for index in range(begun.steps, len(steps)):
            self.backward(batches, len(steps[index].passes), _Terms(of_steps[index], weights, table[index]))
            self.accelerator.unscale_gradients(self.optimizer)
            clipping()
            self.optimizer.step()
            if not self.accelerator.optimizer_step_was_skipped:
                self.schedule.step()
            self.optimizer.zero_grad()
            yield index + 1, table

    def eligible_counts(self, reader: PostReader, steps: Sequence[Step]) -> dict[str, list[int]]:
        """For each term of the objective the number of posts of each step that it is averaged over, at least 1."""
        masks = eligible_posts(self.network, reader.metadata(np.concatenate([step.everywhere for step in steps])))
        starts = np.cumsum([0, *(len(step.everywhere) for step in steps[:-1])])
        sums = {name: np.add.reduceat(mask.numpy(), starts, dtype=np.int64) for name, mask in masks.items()}
        return {name: np.maximum(count, 1).tolist() for name, count in sums.items()}

    def backward(self, batches: Iterator[Batch], passes: int, step: _Terms) -> None:
        """Leaves the gradients of one step in the network, and adds its terms to `step.sums`.

        Args:
            batches: the batches of its passes come next.
            passes: number of them.
            step: what its terms are divided by and weighted with.
        """
        processes = self.accelerator.num_processes
        for index in range(passes):
            batch = next(batches)
            with nullcontext() if index == passes - 1 else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast():
                    outputs = self.model(batch, self.prompts)
                    terms = loss_terms(self.network, outputs, batch)
                means = torch.stack(list(terms.values())).sum(dim=1) / step.counts
                loss = (step.weights * means).sum()
                # The processes average their gradients; their sum is needed.
                self.accelerator.backward(loss * processes if processes > 1 else loss)
            step.sums.add_(means.detach())

    def training_means(self, table: Tensor, reader: PostReader, steps: Sequence[Step]) -> Epoch:
        """Means over the epoch of the terms in `table` (steps, terms)."""
        names = list(eligible_posts(self.network, reader.metadata(steps[0].everywhere)))
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
    network: PrototypeNetwork,
    reader: PostReader,
    rows: Int64Array,
    params: TrainParams,
    accelerator: Accelerator,
    loader: BatchLoader | None = None,
) -> Epoch:
    """Means over the posts of the loss terms, and top-1 and top-5 accuracy of each head and of their mean.

    The mean head averages the log-probabilities of the three.

    Args:
        network: is left in evaluation mode.
        reader: of the posts.
        rows: (n,) posts that are scored.
        params: section train.
        accelerator: of this process.
        loader: with `reader`; None reads in this process.
    """
    network.eval()
    passes = [own for step in _plan(params, accelerator).steps(rows) for own in step.passes]
    loader = loader or BatchLoader(reader.read, accelerator.device, 0)
    found: list[_Measured] = []
    with accelerator.autocast():
        prompts = network.class_prompts()
        for batch in loader.batches(passes):
            outputs = network(batch, prompts)
            terms = loss_terms(network, outputs, batch)
            counted = eligible_posts(network, batch.metadata)
            target = batch.target[:, network.class_level]
            heads = head_log_probabilities(network, outputs)
            found.append(
                _Measured(
                    torch.stack([values.sum() for values in terms.values()]),
                    torch.stack([counted[name].sum() for name in terms]),
                    torch.stack([rank_of_target(values, target) for values in heads.values()]),
                    batch.valid & (target >= 0),
                )
            )
    # Only now is the device waited for.
    return _means_and_accuracies(gather_object([each.on_host(terms, heads) for each in found]))


class _Measured(NamedTuple):
    """What `measure` keeps of a batch, on the device.

    Args:
        losses: (terms,) sums over the posts.
        counts: (terms,) posts of each sum.
        ranks: (heads, b) of the target.
        known: (b,) posts with a target.
    """

    losses: Tensor
    counts: Tensor
    ranks: Tensor
    known: Tensor

    def on_host(self, terms: Iterable[str], heads: Iterable[str]) -> dict[str, Any]:
        """The same as numbers, by names of terms and of heads."""
        pairs = zip(self.losses.tolist(), self.counts.tolist(), strict=True)
        ranks = self.ranks.cpu()[:, self.known.cpu()].tolist()
        return {"losses": dict(zip(terms, pairs, strict=True)), "ranks": dict(zip(heads, ranks, strict=True))}


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


def _save(accelerator: Accelerator, schedule: LRScheduler, state: Path, progress: _Progress) -> None:
    """Replaces the checkpoint as a whole: weights, optimiser, schedule, random states of all processes, progress.

    The schedule is written as JSON: accelerate would pickle it, and reading a pickle can run code.
    """
    accelerator.wait_for_everyone()
    gathering = state / "gathering"
    accelerator.save_state(str(gathering))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(gathering / "schedule.json", schedule.state_dict())
        write_json(gathering / "history.json", progress.history)
        write_json(gathering / "begun.json", asdict(progress.begun))
        if progress.prototypes is not None:
            write_tensors(progress.prototypes, None, gathering / PROTOTYPES)
        if progress.best is not None:
            write_tensors(progress.best, None, gathering / BEST)
        with atomic_directory(state / CHECKPOINT) as partial:
            for file in gathering.iterdir():
                file.rename(partial / file.name)
        gathering.rmdir()
    accelerator.wait_for_everyone()


def _restore_prototypes(network: PrototypeNetwork, reader: PostReader, state: Path) -> None:
    """Gives network and reader the prototypes of the checkpoint's epoch, where encoders train."""
    file = state / CHECKPOINT / PROTOTYPES
    if reader.live is not None and file.is_file():
        with reading(file):
            network.prototype_tensors = load_file(file)
        reader.live.vectors = adapted_prototypes(reader.live.vectors, network.prototype_tensors)
        set_prototypes(network, reader.live.vectors)


def _restore(
    accelerator: Accelerator, schedule: LRScheduler, state: Path, on_epoch: OnEpoch
) -> tuple[list[Epoch], _Begun]:
    """The history so far and the epoch that has begun, with all other state as in the checkpoint; empty without one."""
    folder = state / CHECKPOINT
    # A listing, not a test of the name: nodes that share a disk may cache what they last found at a name.
    found = CHECKPOINT in {path.name for path in state.glob("*")}
    files = ("history.json", "begun.json")
    texts = [(folder / name).read_bytes() for name in files] if found else []
    agreed = [texts]
    if accelerator.num_processes > 1:
        broadcast_object_list(agreed)
    if texts != agreed[0]:
        raise ContractError(
            f"{folder}: process {accelerator.process_index} finds another checkpoint than the main process\n"
            "  expected: one disk that all nodes share\n"
            "  next: run the command again"
        )
    if not found:
        return [], _Begun()
    try:
        history: list[Epoch] = json.loads(texts[0])
        begun = _Begun(**json.loads(texts[1]))
        random_states = folder / f"{RNG_STATE_NAME}_{accelerator.process_index}.pkl"
        if random_states.exists():  # else the run before had fewer processes
            load(random_states)  # accelerate would silently skip damaged ones
        accelerator.load_state(str(folder))
        schedule.load_state_dict(json.loads((folder / "schedule.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        raise DataError(
            f"the checkpoint cannot be read: {str(error).splitlines()[0]}",
            file=folder,
            expected="the checkpoint of an earlier run of this stage, as it was written",
            fix=f"remove it, to train from the start: rm -r {folder}",
        ) from error
    logger.info("resuming after epoch %d, step %d of the next", len(history), begun.steps)
    if accelerator.is_main_process:
        for index, epoch in enumerate(history):
            on_epoch(index, epoch)
    return history, begun
