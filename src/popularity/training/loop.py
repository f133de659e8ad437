"""Trains the prototype network: one process or many, resumable after each epoch, the same result either way.

accelerator = make_accelerator(params.precision)
history = train_network(network, vectors, rows, held_out, params, accelerator, state=folder)
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
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from popularity.encoders.sharding import loader_workers, start_processes
from popularity.errors import ContractError, DataError
from popularity.files import atomic_directory, write_json
from popularity.network.model import CLASS_LEVEL, Batch, Facts, Outputs, PrototypeNetwork
from popularity.training.data import Int64Array, load_batches, steps_of_epoch, steps_over
from popularity.training.optimizer import clip, freeze_unused, make_optimizer, make_schedule
from popularity.training.params import TrainParams

logger = logging.getLogger(__name__)

HEADS = ("global_prompt", "local_prompt", "attention", "mean")
Epoch = dict[str, float]


@dataclass(frozen=True)
class Posts:
    """How the loop reads posts.

    Args:
        read: rows (b,), -1 for filler -> Batch.
        facts: rows (b,) -> Facts.
    """

    read: Callable[[Int64Array], Batch]
    facts: Callable[[Int64Array], Facts]


class DivergenceError(DataError):
    """A network that such parameters do not train."""


def make_accelerator(precision: str) -> Accelerator:
    """The place of this process, and the precision the device gives: `auto` is bf16 where it is supported, else
    fp16 on a GPU and fp32 on a CPU.

    Raises:
        ConfigError: more than one process was launched, but they do not know of each other.
    """
    device = start_processes().device
    if precision == "auto":
        if device.type == "cuda":
            precision = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        else:
            precision = "bf16" if _fast_bf16() else "fp32"
    return Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=device.type == "cpu")


def _fast_bf16() -> bool:
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


def say_nothing(_number: int, _epoch: Epoch) -> None:
    """For whom the history is enough."""


def train_network(
    network: PrototypeNetwork,
    posts: Posts,
    rows: Int64Array,
    held_out: Int64Array,
    params: TrainParams,
    accelerator: Accelerator,
    *,
    state: Path,
    on_epoch: Callable[[int, Epoch], None] = say_nothing,
) -> list[Epoch]:
    """Trains `network` in place; returns each epoch's `train/<term>`, `train/loss` and `validation/<...>` (`measure`).

    Args:
        network: on the CPU or on the device; towers on the device.
        posts: how to read them.
        rows: that it is trained on.
        held_out: rows that are measured after each epoch; may be empty.
        params: section train.
        accelerator: of this process.
        state: folder of the checkpoint; a run that finds one goes on from it.
        on_epoch: on the main process told (number from 0, values) of every epoch, those before an interruption too.

    Raises:
        DataError: no rows to train on.
        DivergenceError: the loss of an epoch is no finite number; the checkpoint is that of the epoch before.
    """
    if not len(rows):
        raise DataError("no post to train on has a known class", expected="at least one")
    freeze_unused(network)
    steps_in_epoch = -(-len(rows) // params.batch_size)
    total = max(params.epochs * steps_in_epoch, params.min_steps)
    optimizer = make_optimizer(network, params)
    schedule = make_schedule(optimizer, total, params)
    model, optimizer = accelerator.prepare(network, optimizer)
    history = _restore(accelerator, schedule, state, on_epoch)
    network.text_tower.to(accelerator.device)
    prompts = _fixed_prompts(network, accelerator)
    done = min(len(history) * steps_in_epoch, total)
    with tqdm(
        total=total, initial=done, desc="train", unit="step", disable=not accelerator.is_main_process
    ) as progress:
        for number in range(len(history), -(-total // steps_in_epoch)):
            steps = steps_of_epoch(
                rows,
                number,
                batch_size=params.batch_size,
                micro_batch=params.micro_batch,
                processes=accelerator.num_processes,
                process=accelerator.process_index,
                seed=params.seed,
            )[: total - done]
            batches = load_batches(
                posts.read, [part for step in steps for part in step.passes], accelerator.device, _workers(accelerator)
            )
            sums: list[dict[str, Tensor]] = []
            network.train()
            for step in steps:
                counts = {
                    name: int(mask.sum()) for name, mask in network.eligible(posts.facts(step.everywhere)).items()
                }
                sums.append(_step(model, network, batches, len(step.passes), counts, accelerator, prompts))
                accelerator.unscale_gradients(optimizer)
                clip(network, params.clip_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                done += 1
                progress.update()
            epoch = _training_means(sums, network, accelerator)
            if not math.isfinite(epoch["train/loss"]):
                raise DivergenceError(
                    f"epoch {number}: the loss is {epoch['train/loss']}",
                    expected="a finite number",
                    fix="lower the rates or clip_norm, or raise the temperatures, in section train of params.yaml",
                )
            if len(held_out):
                measured = measure(network, posts, held_out, params, accelerator)
                epoch |= {f"validation/{name}": value for name, value in measured.items()}
            history.append(epoch)
            progress.set_postfix(
                {name.partition("/")[2]: f"{value:.3f}" for name, value in epoch.items() if name in SHOWN}
            )
            if accelerator.is_main_process:
                on_epoch(number, epoch)
            _save(accelerator, schedule, state, history)
    return history


SHOWN = ("train/loss", "validation/top1/mean")


def _workers(accelerator: Accelerator) -> int:
    """Reading cached vectors is cheap on a CPU, which has better things to do than to copy them between processes."""
    return loader_workers() if accelerator.device.type == "cuda" else 0


def _fixed_prompts(network: PrototypeNetwork, accelerator: Accelerator) -> tuple[Tensor, Tensor] | None:
    """G and L where no term of the objective trains them: the text tower then runs once, not in every step."""
    weights = network.params.weights
    if weights.global_prompt or weights.local_prompt:
        return None
    with torch.no_grad(), accelerator.autocast():
        return network.class_prompts()


def _step(
    model: nn.Module,
    network: PrototypeNetwork,
    batches: Iterator[Batch],
    passes: int,
    counts: Mapping[str, int],
    accelerator: Accelerator,
    prompts: tuple[Tensor, Tensor] | None,
) -> dict[str, Tensor]:
    """Gradients of one step: every term is the mean over the posts of all processes and passes that it counts for.

    Returns this process's share of each term's mean.
    """
    shares: dict[str, Tensor] = {}
    for number in range(passes):
        batch = next(batches)
        with nullcontext() if number == passes - 1 else accelerator.no_sync(model):
            with accelerator.autocast():
                outputs = model(batch, prompts)
                terms = network.loss_terms(outputs, batch)
            means = {name: values.sum() / max(counts[name], 1) for name, values in terms.items()}
            loss = torch.stack([network.weight(name) * mean for name, mean in means.items()]).sum()
            # Processes average their gradients, where a sum is wanted.
            accelerator.backward(loss * accelerator.num_processes)
        for name, mean in means.items():
            shares[name] = shares.get(name, torch.zeros((), device=mean.device)) + mean.detach()
    return shares


def _training_means(sums: Sequence[dict[str, Tensor]], network: PrototypeNetwork, accelerator: Accelerator) -> Epoch:
    names = list(sums[0])
    table = torch.stack([torch.stack([step[name] for name in names]) for step in sums])  # (steps, terms)
    means = accelerator.reduce(table, "sum").mean(dim=0).tolist()
    epoch = {f"train/{name}": mean for name, mean in zip(names, means, strict=True)}
    epoch["train/loss"] = sum(network.weight(name) * mean for name, mean in zip(names, means, strict=True))
    return epoch


@torch.no_grad()
def measure(
    network: PrototypeNetwork, posts: Posts, rows: Int64Array, params: TrainParams, accelerator: Accelerator
) -> Epoch:
    """Means over `rows` of the loss terms, and top-1 and top-5 accuracy of each head and of their mean.

    The mean head averages the log-probabilities of the three.
    """
    network.eval()
    steps = steps_over(
        rows,
        batch_size=params.batch_size,
        micro_batch=params.micro_batch,
        processes=accelerator.num_processes,
        process=accelerator.process_index,
    )
    found: list[dict[str, Any]] = []
    with accelerator.autocast():
        prompts = network.class_prompts()
        for batch in load_batches(posts.read, [part for step in steps for part in step.passes], accelerator.device, 0):
            outputs = network(batch, prompts)
            terms = network.loss_terms(outputs, batch)
            counted = network.eligible(batch.facts)
            target = batch.target[:, network.level_names.index(CLASS_LEVEL)]
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
    everywhere = gather_object(found)
    epoch: Epoch = {}
    for name in everywhere[0]["losses"]:
        total, count = (sum(part["losses"][name][place] for part in everywhere) for place in (0, 1))
        epoch[name] = total / max(count, 1)
    for name in everywhere[0]["ranks"]:
        all_ranks = np.array([rank for part in everywhere for rank in part["ranks"][name]])
        for top in (1, 5):
            epoch[f"top{top}/{name}"] = float((all_ranks < top).mean()) if len(all_ranks) else 0.0
    return epoch


def head_log_probabilities(network: PrototypeNetwork, outputs: Outputs) -> dict[str, Tensor]:
    """Log-probabilities (b, K) of the classes by each head of HEADS."""
    logits = {
        "global_prompt": outputs.global_logits / network.temperature("global_prompt"),
        "local_prompt": outputs.local_logits / network.temperature("local_prompt"),
        "attention": outputs.levels[CLASS_LEVEL].logits,
    }
    heads = {name: values.float().log_softmax(dim=1) for name, values in logits.items()}
    return heads | {"mean": torch.stack(list(heads.values())).mean(dim=0)}


def rank_of_target(scores: Tensor, target: Tensor) -> Tensor:
    """(b,) how many classes score at least as high as the target, itself not counted; ties and NaN count against it."""
    own = scores.gather(1, target.clamp(min=0)[:, None])
    return (~(scores < own)).sum(dim=1) - 1


CHECKPOINT = "checkpoint"


def _save(accelerator: Accelerator, schedule: LRScheduler, state: Path, history: list[Epoch]) -> None:
    """Replaces the checkpoint as a whole: weights, optimiser, schedule, random states of all processes, history.

    The schedule is ours to keep: accelerate would pickle it, and run whatever it finds in its place.
    """
    accelerator.wait_for_everyone()
    gathering = state / "gathering"
    accelerator.save_state(str(gathering))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(gathering / "schedule.json", schedule.state_dict())
        write_json(gathering / "history.json", history)
        with atomic_directory(state / CHECKPOINT) as partial:
            for file in gathering.iterdir():
                file.rename(partial / file.name)
        gathering.rmdir()
    accelerator.wait_for_everyone()


def _restore(
    accelerator: Accelerator, schedule: LRScheduler, state: Path, on_epoch: Callable[[int, Epoch], None]
) -> list[Epoch]:
    """The history so far, with everything else as the checkpoint left it; empty without one."""
    folder = state / CHECKPOINT
    # By a listing: nodes that share a disk may each hold on to what was at a name when they last asked for it.
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
            load(random_states)  # accelerate goes on without them if it cannot read them
        accelerator.load_state(str(folder))
        schedule.load_state_dict(json.loads((folder / "schedule.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        raise DataError(
            f"the checkpoint cannot be read: {str(error).splitlines()[0]}",
            file=folder,
            expected="the checkpoint of an earlier run of this stage, as it was written",
            fix=f"remove it, to train from the start: rm -r {folder}",
        ) from error
    logger.info("going on after epoch %d", len(history))
    if accelerator.is_main_process:
        for number, epoch in enumerate(history):
            on_epoch(number, epoch)
    return history
