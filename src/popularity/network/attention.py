"""Cross-modal attention over the post's image and the class prototypes: Sec 3.3, Eq 6."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from popularity.network.params import AttentionParams

# Largest factor of a shared output when terms are subtracted from it; rounding errors grow by it.
MAX_GAIN = 8.0


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


class OwnTokens(NamedTuple):
    """Tokens of b posts that replace shared ones: each post has e, which replace different ones.

    Args:
        tokens: (b, e, D).
        place: (b, e) of the shared token that each replaces.
        found: (b, e) bool; where false, the token replaces nothing and is not in the sequence.
    """

    tokens: Tensor
    place: Tensor
    found: Tensor


class SharedTokens(NamedTuple):
    """The sequences [x_i, P_f(i)] of b posts, in which the posts of a fold share all tokens but x and those of `own`.

    Args:
        image: (b, D) x.
        prototypes: (folds, m, D) P.
        fold: (b,) f.
        own: outside of training the prototypes of the post's own classes, which leave the post out.
    """

    image: Tensor
    prototypes: Tensor
    fold: Tensor
    own: OwnTokens | None = None

    def sequence(self) -> Tensor:
        """The tokens (b, 1 + m, D)."""
        shared = self.of_posts(self.prototypes)
        if self.own is not None:
            shared = self.exchanged(shared, self.own.tokens)
        return torch.cat([self.image[:, None], shared], dim=1)

    def of_posts(self, values: Tensor) -> Tensor:
        """(b, ...) of values (folds, ...): each post's."""
        if len(values) == 1:
            return values.expand(len(self.fold), *values.shape[1:])
        # An embedding sums its gradient in a fixed order; indexing does not.
        return nn.functional.embedding(self.fold, values.flatten(1)).view(-1, *values.shape[1:])

    def exchanged(self, values: Tensor, own: Tensor) -> Tensor:
        """`values` (b, m, D) of the shared tokens, with `own` (b, e, D) where a post's own tokens replace them."""
        assert self.own is not None
        index = self.own.place[:, :, None].expand(-1, -1, values.shape[2])
        return values.scatter(1, index, torch.where(self.own.found[:, :, None], own, values.gather(1, index)))

    def replaced(self, values: Tensor) -> Tensor:
        """(b, e, ...) of values (folds, m, ...): those of the tokens that a post's own tokens replace."""
        assert self.own is not None
        rows = self.fold[:, None] * values.shape[1] + self.own.place
        return nn.functional.embedding(rows, values.flatten(0, 1).flatten(1)).view(*rows.shape, *values.shape[2:])


class _Mixed(NamedTuple):
    """Values mixed by attention, before the output projection.

    Args:
        values: (b, 1 + m, D), the heads side by side.
        image_weights: (b, 1 + m) attention of the image; mean over the heads.
        inexact: (b,) posts whose values are not exact; None: there are none.
    """

    values: Tensor
    image_weights: Tensor
    inexact: Tensor | None


class _Projected(NamedTuple):
    """Queries (scaled), keys and values of the tokens of b posts, and the attention among them.

    Args:
        tokens: of the posts.
        shared: (folds, m, heads, d) each, of the prototypes.
        rows: (b, r, heads, d) each, of the tokens that a post does not share: x and its own ones.
    """

    tokens: SharedTokens
    shared: tuple[Tensor, Tensor, Tensor]
    rows: tuple[Tensor, Tensor, Tensor]

    def of_shared(self) -> tuple[Tensor, Tensor | None]:
        """The values (b, m, D) that the shared tokens attend to, and of which posts (b,) they are not exact."""
        query, key, value = (part.transpose(1, 2) for part in self.shared)  # (folds, heads, m, d)
        scores = _scores(query, key)
        weights = scores.softmax(dim=3)
        values = self.tokens.of_posts((weights.to(value.dtype) @ value).transpose(1, 2))  # (b, m, heads, d)
        log_total = self.tokens.of_posts(scores.logsumexp(dim=3))  # z, (b, heads, m)
        to_rows = self.scores(self.rows[1], self.shared[0]).permute(1, 2, 0, 3)  # (b, r, heads, m)
        own = self.tokens.own
        if own is None:
            gate = (to_rows[:, 0] - log_total).sigmoid().transpose(1, 2)[..., None]  # (b, m, heads, 1)
            return torch.lerp(values, self.rows[2], gate.to(values.dtype)).flatten(2), None
        removed = self.tokens.replaced(weights.permute(0, 3, 1, 2).contiguous())  # (b, e, heads, m)
        exchange = _exchange(own.found, to_rows - log_total[:, None], removed)
        factors = exchange.factors.permute(0, 2, 3, 1).to(value.dtype)  # (b, heads, m, e + r)
        terms = torch.cat([self.tokens.replaced(self.shared[2]), self.rows[2]], dim=1).transpose(1, 2)
        kept = exchange.kept.transpose(1, 2)[..., None].to(value.dtype)
        found = values * kept + (factors @ terms).transpose(1, 2)
        return found.flatten(2), exchange.kept.flatten(1).amax(dim=1) > MAX_GAIN

    def of_rows(self) -> tuple[Tensor, Tensor]:
        """The values (b, r, D) that x and the own tokens attend to, and their weights (heads, b, r, r + m)."""
        query, key, value = self.rows
        posts, count = query.shape[:2]
        to_shared = self.scores(query, self.shared[1])  # (heads, b, r, m)
        among = (query.float()[:, :, None] * key.float()[:, None]).sum(dim=4).permute(3, 0, 1, 2)  # (heads, b, r, r)
        own = self.tokens.own
        if own is not None:
            present = nn.functional.pad(own.found, (1, 0), value=True)
            among = among.masked_fill(~present[:, None], -torch.inf)
            replaced = torch.zeros(posts, to_shared.shape[3], dtype=torch.bool, device=query.device)
            replaced = replaced.scatter(1, own.place, own.found)
            to_shared = to_shared.masked_fill(replaced[:, None], -torch.inf)
        weights = torch.cat([among, to_shared], dim=3).softmax(dim=3)
        half = weights.to(value.dtype)
        mixed = (half[..., :count, None] * value.permute(2, 0, 1, 3)[:, :, None]).sum(dim=3)
        mixed = mixed + self._of_own_fold(half[..., count:])
        return mixed.permute(1, 2, 0, 3).reshape(posts, count, -1), weights

    def scores(self, rows: Tensor, shared: Tensor) -> Tensor:
        """Inner products (heads, b, r, m) of `rows` (b, r, heads, d) and of `shared` (folds, m, heads, d), own fold."""
        posts, count, heads, _ = rows.shape
        folds, tokens = shared.shape[:2]
        # Of every post and every fold, because a matrix product of each post with its own fold would copy the fold.
        found = _scores(rows.flatten(0, 1).transpose(0, 1), shared.flatten(0, 1).transpose(0, 1))
        if folds > 1:
            index = self._fold_index(heads, count, tokens)
            found = found.view(heads, posts * count, folds, tokens).gather(2, index)
        return found.view(heads, posts, count, tokens)

    def _of_own_fold(self, weights: Tensor) -> Tensor:
        """Sums (heads, b, r, d) of the shared tokens' values with `weights` (heads, b, r, m)."""
        heads, posts, count, tokens = weights.shape
        values = self.shared[2].flatten(0, 1).transpose(0, 1)  # (heads, folds * m, d)
        folds, weights = len(self.shared[2]), weights.reshape(heads, posts * count, tokens)
        if folds > 1:
            spread = torch.zeros(heads, posts * count, folds, tokens, dtype=weights.dtype, device=weights.device)
            index = self._fold_index(heads, count, tokens)
            weights = spread.scatter(2, index, weights[:, :, None]).flatten(2)
        return (weights @ values).view(heads, posts, count, -1)

    def _fold_index(self, heads: int, count: int, tokens: int) -> Tensor:
        """(heads, b * r, 1, m) the fold of each row's post."""
        return self.tokens.fold.repeat_interleave(count).view(1, -1, 1, 1).expand(heads, -1, 1, tokens)


class _Exchange(NamedTuple):
    """The output of a shared token for a post: kept * (shared output) + sum of factors * values.

    Args:
        kept: (b, heads, m).
        factors: (b, e + r, heads, m) of the values of the e replaced tokens and of the r tokens of the post.
    """

    kept: Tensor
    factors: Tensor


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

    def forward_shared(self, tokens: SharedTokens, attention_weights: list[Tensor] | None = None) -> Tensor:
        """`forward` of `tokens.sequence()` (b, 1 + m, D), with attention in O(b m) instead of O(b m^2).

        A prototype p attends to the m prototypes of its fold, which gives the same output o_p and the same logarithm
        of its softmax's denominator, z_p, for every post, and to x_i. Together that is, in each head,

            o_p + sigma(q_p k_x / sqrt(d) - z_p) (v_x - o_p):

        a gate between the shared output and the value of the image. Where a post has tokens of its own, the terms of
        those that they replace are subtracted from o_p and its denominator, and theirs are added. A post of which that
        leaves so little that the subtraction is not exact (see MAX_GAIN) is computed over all pairs.

        Args:
            tokens: of b posts.
            attention_weights: a list that gets `image_weights` of the sequence.
        """
        sequence = tokens.sequence()
        mixed = self._mixed_values(tokens)
        attended: Tensor = self.attention.out_proj(mixed.values)
        if attention_weights is not None:
            attention_weights.append(mixed.image_weights.float())
        if mixed.inexact is not None and bool(mixed.inexact.any()):
            rows = mixed.inexact.nonzero()[:, 0]
            normed = self.attention_norm(sequence[rows])
            attended[rows] = self.attention(normed, normed, normed, need_weights=False)[0].to(attended.dtype)
        return self._after_attention(sequence, attended)

    def _mixed_values(self, tokens: SharedTokens) -> _Mixed:
        heads = self.attention.num_heads
        rows = tokens.image[:, None]  # (b, r, D)
        if tokens.own is not None:
            rows = torch.cat([rows, tokens.own.tokens], dim=1)
        shared, of_rows = (
            [part.reshape(*part.shape[:2], heads, -1) for part in self._project(self.attention_norm(each))]
            for each in (tokens.prototypes, rows)
        )
        scale = shared[0].shape[3] ** -0.5
        projected = _Projected(
            tokens, (shared[0] * scale, shared[1], shared[2]), (of_rows[0] * scale, of_rows[1], of_rows[2])
        )
        values, inexact = projected.of_shared()
        of_rows_mixed, weights = projected.of_rows()
        count, of_image = rows.shape[1], weights[:, :, 0].mean(dim=0)  # (b, r + m)
        if tokens.own is not None:
            values = tokens.exchanged(values, of_rows_mixed[:, 1:])
            exchanged = tokens.exchanged(of_image[:, count:, None], of_image[:, 1:count, None])[:, :, 0]
            of_image = torch.cat([of_image[:, :1], exchanged], dim=1)
        return _Mixed(torch.cat([of_rows_mixed[:, :1], values], dim=1), of_image, inexact)

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
        """Attention weights (b, n) of the first token, the image, over all tokens (b, n, D); mean over the heads.

        The image's query goes through the matrix of the keys, instead of every token: a key's bias adds the same to all
        scores.
        """
        heads, dim = self.attention.num_heads, tokens.shape[2]
        normed = self.attention_norm(tokens)
        of_query, of_key, _ = self.attention.in_proj_weight.chunk(3)
        query = nn.functional.linear(normed[:, 0], of_query, self.attention.in_proj_bias[:dim])
        query = query.view(-1, heads, 1, dim // heads) * (dim // heads) ** -0.5
        scores = (query @ of_key.view(heads, -1, dim))[:, :, 0] @ normed.transpose(1, 2)  # (b, heads, n)
        weights: Tensor = scores.float().softmax(dim=2).mean(dim=1)
        return weights


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

    def forward_shared(self, tokens: SharedTokens, attention_weights: list[Tensor] | None = None) -> Tensor:
        """`forward` of `tokens.sequence()`; the first layer needs time in proportion to b m: see Layer."""
        if not self.layers:
            return self.forward(tokens.sequence())
        first = self.layers[0]
        assert isinstance(first, Layer)
        return self._through(self.layers[1:], first.forward_shared(tokens, attention_weights), attention_weights)

    def forward(self, tokens: Tensor, attention_weights: list[Tensor] | None = None) -> Tensor:
        """[x~, V~, T~] of Eq 6.

        Args:
            tokens: (b, n, D), projected, the image first.
            attention_weights: a list to which each layer adds its weights (b, n) of the image over all tokens, mean
                over the heads. In evaluation mode the rows sum to 1.

        Returns:
            (b, n, D).
        """
        return self._through(self.layers, tokens, attention_weights)

    def _through(self, layers: Iterable[nn.Module], tokens: Tensor, attention_weights: list[Tensor] | None) -> Tensor:
        for layer in layers:
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


def _exchange(found: Tensor, to_rows: Tensor, removed: Tensor) -> _Exchange:
    """What each shared token's output becomes when a post's own tokens stand in place of shared ones.

    Args:
        found: (b, e) own tokens that are in the sequence.
        to_rows: (b, r, heads, m) scores of x and of the own tokens, less the shared denominator's logarithm z.
        removed: (b, e, heads, m) weights of the replaced tokens in the shared output.
    """
    outside = ~nn.functional.pad(found, (1, 0), value=True)[:, :, None, None]
    removed = removed * found[:, :, None, None]
    left = (1 - removed.sum(dim=1, keepdim=True)).clamp(min=torch.finfo(removed.dtype).tiny)
    to_rows = to_rows.masked_fill(outside, -torch.inf)
    log_total = torch.cat([left.log(), to_rows], dim=1).logsumexp(dim=1, keepdim=True)
    kept = (-log_total).exp()
    return _Exchange(kept[:, 0], torch.cat([-kept * removed, (to_rows - log_total).exp()], dim=1))


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
