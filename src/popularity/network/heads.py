"""The network's heads as class probabilities, and the terms of the objective (Sec 3.4, Eq 8)."""

from __future__ import annotations

import torch
from torch import Tensor

from popularity.network.dataset import Batch, PostMetadata
from popularity.network.losses import class_loss, consistency_loss, contrastive_loss
from popularity.network.model import Outputs, PrototypeNetwork
from popularity.network.params import CLASS_LEVEL

HEADS = ("global_prompt", "local_prompt", "attention", "mean")


def head_log_probabilities(network: PrototypeNetwork, outputs: Outputs) -> dict[str, Tensor]:
    """Log-probabilities (b, K) of the classes by each head of HEADS: p (Eq 4), p' (Eq 5), q (Eq 7), and their mean."""
    logits = {
        "global_prompt": outputs.global_logits / network.temperature("global_prompt"),
        "local_prompt": outputs.local_logits / network.temperature("local_prompt"),
        "attention": outputs.levels[CLASS_LEVEL].logits,
    }
    heads = {name: values.float().log_softmax(dim=1) for name, values in logits.items()}
    return heads | {"mean": torch.stack(list(heads.values())).mean(dim=0)}


def rank_of_target(scores: Tensor, target: Tensor) -> Tensor:
    """(b,) number of other classes that score at least as high as the target; ties and NaN count against the target.

    Args:
        scores: (b, K).
        target: (b,) class of each row.
    """
    own = scores.gather(1, target.clamp(min=0)[:, None])
    return (~(scores < own)).sum(dim=1) - 1


def eligible_posts(network: PrototypeNetwork, metadata: PostMetadata) -> dict[str, Tensor]:
    """For each term of the objective a mask (b,) of the posts that it is averaged over; needs no forward pass.

    L_o needs a token, L_c an image, InfoNCE both, and every class loss a class that training knows.
    """
    weights = network.params.weights
    known = metadata.valid[:, None] & (metadata.target >= 0)  # (b, levels)
    own = known[:, network.class_level]
    posts: dict[str, Tensor] = {}
    if weights.global_prompt:
        posts["global_prompt"] = own
    if weights.local_prompt:
        posts["local_prompt"] = own & metadata.has_token
    if weights.attention:
        for index, name in enumerate(network.level_names):
            posts[_attention_term(name)] = known[:, index] & metadata.has_image
    if weights.contrastive:
        posts["contrastive"] = metadata.valid & metadata.has_image & metadata.has_token
    if weights.consistency:
        posts["consistency"] = metadata.valid
    return posts


def loss_terms(network: PrototypeNetwork, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
    """The terms of Eq 8 and of the wider reading, unweighted: one loss a post (b,), 0 where it is not eligible.

    L_c is 0 as well where the post's own concept is not among the nearest ones. `consistency` is one value,
    repeated for every post.

    Args:
        network: that computed `outputs`.
        outputs: of `batch`.
        batch: b posts.
    """
    target = batch.target[:, network.class_level]
    posts, values = eligible_posts(network, batch.metadata), dict[str, Tensor]()
    if "global_prompt" in posts:
        values["global_prompt"] = class_loss(outputs.global_logits / network.temperature("global_prompt"), target)
    if "local_prompt" in posts:
        values["local_prompt"] = class_loss(outputs.local_logits / network.temperature("local_prompt"), target)
    if network.params.weights.attention:
        for name, level in outputs.levels.items():
            values[_attention_term(name)] = class_loss(level.logits, level.tokens.target)
    if "contrastive" in posts:
        values["contrastive"] = contrastive_loss(
            outputs.projected_image,
            outputs.projected_text,
            posts["contrastive"],
            network.temperature("contrastive"),
            target if network.params.same_class_positives else None,
        )
    if "consistency" in posts:
        values["consistency"] = _consistency(network).expand(len(batch.valid))
    return {name: torch.where(posts[name], value, 0.0) for name, value in values.items()}


def term_weight(network: PrototypeNetwork, term: str) -> float:
    """The weight in Eq 8 of a term of `loss_terms`; the levels of L_c have the same one."""
    return float(getattr(network.params.weights, "attention" if term.startswith("attention") else term))


def _consistency(network: PrototypeNetwork) -> Tensor:
    """Mean over levels and modalities of the distance between projected children and their parents."""
    project, losses = network.attention.project, []
    for name, above in zip(network.level_names[1:], network.level_names, strict=False):
        parent = network.get_buffer(f"{name}_parent")
        for kind in network.params.attention.prototypes:
            child, top = (network.get_buffer(f"{level}_{kind}") for level in (name, above))
            losses.append(consistency_loss(project(child, kind), project(top, kind), parent))
    return torch.stack(losses).mean()


def _attention_term(level: str) -> str:
    return "attention" if level == CLASS_LEVEL else f"attention_{level}"
