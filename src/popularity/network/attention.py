"""Cross-modal attention over the post's image and the class prototypes: Sec 3.3, Eq 6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from popularity.config import Section

Modality = Literal["visual", "text"]


@dataclass(frozen=True)
class AttentionParams(Section):
    """Shape of the encoder.

    Args:
        width: D.
        layers: pre-norm Transformer layers; 0 leaves the projections alone (an ablation).
        heads: per layer; divides D.
        expansion: width of the feed-forward part as a multiple of D.
        dropout: share, of what a layer adds to its tokens and of the feed-forward part; attention weights have none.
        prototypes: whose tokens stand in the sequence beside the image.
    """

    width: Annotated[int, Field(ge=1)]
    layers: Annotated[int, Field(ge=0)]
    heads: Annotated[int, Field(ge=1)]
    expansion: Annotated[int, Field(ge=1)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    prototypes: Annotated[tuple[Modality, ...], Field(min_length=1)]

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"heads must divide width, found {self.heads} and {self.width}")


class Dropout(nn.Module):
    """As nn.Dropout, but quick on a CPU: there the mask is made of random bytes, and `share` is rounded to 1/256."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, values: Tensor) -> Tensor:
        """Values of any shape to values of the same shape."""
        if not self.training or values.device.type != "cpu":
            return nn.functional.dropout(values, self.share, self.training)
        left_out = min(round(256 * self.share), 255)
        words = torch.empty(-(-values.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: values.numel()].view(values.shape) >= left_out
        return values * (kept.to(values.dtype) * (256 / (256 - left_out)))


class Layer(nn.Module):
    """A pre-norm Transformer layer."""

    def __init__(self, params: AttentionParams) -> None:
        super().__init__()
        width, hidden = params.width, params.width * params.expansion
        self.attention_norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, params.heads, batch_first=True)
        self.forward_norm = nn.LayerNorm(width)
        self.forward_part = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), Dropout(params.dropout), nn.Linear(hidden, width)
        )
        self.dropout = Dropout(params.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (b, n, D) to tokens (b, n, D)."""
        normed = self.attention_norm(tokens)
        attended, _ = self.attention(normed, normed, normed, need_weights=False)
        tokens = tokens + self.dropout(attended)
        out: Tensor = tokens + self.dropout(self.forward_part(self.forward_norm(tokens)))
        return out

    def first_row(self, tokens: Tensor) -> Tensor:
        """Attention weights (b, n) of the first token over all tokens, averaged over the heads."""
        normed = self.attention_norm(tokens)
        _, weights = self.attention(normed[:, :1], normed, normed, need_weights=True)
        of_first: Tensor = weights.squeeze(1)
        return of_first


class CrossModalAttention(nn.Module):
    """Eq 6: [P_I x, P_I V_1..K, P_T T_1..K] -> [x~, V~, T~].

    The tokens come projected (`project`), so that what a batch shares is projected once a step. Type
    embeddings tell image, visual prototypes and text prototypes apart (ours).

    Args:
        params: shape.
        visual: (K, d_I) visual prototypes, from which the projection starts (see `_start`).
        text: (K, d_T) text prototypes.
    """

    def __init__(self, params: AttentionParams, visual: Tensor, text: Tensor) -> None:
        super().__init__()
        self.image_projection = _start(nn.Linear(visual.shape[1], params.width), visual)
        self.text_projection = _start(nn.Linear(text.shape[1], params.width), text)
        self.kinds = nn.ParameterDict(
            {kind: nn.Parameter(torch.randn(params.width) * 0.02) for kind in ("image", "visual", "text")}
        )
        self.layers = nn.ModuleList(Layer(params) for _ in range(params.layers))
        self.norm = nn.LayerNorm(params.width)

    def project(self, vectors: Tensor, kind: Literal["image", "visual", "text"]) -> Tensor:
        """Tokens (..., D) of L2-normalised vectors: P_I for images and visual prototypes, P_T for text prototypes."""
        projection = self.text_projection if kind == "text" else self.image_projection
        tokens: Tensor = projection(vectors) + self.kinds[kind]
        return tokens

    def forward(self, tokens: Tensor, looks: list[Tensor] | None = None) -> Tensor:
        """(b, n, D) of projected tokens (b, n, D), the image first.

        Each layer adds to `looks`, if that is given, how much x looks at each token: (b, n), averaged over its heads.
        In evaluation mode the rows sum to 1.
        """
        for layer in self.layers:
            if looks is not None:
                assert isinstance(layer, Layer)
                looks.append(layer.first_row(tokens).float())
            tokens = layer(tokens)
        out: Tensor = self.norm(tokens)
        return out


def _start(projection: nn.Linear, vectors: Tensor) -> nn.Linear:
    """Starts a projection so that the prototypes (K, d) come out centred, with unit variance (ours).

    Pooled features of an image tower share a large common part; without this, all cosines start near 1. Prototypes
    without any spread (no class, or one alone, has a picture) say nothing of the scale: unit vectors then start at it.
    """
    centre = vectors.mean(dim=0)
    spread = float((vectors - centre).norm(dim=1).square().mean().sqrt())
    with torch.no_grad():
        nn.init.normal_(projection.weight, std=1 / spread if spread > 1e-3 else 1.0)
        projection.bias.copy_(-projection.weight @ centre)
    return projection
