"""Section `train` of params.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from popularity.config import Section
from popularity.network.model import NetworkParams

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class TrainParams(Section):
    """How the network is trained (Sec 4.1, and our lengths and rates).

    Args:
        rows: `all` posts of both parts, whose classes are published, or those of `train` alone.
        seed: of initial weights, dropout, the order of posts and the validation part.
        validation_share: of the rows; they are measured after each epoch and never trained on.
        epochs: at least so many passes over the rows,
        min_steps: and at least so many steps.
        batch_size: posts of a step over all processes.
        micro_batch: posts of one backward pass in one process; smaller ones are accumulated to a step, with
            the same result but for InfoNCE, which compares the posts of one pass (over all processes).
        lr_prompt: of both prompts (and the instance prompt).
        lr_attention: of projections and attention.
        lr_temperature: of learnt temperatures.
        lr_tower: of unfrozen blocks.
        weight_decay: of matrices; prompts, temperatures, norms and biases have none.
        schedule: of the rates after the warm-up.
        warmup_share: of the steps, in which the rates rise from 0.
        clip_norm: of the gradient of each part (prompts G, prompts L, attention, towers).
        precision: auto is bf16 where the device has it, else fp16 on a GPU and fp32 on a CPU.
        unfreeze_blocks: last blocks of each tower that train; 0 reads the cached vectors.
        network: see NetworkParams.
    """

    rows: Literal["all", "train"]
    seed: int
    validation_share: Annotated[float, Field(ge=0, lt=1)]
    epochs: Positive
    min_steps: Annotated[int, Field(ge=0)]
    batch_size: Positive
    micro_batch: Positive
    lr_prompt: Rate
    lr_attention: Rate
    lr_temperature: Rate
    lr_tower: Rate
    weight_decay: Rate
    schedule: Literal["constant", "cosine"]
    warmup_share: Annotated[float, Field(ge=0, lt=1)]
    clip_norm: Annotated[float, Field(gt=0)]
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    unfreeze_blocks: Annotated[int, Field(ge=0)]
    network: NetworkParams
