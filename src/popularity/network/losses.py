"""Class logits and losses: Eq 4 (global prompts), Eq 5 (local prompts), Eq 7 (attention); ours: InfoNCE, consistency.

Cosines and losses are computed in at least float32, whatever the precision around them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional


def cosines(left: Tensor, right: Tensor) -> Tensor:
    """Cosine similarities (..., n, m) of the rows of `left` (..., n, d) and `right` (..., m, d)."""
    with torch.autocast(left.device.type, enabled=False):
        return _unit(left) @ _unit(right).transpose(-1, -2)


def global_logits(pooled: Tensor, prompts: Tensor) -> Tensor:
    """Logits p of Eq 4: p_i = cos(h, G_i).

    Args:
        pooled: h, (b, d), one vector per text.
        prompts: G, (K, d).

    Returns:
        (b, K), not yet divided by the temperature tau_g.
    """
    return cosines(pooled, prompts)


def local_logits(tokens: Tensor, token_mask: Tensor, prompts: Tensor, temperature: Tensor | float) -> Tensor:
    """Logits p' of Eq 5: P_ij = cos(H_j, L_i), a_ij = softmax_j(P_ij / tau_s), p'_i = sum_j a_ij P_ij.

    Args:
        tokens: H, (b, l, d).
        token_mask: (b, l), true on tokens; padding has weight 0.
        prompts: L, (K, d).
        temperature: tau_s; large makes p' the mean of P over the tokens, small its maximum.

    Returns:
        (b, K); rows of texts without a token are 0.
    """
    similarity = cosines(tokens, prompts)  # (b, l, K)
    outside = ~token_mask.unsqueeze(-1)
    # A finite floor, not -inf: the softmax of an empty row, and its gradient, stay finite.
    floor = torch.finfo(similarity.dtype).min
    weights = (similarity / temperature).masked_fill(outside, floor).softmax(dim=1).masked_fill(outside, 0.0)
    return (weights * similarity).sum(dim=1)


def attention_logits(
    image: Tensor, visual: Tensor | None, text: Tensor | None, tau_visual: Tensor | float, tau_text: Tensor | float
) -> Tensor:
    """Logits q of Eq 7: logits_i = (cos(x~, V~_i) / tau_v + cos(x~, T~_i) / tau_t) / 2.

    Args:
        image: x~, (b, D).
        visual: V~, (b, K, D); None (an ablation) leaves its half out.
        text: T~, (b, K, D); likewise.
        tau_visual: tau_v.
        tau_text: tau_t.

    Returns:
        (b, K), temperatures applied.
    """
    with torch.autocast(image.device.type, enabled=False):
        direction = _unit(image).unsqueeze(2)
        halves = [
            (_unit(attended) @ direction).squeeze(2) / temperature
            for attended, temperature in ((visual, tau_visual), (text, tau_text))
            if attended is not None
        ]
    return torch.stack(halves).mean(dim=0)


def class_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy (b,) of each row; 0 where `target` (b,) is -1: the class is not among the K.

    Args:
        logits: (b, K), temperatures applied.
    """
    return functional.cross_entropy(logits, target, ignore_index=-1, reduction="none")


def contrastive_loss(
    image: Tensor, text: Tensor, valid: Tensor, temperature: Tensor | float, group: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE (b,) between image and text of the same post, over the gathered batch of all processes.

    Each process returns the losses of its own rows; gradients reach the rows of the others.

    Args:
        image: (b, D) projected images.
        text: (b, D) projected texts.
        valid: (b,), false where a post lacks one of the two: it is no post's positive or negative.
        temperature: of the cosines.
        group: (b,) classes; given, every valid post of the same class is a positive (supervised form), except
            class -1, which stands for itself alone.

    Returns:
        (b,), 0 for rows that are not valid.
    """
    rows = torch.arange(len(image), device=image.device) + _first_row(image)
    all_valid, all_rows = _gather(valid), _gather(rows)
    losses = []
    for query, other in ((image, text), (text, image)):
        scores = cosines(query, _gather_with_gradient(other)) / temperature  # (b, all)
        scores = scores.masked_fill(~all_valid, torch.finfo(scores.dtype).min)
        positive = rows[:, None] == all_rows
        if group is not None:
            same = (group[:, None] == _gather(group)) & (group[:, None] >= 0)
            positive = positive | (same & all_valid)
        log_probability = scores.log_softmax(dim=1)
        losses.append(-(log_probability * positive).sum(dim=1) / positive.sum(dim=1))
    return torch.where(valid, (losses[0] + losses[1]) / 2, 0.0)


def consistency_loss(children: Tensor, parents: Tensor, parent: Tensor) -> Tensor:
    """Mean distance 1 - cos between each child's token and its parent's: keeps a child near its parent.

    Args:
        children: (k, D).
        parents: (m, D).
        parent: (k,) row of `parents` of each child, -1 for a child without one, which does not count.
    """
    has_parent = parent >= 0
    with torch.autocast(children.device.type, enabled=False):
        distance = 1.0 - (_unit(children) * _unit(parents)[parent.clamp(min=0)]).sum(dim=-1)
    return (distance * has_parent).sum() / has_parent.sum().clamp(min=1)


def _unit(vectors: Tensor) -> Tensor:
    """L2-normalised in float32 (float64 stays float64)."""
    wide = vectors if vectors.dtype == torch.float64 else vectors.float()
    return functional.normalize(wide, dim=-1)


class _GatherWithGradient(torch.autograd.Function):
    """`_gather` with a gradient: that of each row is summed over the losses of all processes."""

    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:
        return _gather(values)

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)  # autograd may read its own again
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def _gather_with_gradient(values: Tensor) -> Tensor:
    gathered: Tensor = _GatherWithGradient.apply(values) if _in_a_group() else values
    return gathered


def _gather(values: Tensor) -> Tensor:
    if not _in_a_group():
        return values
    values = values.contiguous()
    chunks = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(chunks, values)
    return torch.cat(chunks)


def _first_row(values: Tensor) -> int:
    """Index of this process's first row in the gathered batch; processes hold equally many rows."""
    return dist.get_rank() * len(values) if _in_a_group() else 0


def _in_a_group() -> bool:
    return dist.is_available() and dist.is_initialized()
