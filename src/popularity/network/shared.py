"""Eq 6 and 7 for many posts at once: an attention whose prototypes all posts share, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from popularity.config import parse_section
from popularity.files import atomic_path
from popularity.network.attention import CrossModalAttention
from popularity.network.losses import attention_logits
from popularity.network.params import AttentionParams

ATTENTION_FILE = "attention.safetensors"  # of the block `prototype`


class SharedAttention(nn.Module):
    """Eq 6 in which a post looks at itself and at every prototype, but no prototype at a post.

    Of 1 + 2K tokens a post one is left, and a step costs a twentieth. What is lost is how the prototypes see this post;
    what is alike are the parameters, so that a trained `CrossModalAttention` is a start.

    Args:
        params: shape.
        prototypes: visual (K, d_I) and text (K, d_T), L2-normalised.
        temperatures: tau_v and tau_t, by the same names.
        classes: row of each class by the key that posts were published with; those that training lacks are absent.
    """

    def __init__(
        self,
        params: AttentionParams,
        prototypes: Mapping[str, Tensor],
        temperatures: Mapping[str, float],
        classes: Mapping[str, int],
    ) -> None:
        super().__init__()
        self.params, self.temperatures, self.classes = params, dict(temperatures), dict(classes)
        self.attention = CrossModalAttention(params, prototypes["visual"], prototypes["text"])
        for kind, values in prototypes.items():
            self.register_buffer(kind, values)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """x~ (b, D) and q (b, K) of Eq 7 for L2-normalised images (b, d_I)."""
        kinds, posts = self.params.prototypes, len(image)
        tokens = [self.attention.project(image, "image")]
        tokens += [self.attention.project(self.get_buffer(kind), kind) for kind in kinds]
        sequence = torch.cat(tokens)
        hidden = torch.zeros(len(sequence), len(sequence), dtype=torch.bool)
        hidden[:, :posts] = True
        hidden[:posts, :posts].fill_diagonal_(fill_value=False)
        out = self.attention(sequence[None], hidden=hidden)[0]
        attended, *prototypes = out.split([len(part) for part in tokens])
        by_kind = {kind: values[None] for kind, values in zip(kinds, prototypes, strict=True)}
        temperatures = self.temperatures["visual"], self.temperatures["text"]
        return attended, attention_logits(attended, by_kind.get("visual"), by_kind.get("text"), *temperatures)

    def about(self) -> dict[str, Any]:
        """All that is no tensor."""
        return {"params": asdict(self.params), "temperatures": self.temperatures, "classes": self.classes}

    @classmethod
    def from_tensors(cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor], source: Path) -> SharedAttention:
        """From `about()` and the state; `source` is named where they are not valid."""
        params = parse_section("params", about["params"], AttentionParams, str(source))
        prototypes = {kind: tensors[kind] for kind in ("visual", "text")}
        attention = cls(params, prototypes, about["temperatures"], about["classes"])
        attention.load_state_dict(dict(tensors))
        return attention

    def save(self, path: Path) -> None:
        """Writes one file, from which `load` reads."""
        write_tensors(self.state_dict(), self.about(), path)

    @classmethod
    def load(cls, path: Path) -> SharedAttention:
        """What `save` wrote."""
        tensors, about = read_tensors(path)
        return cls.from_tensors(about, tensors, path)


def write_tensors(tensors: Mapping[str, Tensor], about: Mapping[str, Any], path: Path) -> None:
    """A safetensors file; the same content gives the same bytes."""
    own = {name: values.detach().cpu().contiguous() for name, values in tensors.items()}
    with atomic_path(path) as partial:
        # One entry of metadata: several have no order.
        save_file(own, partial, metadata={"about": json.dumps(about, sort_keys=True)})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and what is said about them."""
    with safe_open(path, "pt") as stored:
        names = list(stored.keys())
        # Copies, which lie where torch puts tensors: the last bits of a product depend on that.
        return {name: stored.get_tensor(name).clone() for name in names}, json.loads(stored.metadata()["about"])
