"""Cross-modal attention over the post's image and the class prototypes: Sec 3.3, Eq 6."""

from __future__ import annotations

from typing import Literal, NamedTuple

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


class SharedTokens(NamedTuple):
    """The sequences [x_i, P_f(i)] of b posts, in which the posts of a fold share all tokens but the first.

    Args:
        image: (b, D) x.
        prototypes: (folds, m, D) P.
        fold: (b,) f.
    """

    image: Tensor
    prototypes: Tensor
    fold: Tensor

    def sequence(self) -> Tensor:
        """The tokens (b, 1 + m, D)."""
        return torch.cat([self.image[:, None], self.of_posts(self.prototypes)], dim=1)

    def of_posts(self, values: Tensor) -> Tensor:
        """(b, ...) of values (folds, ...): each post's."""
        # An embedding sums its gradient in a fixed order; indexing does not.
        return nn.functional.embedding(self.fold, values.flatten(1)).view(-1, *values.shape[1:])


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
        return self._after_attention(tokens, attended)

    def forward_shared(self, tokens: SharedTokens) -> Tensor:
        """`forward` of `tokens.sequence()` (b, 1 + m, D), with attention in O(b m) instead of O(b m^2).

        A prototype p attends to the m prototypes of its fold, which gives the same output o_p and the same logarithm
        of its softmax's denominator, z_p, for every post, and to x_i. Together that is, in each head,

            o_p + sigma(q_p k_x / sqrt(d) - z_p) (v_x - o_p):

        a gate between the shared output and the value of the image.
        """
        return self._after_attention(tokens.sequence(), self.attention.out_proj(self._mixed_values(tokens)))

    def _mixed_values(self, tokens: SharedTokens) -> Tensor:
        """(b, 1 + m, D) values mixed by attention, the heads side by side, before the output projection."""
        heads, (folds, shared, dim) = self.attention.num_heads, tokens.prototypes.shape
        posts, width = len(tokens.image), dim // heads
        query, key, value = self._project(self.attention_norm(tokens.prototypes))  # each (folds, m, D)
        query_x, key_x, value_x = self._project(self.attention_norm(tokens.image))  # each (b, D)
        query, query_x = query * width**-0.5, query_x * width**-0.5
        by_fold = [part.view(folds, shared, heads, width).transpose(1, 2) for part in (query, key, value)]
        scores = _scores(by_fold[0], by_fold[1])  # (folds, heads, m, m)
        weights = scores.softmax(dim=3).to(by_fold[2].dtype)
        mixed = (weights @ by_fold[2]).transpose(1, 2).reshape(folds, shared, dim)
        # Of every post and every fold, because a matrix product of each post with its own fold would copy the fold.
        flat = [part.reshape(folds * shared, heads, width).transpose(0, 1) for part in (query, key, value)]
        of_x = [part.view(posts, heads, width).transpose(0, 1) for part in (query_x, key_x, value_x)]
        index = tokens.fold.view(1, posts, 1, 1).expand(heads, posts, 1, shared)

        def own_fold(values: Tensor) -> Tensor:
            """(heads, b, m) of (heads, b, folds * m)."""
            return values.view(heads, posts, folds, shared).gather(2, index)[:, :, 0]

        to_x = own_fold(_scores(of_x[1], flat[0]))  # q_p k_x
        gate = (to_x.transpose(0, 1) - tokens.of_posts(scores.logsumexp(dim=3))).sigmoid()  # (b, heads, m)
        gate = gate.transpose(1, 2)[..., None].to(mixed.dtype)  # (b, m, heads, 1)
        values = tokens.of_posts(mixed).view(posts, shared, heads, width)
        values = torch.lerp(values, value_x.view(posts, 1, heads, width), gate)
        from_x = own_fold(_scores(of_x[0], flat[1]))  # q_x k_p
        itself = (of_x[0].float() * of_x[1].float()).sum(dim=2, keepdim=True)  # q_x k_x
        weights = torch.cat([itself, from_x], dim=2).softmax(dim=2).to(value.dtype)  # (heads, b, 1 + m)
        spread = torch.zeros(heads, posts, folds, shared, dtype=weights.dtype, device=weights.device)
        spread = spread.scatter(2, index, weights[:, :, None, 1:]).view(heads, posts, folds * shared)
        mixed_x = weights[:, :, :1] * of_x[2] + spread @ flat[2]
        return torch.cat([mixed_x.transpose(0, 1).reshape(posts, 1, dim), values.flatten(2)], dim=1)

    def _project(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (..., D)."""
        projected = nn.functional.linear(normed, self.attention.in_proj_weight, self.attention.in_proj_bias)
        query, key, value = projected.chunk(3, dim=-1)
        return query, key, value

    def _after_attention(self, tokens: Tensor, attended: Tensor) -> Tensor:
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

    def forward_shared(self, tokens: SharedTokens) -> Tensor:
        """`forward` of `tokens.sequence()`; the first layer needs time in proportion to b m: see Layer."""
        sequence = None
        for layer in self.layers:
            assert isinstance(layer, Layer)
            sequence = layer.forward_shared(tokens) if sequence is None else layer(sequence)
        out: Tensor = self.norm(tokens.sequence() if sequence is None else sequence)
        return out

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


def _scores(left: Tensor, right: Tensor) -> Tensor:
    """Inner products (..., n, m) of the rows of `left` (..., n, d) and `right` (..., m, d), at least in float32."""
    with torch.autocast(left.device.type, enabled=False):
        wide = torch.promote_types(left.dtype, torch.float32)
        return left.to(wide) @ right.to(wide).transpose(-1, -2)


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
