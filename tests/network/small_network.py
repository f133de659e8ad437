"""A network of a few classes over a tiny text tower, and posts for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from popularity.core.config import parse_section
from popularity.encoders.prompting import PromptTower
from popularity.network.dataset import Batch
from popularity.network.heads import eligible_posts, loss_terms, term_weight
from popularity.network.model import PrototypeNetwork, TaxonomyLevel
from popularity.network.params import NetworkParams

IMAGE_WIDTH, TEXT_WIDTH = 6, 32
NAMES = ("cat", "dog", "sunset", "sea", "the sea")
SIZES = {"category": 2, "subcategory": len(NAMES), "concept": 9}
ALL_LEVELS = tuple(SIZES)
VALUES: dict[str, Any] = {
    "prompts": {"global_length": 3, "local_length": 2, "instance_length": 0, "pool": "all"},
    "attention": {
        "dim": 16,
        "depth": 2,
        "num_heads": 4,
        "mlp_ratio": 2,
        "dropout": 0.0,
        "prototypes": ["visual", "text"],
    },
    "prototypes": {"levels": ["subcategory"], "tokens": "all", "top_k": 3, "folds": 4},
    "temperatures": {
        "global_prompt": 0.07,
        "local_prompt": 0.07,
        "tokens": 0.1,
        "visual": 0.07,
        "text": 0.05,
        "contrastive": 0.1,
        "learn": False,
    },
    "weights": {"global_prompt": 1.0, "local_prompt": 1.0, "attention": 1.0, "contrastive": 0.0, "consistency": 0.0},
    "same_class_positives": False,
}
THREE_LEVELS = {"prototypes.levels": list(ALL_LEVELS)}
TOP_K = {**THREE_LEVELS, "prototypes.tokens": "top_k"}
INSTANCE = {"prompts.instance_length": 2}


def changed(values: Mapping[str, Any], changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Nested `values` with some replaced, named by their dotted path."""
    result = {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}
    for path, value in (changes or {}).items():
        section, _, name = path.rpartition(".")
        (result[section] if section else result)[name] = value
    return result


def network_params(changes: Mapping[str, Any] | None = None) -> NetworkParams:
    return parse_section("network", changed(VALUES, changes), NetworkParams)


def unit_rows(*shape: int, seed: int = 0) -> Tensor:
    return functional.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def small_levels(seed: int = 0) -> dict[str, TaxonomyLevel]:
    """Random prototypes; class i hangs below class i modulo the number of those above."""
    levels: dict[str, TaxonomyLevel] = {}
    above = 0
    for index, (name, size) in enumerate(SIZES.items()):
        parent = torch.arange(size) % above if above else torch.full((size,), -1)
        visual, text = (
            unit_rows(size, width, seed=10 * seed + 2 * index + modality)
            for modality, width in enumerate((IMAGE_WIDTH, TEXT_WIDTH))
        )
        levels[name], above = TaxonomyLevel(visual, text, parent), size
    return levels


def with_folds(levels: Mapping[str, TaxonomyLevel]) -> dict[str, TaxonomyLevel]:
    """With other prototypes for each fold."""
    folds = VALUES["prototypes"]["folds"]
    return {
        name: level._replace(
            fold_visual=unit_rows(folds, *level.visual.shape, seed=90 + index),
            fold_text=unit_rows(folds, *level.text.shape, seed=95 + index),
        )
        for index, (name, level) in enumerate(levels.items())
    }


def taken(level: TaxonomyLevel, classes: Tensor | slice) -> TaxonomyLevel:
    return TaxonomyLevel(level.visual[classes], level.text[classes], level.parent[classes])


def make_network(
    tower: PromptTower,
    changes: Mapping[str, Any] | None = None,
    levels: Mapping[str, TaxonomyLevel] | None = None,
    names: Sequence[str] = NAMES,
    seed: int = 0,
) -> PrototypeNetwork:
    torch.manual_seed(seed)
    return PrototypeNetwork(network_params(changes), levels or small_levels(), tower, tower.tokenize(names, 12))


def small_batch(
    network: PrototypeNetwork, posts: int = 7, seed: int = 0, lengths: Sequence[int] | None = None
) -> Batch:
    """Random posts of random classes; without a post, the prototypes of its classes are others (`own_*`)."""
    generator = torch.Generator().manual_seed(seed)
    levels = network.level_names
    target = torch.stack([torch.randint(SIZES[name], (posts,), generator=generator) for name in levels], dim=1)
    counts = torch.tensor(lengths) if lengths is not None else torch.randint(1, 5, (posts,), generator=generator)
    longest = max(1, int(counts.max()))
    return Batch(
        image=unit_rows(posts, IMAGE_WIDTH, seed=seed + 1),
        has_image=torch.ones(posts, dtype=torch.bool),
        pooled=unit_rows(posts, TEXT_WIDTH, seed=seed + 2),
        tokens=torch.randn((posts, longest, TEXT_WIDTH), generator=generator),
        token_mask=torch.arange(longest) < counts[:, None],
        target=target,
        fold=torch.arange(posts) % VALUES["prototypes"]["folds"],
        own_visual=unit_rows(posts, len(levels), IMAGE_WIDTH, seed=seed + 3),
        own_text=unit_rows(posts, len(levels), TEXT_WIDTH, seed=seed + 4),
        valid=torch.ones(posts, dtype=torch.bool),
    )


def without_picture(batch: Batch, row: int) -> Batch:
    image, has_image = batch.image.clone(), batch.has_image.clone()
    image[row], has_image[row] = 0, False
    return batch._replace(image=image, has_image=has_image)


def total_loss(network: PrototypeNetwork, batch: Batch) -> Tensor:
    """The objective over the posts that each term counts for."""
    terms = loss_terms(network, network(batch), batch)
    counts = {name: mask.sum().clamp(min=1) for name, mask in eligible_posts(network, batch.metadata).items()}
    return torch.stack(
        [term_weight(network, name) * values.sum() / counts[name] for name, values in terms.items()]
    ).sum()


def gradients(network: PrototypeNetwork, loss: Tensor) -> dict[str, Tensor | None]:
    """The gradient of every parameter that is trained, by name; None where the loss does not reach it."""
    named = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))
