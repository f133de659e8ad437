"""The attention whose prototypes all posts share: a post by itself, equal to Eq 6 where that is, and its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from popularity.network.losses import attention_logits
from popularity.network.params import AttentionParams, Modality
from popularity.network.shared import SharedAttention

BOTH: tuple[Modality, ...] = ("visual", "text")
PARAMS = AttentionParams(dim=16, depth=2, num_heads=4, mlp_ratio=2, dropout=0.0, prototypes=BOTH)
TEMPERATURES = {"visual": 0.07, "text": 0.05}
CLASSES = 5


def unit(rows: int, width: int, seed: int) -> Tensor:
    return functional.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def shared(params: AttentionParams = PARAMS) -> SharedAttention:
    torch.manual_seed(3)
    prototypes = {"visual": unit(CLASSES, 6, 0), "text": unit(CLASSES, 8, 1)}
    return SharedAttention(params, prototypes, TEMPERATURES, {"A/cat": 0, "A/dog": 3}).eval()


@pytest.mark.parametrize("kinds", [BOTH, ("visual",), ("text",)])
def test_a_post_is_as_if_it_were_alone(kinds: tuple[Modality, ...]) -> None:
    """Its batch changes nothing, and by itself it is Eq 6 with prototypes that were attended without it."""
    module = shared(replace(PARAMS, prototypes=kinds))
    images = unit(7, 6, 2)
    together = module(images)
    attention = module.attention
    for row in range(len(images)):
        alone = module(images[row : row + 1])
        for one, all_ in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], all_[row])
        prototypes = torch.cat([attention.project(module.get_buffer(kind), kind) for kind in kinds])[None]
        post = attention.project(images[row : row + 1], "image")[None]
        for layer in attention.layers:
            before = torch.cat([post, prototypes], dim=1)
            post, prototypes = layer(before)[:, :1], layer(prototypes)
        found = attention.norm(post)[:, 0]
        by_kind = dict(zip(kinds, attention.norm(prototypes).split(CLASSES, dim=1), strict=True))
        q = attention_logits(found, by_kind.get("visual"), by_kind.get("text"), *TEMPERATURES.values())
        torch.testing.assert_close(alone[0], found)
        torch.testing.assert_close(alone[1], q, rtol=1e-4, atol=1e-4)


def test_without_layers_it_is_equation_6_itself() -> None:
    module = shared(replace(PARAMS, depth=0))
    images = unit(4, 6, 2)
    prototypes = [module.attention.project(module.get_buffer(kind), kind)[None].expand(4, -1, -1) for kind in BOTH]
    sequence = torch.cat([module.attention.project(images, "image")[:, None], *prototypes], dim=1)
    torch.testing.assert_close(module(images)[0], module.attention(sequence)[:, 0])


def test_a_saved_one_is_the_same_and_so_are_its_bytes(tmp_path: Path) -> None:
    module = shared()
    module.save(tmp_path / "one")
    loaded = SharedAttention.load(tmp_path / "one").eval()
    for ours, theirs in zip(module(unit(4, 6, 2)), loaded(unit(4, 6, 2)), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=0)
    assert loaded.about() == module.about()
    loaded.save(tmp_path / "other")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
