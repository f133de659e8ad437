"""The columns of each post, from a batch and the network's outputs: Eq 11 and ours (docs/method.md)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from popularity.network.dataset import Batch
from popularity.network.heads import head_log_probabilities, rank_of_target
from popularity.network.losses import cosines
from popularity.network.model import Outputs, PrototypeNetwork
from popularity.network.params import CLASS_LEVEL

HEADS = {"global": "global_prompt", "local": "local_prompt", "attention": "attention"}  # column names -> the network's
# Of the array `scalars`, in order; NaN where a post has no such value.
SCALARS = (
    *(f"losses.{head}" for head in HEADS),  # cross-entropies of Eq 4, 5, 7
    *(f"logits.own_{head}" for head in HEADS),  # p_y, p'_y, q_y
    *(f"logits.margin_{head}" for head in HEADS),  # own class minus the best other class
    *(f"logits.entropy_{head}" for head in HEADS),  # of the head's probabilities, in nats
    "logits.rank",  # of the own class by the mean of the heads, from 0
    "distance.visual_own",  # 1 - cos to the own class's prototype without the post
    "distance.visual_other",  # 1 - cos to the nearest prototype of another class
    "distance.text_own",
    "distance.text_other",
    "distance.image_text",  # 1 - cos(x, h), where both encoders share a space
    "class_unseen",  # 1 where no training post is of the class
)
READ = {"image": "image", "text": "pooled"}  # vectors that the network reads -> fields of its outputs
OF_OWN_CLASS = ("logits.rank", "distance.visual_own", "distance.text_own")
MASKED = "masked_"  # prefix of arrays in which the post's class is masked: as if no training post were of it
NEAREST_HEADS = ("visual", "text", "attention")
MASSES = ("image", "visual", "text", "other_levels")


@torch.inference_mode()
def describe_posts(
    network: PrototypeNetwork,
    prompts: tuple[Tensor, Tensor],
    batch: Batch,
    nearest: int,
    autocast: AbstractContextManager[Any],
) -> dict[str, Tensor]:
    """Float32 arrays of the b posts of `batch`, by name.

    For a post of an unseen class each class vector is the mixture over all classes, weighted by the probabilities of
    the mean head (`head_log_probabilities`) over the heads that the post has: without an image the two text heads.
    The arrays that depend on the class are there twice: under the prefix MASKED without the own class, with the mixture
    over the other classes, the mean of their logits in place of the own logit, and no value of the own class.

    Source: Eq 11; the scalars are ours.

    Args:
        network: in evaluation mode, so that a post's own class prototypes leave it out.
        prompts: G (K, d_T) and L (K, d_T) of `class_prompts`.
        batch: b posts, on the network's device.
        nearest: number of classes in the explanation.
        autocast: precision of the forward pass.

    Returns:
        global_prompt, local_prompt (b, d_T): G_y, L_y. attended_image, attended_visual, attended_text (b, D): x~,
        V~_y, T~_y; the latter two if the network has such tokens. adapted_image (b, d_I), adapted_text (b, d_T): f_I(x)
        and f_T(r) where the network adapts them. logits (b, 3K): p, p', q; where a post has
        no image q is its row mean, as p' of an empty text is that of p. scalars (b, len(SCALARS)).
        nearest_class, nearest_value (b, 3, m): see NEAREST_HEADS. attention_class, attention_weight (b, kinds, m): the
        class tokens that x attends to most, by kind of token; attention_mass (b, 4): see MASSES. NaN where undefined.
    """
    layer_weights: list[Tensor] = []
    with autocast:
        outputs = network(batch, prompts, layer_weights)
    level = outputs.levels[CLASS_LEVEL]
    target = batch.target[:, network.class_level]
    log_probabilities, has = _heads(network, outputs, batch)
    mean = _mean_head(log_probabilities, has)
    own = functional.one_hot(target.clamp(min=0), mean.shape[1]).bool() & (target >= 0)[:, None]  # (b, K)
    mixture = torch.where((target >= 0)[:, None], own.float(), mean.exp())
    of_others = mean.masked_fill(own, -torch.inf).softmax(dim=1)
    row_mean = level.logits.mean(dim=1, keepdim=True).expand_as(level.logits)
    attention_logits = torch.where(batch.has_image[:, None], level.logits, row_mean)
    if network.image_tower is not None:  # trained encoders: prototypes, too, are means of what they give
        batch = batch._replace(image=outputs.image, pooled=outputs.pooled)
    similarity = _similarities(network, batch)
    values = {"global": outputs.global_logits, "local": outputs.local_logits, "attention": level.logits}
    scalars = {
        **_class_scalars(values, log_probabilities, has, target),
        "logits.rank": _where(target >= 0, rank_of_target(mean, target).float()),
        **_distances(similarity, target),
        "distance.image_text": _image_text_distance(batch),
        "class_unseen": (target < 0).float(),
    }
    others = {head: _others(log_p, own) for head, log_p in log_probabilities.items()}
    masked_scalars = scalars | {
        **_class_scalars(values, others, has, torch.full_like(target, -1)),
        **{name: torch.full_like(mean[:, 0], torch.nan) for name in OF_OWN_CLASS},
        "class_unseen": torch.ones_like(mean[:, 0]),
    }
    logits = [outputs.global_logits, outputs.local_logits, attention_logits]
    ranked = {**similarity, "attention": _where(batch.has_image, level.logits)}
    vectors = _class_vectors(outputs, torch.stack([mixture, of_others], dim=1))
    masked = {
        **{name: values[:, 1] for name, values in vectors.items()},
        "logits": torch.cat([_mean_for_own(values, own) for values in logits], dim=1),
        "scalars": torch.stack([masked_scalars[name] for name in SCALARS], dim=1),
    }
    found = {
        **{name: values[:, 0] for name, values in vectors.items()},
        "attended_image": outputs.attended.float(),
        **{f"adapted_{name}": getattr(outputs, field).float() for name, field in READ.items() if network.adapted[name]},
        "logits": torch.cat(logits, dim=1),
        "scalars": torch.stack([scalars[name] for name in SCALARS], dim=1),
        **{f"{MASKED}{name}": array for name, array in masked.items()},
    }
    top = [_top(ranked[head], nearest) for head in NEAREST_HEADS]
    found["nearest_class"], found["nearest_value"] = (torch.stack(columns, dim=1) for columns in zip(*top, strict=True))
    weights = torch.stack(layer_weights).mean(dim=0) if layer_weights else None
    return found | _attention(outputs, batch.has_image, weights, nearest)


@torch.inference_mode()
def class_probabilities(
    network: PrototypeNetwork, prompts: tuple[Tensor, Tensor], batch: Batch, autocast: AbstractContextManager[Any]
) -> Tensor:
    """(b, K) probabilities of the classes by the mean head, over the heads that a post has.

    Args:
        network: in evaluation mode.
        prompts: G (K, d_T) and L (K, d_T) of `class_prompts`.
        batch: b posts, on the network's device.
        autocast: precision of the forward pass.
    """
    with autocast:
        outputs = network(batch, prompts)
    return _mean_head(*_heads(network, outputs, batch)).exp()


def _class_vectors(outputs: Outputs, mixtures: Tensor) -> dict[str, Tensor]:
    """G, L, V~ and T~ (b, n, d) as means over the classes, weighted by n `mixtures` (b, n, K)."""
    level = outputs.levels[CLASS_LEVEL]
    return {
        "global_prompt": mixtures @ outputs.global_prompts.float(),
        "local_prompt": mixtures @ outputs.local_prompts.float(),
        **{
            f"attended_{kind}": mixtures @ tokens.float()
            for kind, tokens in (("visual", level.visual), ("text", level.text))
            if tokens is not None
        },
    }


def _others(log_probabilities: Tensor, own: Tensor) -> Tensor:
    """(b, K) log-probabilities of the classes but the own one, whose probability becomes (nearly) 0."""
    least = torch.finfo(log_probabilities.dtype).min
    return log_probabilities.masked_fill(own, least / 2).log_softmax(dim=1)


def _mean_for_own(logits: Tensor, own: Tensor) -> Tensor:
    """Logits (b, K) with the mean of the other classes' in place of the own one."""
    others = logits.masked_fill(own, 0.0).sum(dim=1, keepdim=True) / (~own).sum(dim=1, keepdim=True)
    return torch.where(own, others.to(logits.dtype), logits)


def _heads(network: PrototypeNetwork, outputs: Outputs, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of each of HEADS: log-probabilities (b, K), and which posts (b,) have it."""
    has = {"global": torch.ones_like(batch.has_image), "local": batch.metadata.has_token, "attention": batch.has_image}
    by_term = head_log_probabilities(network, outputs)
    return {head: by_term[name] for head, name in HEADS.items()}, has


def _mean_head(log_probabilities: dict[str, Tensor], has: dict[str, Tensor]) -> Tensor:
    """(b, K) log-probabilities: the normalised geometric mean of the heads that a post has."""
    stacked = torch.stack(list(log_probabilities.values()))  # (heads, b, K)
    counts = torch.stack(list(has.values())).unsqueeze(2)  # (heads, b, 1)
    mean: Tensor = ((stacked * counts).sum(dim=0) / counts.sum(dim=0)).log_softmax(dim=1)
    return mean


def _class_scalars(
    logits: dict[str, Tensor], log_probabilities: dict[str, Tensor], has: dict[str, Tensor], target: Tensor
) -> dict[str, Tensor]:
    """Losses, own-class logits, margins and entropies of each head, each (b,)."""
    column = target.clamp(min=0)[:, None]
    names: dict[str, dict[str, Tensor]] = {
        "losses.": {},
        "logits.own_": {},
        "logits.margin_": {},
        "logits.entropy_": {},
    }
    for head, values in logits.items():
        log_p, known = log_probabilities[head], has[head] & (target >= 0)
        own, best_other = values.gather(1, column)[:, 0], values.scatter(1, column, -torch.inf).amax(dim=1)
        names["losses."][head] = _where(known, -log_p.gather(1, column)[:, 0])
        names["logits.own_"][head] = _where(known, own)
        names["logits.margin_"][head] = _where(known, own - best_other)
        names["logits.entropy_"][head] = _where(has[head], -(log_p.exp() * log_p).sum(dim=1))
    return {prefix + head: values for prefix, heads in names.items() for head, values in heads.items()}


def _similarities(network: PrototypeNetwork, batch: Batch) -> dict[str, Tensor]:
    """Cosines (b, K) of the post's vectors to the class prototypes, the own one without the post.

    By modality; a row of NaN where the post has no image or no text. The post's vectors are of the kind that the
    prototypes are means of: of trained encoders, or cached; never with an instance prompt on frozen encoders.
    """
    target = batch.target[:, network.class_level]
    found = {}
    for kind, vectors, own, has in (
        ("visual", batch.image, batch.own_visual, batch.has_image),
        ("text", batch.pooled, batch.own_text, batch.metadata.has_token),
    ):
        similarity = cosines(vectors, network.get_buffer(f"{CLASS_LEVEL}_{kind}"))
        itself = functional.cosine_similarity(vectors, own[:, network.class_level])
        column = target.clamp(min=0)[:, None]
        itself = torch.where(target >= 0, itself, similarity.gather(1, column)[:, 0])
        found[kind] = _where(has, similarity.scatter(1, column, itself[:, None]))
    return found


def _distances(similarity: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
    """1 - cosine to the own prototype and to the nearest other one, (b,)."""
    column, known = target.clamp(min=0)[:, None], target >= 0
    found = {}
    for kind, values in similarity.items():
        others = torch.where(known[:, None], values.scatter(1, column, -torch.inf), values)
        found[f"distance.{kind}_own"] = _where(known, 1 - values.gather(1, column)[:, 0])
        found[f"distance.{kind}_other"] = 1 - others.amax(dim=1)  # of a row of NaN: NaN
    return found


def _image_text_distance(batch: Batch) -> Tensor:
    """1 - cos(x, h) (b,); NaN where a post lacks image or text, and everywhere where the widths differ."""
    if batch.image.shape != batch.pooled.shape:
        return batch.image.new_full((len(batch.image),), torch.nan)
    both = batch.has_image & batch.metadata.has_token
    return _where(both, 1 - functional.cosine_similarity(batch.image, batch.pooled))


def _attention(outputs: Outputs, has_image: Tensor, weights: Tensor | None, nearest: int) -> dict[str, Tensor]:
    """The classes that x attends to most, and the attention on each kind of token.

    NaN for posts without an image, and for all posts if `weights` (b, n) is None (a network without layers).
    """
    if weights is None:
        spans = [span for level in outputs.levels.values() for span in level.tokens[:2] if span is not None]
        weights = outputs.attended.new_full((len(has_image), max(span.stop for span in spans)), torch.nan)
    weights = _where(has_image, weights)
    visual, text, *_ = outputs.levels[CLASS_LEVEL].tokens
    kinds = {"visual": visual, "text": text}
    none = torch.zeros_like(weights[:, 0])
    mass = {"image": weights[:, 0]} | {
        kind: none if span is None else weights[:, span].sum(dim=1) for kind, span in kinds.items()
    }
    total = torch.stack(list(mass.values())).sum(dim=0)
    top = [_top(weights[:, span], nearest) for span in kinds.values() if span is not None]
    classes, values = (torch.stack(columns, dim=1) for columns in zip(*top, strict=True))
    masses = torch.stack([*mass.values(), weights.sum(dim=1) - total], dim=1)
    return {"attention_class": classes, "attention_weight": values, "attention_mass": masses}


def _top(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Columns and values (b, m) of the largest of `values` (b, K), the first of equals first."""
    ordered, columns = values.sort(dim=1, descending=True, stable=True)
    return columns[:, :count], ordered[:, :count]


def _where(condition: Tensor, values: Tensor) -> Tensor:
    """`values` (b,) or (b, n), NaN where `condition` (b,) is false."""
    return torch.where(condition if values.ndim == 1 else condition[:, None], values, torch.nan)
