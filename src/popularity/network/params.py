"""Section `train` of params.yaml: the network's shape (Sec 3) and how it is trained (Sec 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import Field

from popularity.core.config import Section

CLASS_LEVEL = "subcategory"  # the K classes of the prompts and of Eq 11
MIN_TEMPERATURE = 0.005

LevelName = Literal["category", "subcategory", "concept"]
Modality = Literal["visual", "text"]
# Names of the same; those of the contracts need polars, which training does without.
MODALITIES: tuple[str, ...] = get_args(Modality)
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
Temperature = Annotated[float, Field(ge=MIN_TEMPERATURE)]


@dataclass(frozen=True)
class PromptParams(Section):
    """Numbers of context vectors (Eq 1-2) and how a mean-pooled encoder pools a prompt.

    Args:
        global_length: k.
        local_length: s.
        instance_length: m of the instance prompt; 0 leaves it out (wider reading).
        pool: all positions, or those of the class name alone.
    """

    global_length: Positive
    local_length: Positive
    instance_length: Count
    pool: Literal["all", "name"]


@dataclass(frozen=True)
class AttentionParams(Section):
    """Shape of the cross-modal Transformer encoder (Eq 6).

    Args:
        dim: D.
        depth: number of pre-norm layers; 0 leaves the projections alone (an ablation).
        num_heads: attention heads of a layer; divides dim.
        mlp_ratio: hidden units of the feed-forward network, divided by D.
        dropout: rate after attention and after and inside the feed-forward network; attention weights have none.
        prototypes: the modalities whose prototypes are tokens of the sequence.
    """

    dim: Positive
    depth: Count
    num_heads: Positive
    mlp_ratio: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]
    prototypes: Annotated[tuple[Modality, ...], Field(min_length=1)]

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads must divide dim, found {self.num_heads} and {self.dim}")


@dataclass(frozen=True)
class LevelParams(Section):
    """Which prototypes are tokens of the sequence (wider reading: those of all three levels).

    Args:
        levels: from the top down, with subcategory.
        tokens: `all` of them, or, of the concepts, only the `top_k` nearest to the post. (Coarser levels stay whole:
            the post's ancestors alone would reveal its class.)
        top_k: number of concepts in the sequence under `top_k`.
        folds: in training a post sees prototypes that no post of its fold represents. Were it left out of its own
            class alone, as in features, it would learn to find the class that lacks it. 1: whole prototypes.
    """

    levels: tuple[LevelName, ...]
    tokens: Literal["all", "top_k"]
    top_k: Positive
    folds: Positive

    def __post_init__(self) -> None:
        ordered = tuple(name for name in get_args(LevelName) if name in self.levels)
        if self.levels != ordered or CLASS_LEVEL not in self.levels:
            raise ValueError(
                f"levels must hold {CLASS_LEVEL} and run from the top down: {', '.join(get_args(LevelName))}; "
                f"found {', '.join(self.levels)}"
            )


@dataclass(frozen=True)
class TemperatureParams(Section):
    """tau of each softmax; `learn` makes them parameters of the network, bounded below by MIN_TEMPERATURE."""

    global_prompt: Temperature  # tau_g
    local_prompt: Temperature  # tau_o
    tokens: Temperature  # tau_s
    visual: Temperature  # tau_v
    text: Temperature  # tau_t
    contrastive: Temperature
    learn: bool


@dataclass(frozen=True)
class WeightParams(Section):
    """Weight of each term of Eq 8; 0 leaves it out and freezes the parameters that only it trains."""

    global_prompt: Weight  # L_g
    local_prompt: Weight  # L_o
    attention: Weight  # L_c
    contrastive: Weight  # InfoNCE between image and text
    consistency: Weight  # of child and parent prototypes


@dataclass(frozen=True)
class NetworkParams(Section):
    """Shape and objective of the prototype network (Sec 3).

    Args:
        prompts: see PromptParams.
        attention: see AttentionParams.
        prototypes: see LevelParams.
        temperatures: see TemperatureParams.
        weights: see WeightParams.
        same_class_positives: the supervised form of InfoNCE.
    """

    prompts: PromptParams
    attention: AttentionParams
    prototypes: LevelParams
    temperatures: TemperatureParams
    weights: WeightParams
    same_class_positives: bool

    def __post_init__(self) -> None:
        if self.weights.consistency and len(self.prototypes.levels) == 1:
            raise ValueError("weights.consistency is between prototypes.levels: at least two, or the weight 0")


@dataclass(frozen=True)
class TrainParams(Section):
    """How the network is trained (Sec 4.1, and our lengths and rates).

    Args:
        transductive: train on the posts of both splits, whose classes are published, and not on `train` alone.
        seed: of initial weights, dropout, the order of posts and the validation rows.
        valid_fraction: fraction of the rows that is scored after each epoch and never trained on.
        epochs: smallest number of passes over the rows.
        min_steps: smallest number of steps; the longer of the two counts.
        max_steps: largest number of steps, whatever the two before say; 0: no limit.
        patience: epochs without a higher class accuracy on the held-out rows after which training stops, with the
            weights of the best epoch; 0: never. The rates are those of the whole length.
        batch_size: posts of a step over all processes.
        micro_batch: posts of one backward pass in one process; passes are accumulated to a step, with the
            same result except for InfoNCE, which compares the posts of one pass (over all processes).
        lr_prompt: of both prompts (and the instance prompt).
        lr_attention: of projections and attention.
        lr_temperature: of learnt temperatures.
        lr_tower: of unfrozen layers of the encoders.
        weight_decay: of matrices; prompts, temperatures, norms and biases have none.
        schedule: of the rates after the warm-up.
        warmup_fraction: fraction of the steps in which the rates rise from 0.
        clip_norm: largest norm of the gradient of each parameter group (prompts G, prompts L, attention, encoders).
        precision: auto is bf16 where the device has it, else fp16 on a GPU and fp32 on a CPU.
        unfreeze_layers: last layers of each encoder that train; 0 reads the cached vectors.
        compile: torch.compile turns the network into kernels at its first steps, which takes minutes.
        checkpoint_minutes: time between checkpoints within an epoch, whose end has one too; 0 for that alone.
        network: see NetworkParams.
    """

    transductive: bool
    seed: int
    valid_fraction: Annotated[float, Field(ge=0, lt=1)]
    epochs: Positive
    min_steps: Count
    max_steps: Count
    patience: Count
    batch_size: Positive
    micro_batch: Positive
    lr_prompt: Rate
    lr_attention: Rate
    lr_temperature: Rate
    lr_tower: Rate
    weight_decay: Rate
    schedule: Literal["constant", "cosine"]
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)]
    clip_norm: Annotated[float, Field(gt=0)]
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    unfreeze_layers: Count
    compile: bool
    checkpoint_minutes: Annotated[float, Field(ge=0)]
    network: NetworkParams
