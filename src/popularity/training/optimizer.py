"""AdamW over the network's parameter groups, each with its own rate and clipping (Sec 4.1)."""

from __future__ import annotations

import itertools

import torch
import transformers
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler

from popularity.network.model import PrototypeNetwork
from popularity.network.params import TrainParams

Named = list[tuple[str, nn.Parameter]]


def parameter_groups(network: PrototypeNetwork) -> dict[str, Named]:
    """The parameters that train, with their names, by group; a group is clipped together.

    With frozen encoders and without the wider reading's terms the groups share no loss. A temperature belongs to
    the group whose loss it scales.
    """
    found: dict[str, Named] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            found.setdefault(_group_of(name), []).append((name, parameter))
    return found


def make_optimizer(network: PrototypeNetwork, params: TrainParams, *, fused: bool = False) -> AdamW:
    """AdamW with one optimiser group for each pair of rate and weight decay (Sec 4.1).

    Args:
        network: whose parameters train.
        params: section train, with the rates.
        fused: one kernel a group, which keeps its number of steps on the device.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for group, named in parameter_groups(network).items():
        for name, parameter in named:
            groups.setdefault((_rate(group, name, params), _decay(group, parameter, params)), []).append(parameter)
    return AdamW(
        [{"params": own, "lr": rate, "weight_decay": decay} for (rate, decay), own in groups.items()],
        fused=fused or None,
    )


def make_schedule(optimizer: torch.optim.Optimizer, steps: int, params: TrainParams) -> LRScheduler:
    """The rates of every step: a linear warm-up, then constant or half a cosine down to 0.

    Args:
        optimizer: whose rates are scheduled.
        steps: of the whole run.
        params: section train.
    """
    name = "cosine" if params.schedule == "cosine" else "constant_with_warmup"
    schedule: LRScheduler = transformers.get_scheduler(
        name, optimizer, num_warmup_steps=round(params.warmup_fraction * steps), num_training_steps=steps
    )
    return schedule


class GradientClipping:
    """Clips the norm of each group's gradient to `norm`, separately.

    Args:
        network: whose groups are listed here once, after `freeze_unused`.
        norm: largest norm.
    """

    def __init__(self, network: PrototypeNetwork, norm: float) -> None:
        self.norm = norm
        self.groups = [[parameter for _, parameter in named] for named in parameter_groups(network).values()]

    @torch.no_grad()
    def __call__(self) -> None:
        groups = [[each.grad for each in parameters if each.grad is not None] for parameters in self.groups]
        groups = [gradients for gradients in groups if gradients]
        norms = torch._foreach_norm([gradient for gradients in groups for gradient in gradients])
        ends = list(itertools.accumulate(len(gradients) for gradients in groups))
        parts = [norms[end - len(gradients) : end] for end, gradients in zip(ends, groups, strict=True)]
        totals = torch.stack([torch.linalg.vector_norm(torch.stack(part)) for part in parts])
        factors = (self.norm / (totals + 1e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_
        for gradients, factor in zip(groups, factors.unbind(), strict=True):
            torch._foreach_mul_(gradients, factor)


def freeze_unused(network: PrototypeNetwork) -> None:
    """Freezes the parameters that no term of the objective reaches: processes would wait for their gradient in vain."""
    for name, parameter in network.named_parameters():
        if not _is_used(name, network):
            parameter.requires_grad_(False)


def _is_used(name: str, network: PrototypeNetwork) -> bool:
    """Whether a term with a weight reads the parameter `name`."""
    weights, kinds = network.params.weights, network.params.attention.prototypes
    attention, contrastive = weights.attention > 0, weights.contrastive > 0
    prototypes = attention or weights.consistency > 0
    visual, text = prototypes and "visual" in kinds, prototypes and "text" in kinds
    read_text = weights.global_prompt > 0 or weights.local_prompt > 0 or contrastive
    instance = network.instance_prompt is not None and read_text
    used = {
        "global_prompt": weights.global_prompt > 0,
        "local_prompt": weights.local_prompt > 0,
        "instance_prompt": instance,
        "tower": read_text,
        "image_tower": attention or contrastive or instance,
        "attention.image_projection": attention or contrastive or visual,
        "attention.text_projection": contrastive or text,
        "attention.kinds.image": attention,
        "attention.kinds.visual": visual,
        "attention.kinds.text": text,
        "attention.layers": attention,
        "attention.norm": attention,
        "log_temperatures.global_prompt": weights.global_prompt > 0,
        "log_temperatures.local_prompt": weights.local_prompt > 0,
        "log_temperatures.tokens": weights.local_prompt > 0,
        "log_temperatures.visual": attention and visual,
        "log_temperatures.text": attention and text,
        "log_temperatures.contrastive": contrastive,
    }
    return next(value for prefix, value in used.items() if name == prefix or name.startswith(f"{prefix}."))


_TEMPERATURES = {
    "global_prompt": "global_prompt",
    "local_prompt": "local_prompt",
    "tokens": "local_prompt",
    "visual": "attention",
    "text": "attention",
    "contrastive": "attention",
}


def _group_of(name: str) -> str:
    first, _, rest = name.partition(".")
    return _TEMPERATURES[rest] if first == "log_temperatures" else first


def _rate(group: str, name: str, params: TrainParams) -> float:
    if name.startswith("log_temperatures"):
        return params.lr_temperature
    if group.endswith("prompt"):
        return params.lr_prompt
    return params.lr_tower if group.endswith("tower") else params.lr_attention


def _decay(group: str, parameter: nn.Parameter, params: TrainParams) -> float:
    """Matrices of attention and encoders decay; prompts, temperatures, norms, biases and type embeddings do not."""
    return 0.0 if group.endswith("prompt") or parameter.ndim < 2 else params.weight_decay
