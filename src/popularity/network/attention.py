"""Cross-modal attention over the post's image and the class prototypes: Sec 3.3, Eq 6."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from popularity.network.params import AttentionParams


class Dropout(nn.Module):
    """nn.Dropout with a fast CPU path: its mask comes from random bytes, so the rate is rounded to 1/256.

    Args:
        rate: fraction of the values that training sets to 0.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, values: Tensor) -> Tensor:
        """Values of any shape to values of the same shape."""
        if not self.training or values.device.type != "cpu":
            return nn.functional.dropout(values, self.rate, self.training)
        dropped = min(round(256 * self.rate), 255)
        words = torch.empty(-(-values.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: values.numel()].view(values.shape) >= dropped
        return values * (kept.to(values.dtype) * (256 / (256 - dropped)))


class Layer(nn.Module):
    """A pre-norm Transformer layer."""

    def __init__(self, params: AttentionParams) -> None:
        super().__init__()
        dim, hidden = params.dim, params.dim * params.mlp_ratio
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, params.num_heads, batch_first=True)
        self.forward_norm = nn.LayerNorm(dim)
        self.forward_part = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), Dropout(params.dropout), nn.Linear(hidden, dim)
        )
        self.dropout = Dropout(params.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (b, n, D) to tokens (b, n, D)."""
        normed = self.attention_norm(tokens)
        attended, _ = self.attention(normed, normed, normed, need_weights=False)
        tokens = tokens + self.dropout(attended)
        out: Tensor = tokens + self.dropout(self.forward_part(self.forward_norm(tokens)))
        return out

    def image_weights(self, tokens: Tensor) -> Tensor:
        """Attention weights (b, n) of the first token, the image, over all tokens (b, n, D); mean over the heads."""
        normed = self.attention_norm(tokens)
        _, weights = self.attention(normed[:, :1], normed, normed, need_weights=True)
        of_image: Tensor = weights.squeeze(1)
        return of_image


class CrossModalAttention(nn.Module):
    """Eq 6: [P_I x, P_I V_1..K, P_T T_1..K] -> [x~, V~, T~].

    `project` makes the tokens, so that prototypes that a batch shares are projected once a step. Type embeddings
    distinguish image, visual prototypes and text prototypes (ours).

    Args:
        params: shape of the layers.
        visual: (K, d_I) visual prototypes, from which the projection starts (see `_start`).
        text: (K, d_T) text prototypes.
    """

    def __init__(self, params: AttentionParams, visual: Tensor, text: Tensor) -> None:
        super().__init__()
        self.image_projection = _start(nn.Linear(visual.shape[1], params.dim), visual)
        self.text_projection = _start(nn.Linear(text.shape[1], params.dim), text)
        self.kinds = nn.ParameterDict(
            {kind: nn.Parameter(torch.randn(params.dim) * 0.02) for kind in ("image", "visual", "text")}
        )
        self.layers = nn.ModuleList(Layer(params) for _ in range(params.depth))
        self.norm = nn.LayerNorm(params.dim)

    def project(self, vectors: Tensor, kind: Literal["image", "visual", "text"]) -> Tensor:
        """Tokens (..., D) of L2-normalised vectors (..., d): P_I for images and visual prototypes, else P_T."""
        projection = self.text_projection if kind == "text" else self.image_projection
        tokens: Tensor = projection(vectors) + self.kinds[kind]
        return tokens

    def forward(self, tokens: Tensor, attention_weights: list[Tensor] | None = None) -> Tensor:
        """[x~, V~, T~] of Eq 6.

        Args:
            tokens: (b, n, D), projected, the image first.
            attention_weights: a list to which each layer adds its weights (b, n) of the image over all tokens, mean
                over the heads. In evaluation mode the rows sum to 1.

        Returns:
            (b, n, D).
        """
        for layer in self.layers:
            if attention_weights is not None:
                assert isinstance(layer, Layer)
                attention_weights.append(layer.image_weights(tokens).float())
            tokens = layer(tokens)
        out: Tensor = self.norm(tokens)
        return out


def _start(projection: nn.Linear, vectors: Tensor) -> nn.Linear:
    """Starts a projection so that the prototypes (K, d) come out centred, with unit variance (ours).

    Pooled features of an image encoder share a large common component; without centring all cosines start near 1.
    Prototypes without spread (at most one class has an image) give no scale: the weights then start at deviation 1.
    """
    centre = vectors.mean(dim=0)
    spread = float((vectors - centre).norm(dim=1).square().mean().sqrt())
    with torch.no_grad():
        nn.init.normal_(projection.weight, std=1 / spread if spread > 1e-3 else 1.0)
        projection.bias.copy_(-projection.weight @ centre)
    return projection
