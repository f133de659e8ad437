"""Text towers that read soft prompts (paper, Sec 3.2, Eq 1-3), and the layers of a tower that train.

tower = load_prompt_tower(network_text_params())
names = tower.tokenize(["new year", "beach"], max_tokens=16)
context = nn.Parameter(torch.randn(16, tower.spec.token_width) * tower.spec.context_deviation)
pooled = tower(context, names).pooled   # (2, d), differentiable in `context`

Soft prompts enter as raw token embeddings, before positions are added. The file of an encoder says how its tower
reads them (`registry.PromptReading`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from popularity.core.errors import ConfigError
from popularity.encoders.image import EmbedImageParams, ImageEncoder
from popularity.encoders.registry import RegisteredEncoder, find_encoder
from popularity.encoders.text import (
    EmbedTextParams,
    TextEncoder,
    TextTokenizer,
    load_text_encoder,
    load_tokenizer,
    masked_mean,
)


@dataclass(frozen=True)
class EncoderSpec:
    """Sizes, special tokens and pooling of a text tower, which prompts need.

    Args:
        width: d, of the pooled vector and of the token vectors.
        token_width: e, of the token embeddings and so of a context vector.
        pooling: the pooled vector is the masked mean (L2-normalised), the end token, or the last position.
        prefix: ids of the special tokens before a text.
        suffix: ids of those after it.
        longest: number of positions of the tower, special tokens included.
        cut_is_exact: the outputs are the same without the padding (not for SigLIP, which attends to it).
        context_deviation: standard deviation of a new context vector.
    """

    width: int
    token_width: int
    pooling: Literal["mean", "end", "last"]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    longest: int
    cut_is_exact: bool
    context_deviation: float


class PromptTokens(NamedTuple):
    """Texts as their own tokens, without special ones.

    Args:
        ids: (n, l) int64, padded with any id.
        lengths: (n,) int64; on the CPU, so that cutting to the longest does not wait for the device.
    """

    ids: Tensor
    lengths: Tensor


class PromptLayout(NamedTuple):
    """Where the tokens of n prompts of l positions stand, on the tower's device; of prompts that stay, made once.

    Args:
        ids: (n, l - start) own tokens, suffix and padding; `start` positions hold the prefix and the context.
        token_mask: (n, l) bool, true on the texts' own tokens.
        used: (n, l) bool, false on the padding.
    """

    ids: Tensor
    token_mask: Tensor
    used: Tensor


class PromptOutput(NamedTuple):
    """The tower's outputs for n prompts of l positions: prefix, context, own tokens, suffix, padding.

    Args:
        pooled: (n, d).
        tokens: (n, l, d), in the space of the pooled vectors.
        token_mask: (n, l) bool, true on the texts' own tokens: H of Sec 3.2.
    """

    pooled: Tensor
    tokens: Tensor
    token_mask: Tensor


class PromptTower(nn.Module):
    """A frozen text tower that reads context vectors before a text's own tokens.

    Attributes:
        spec: widths, special tokens, pooling, length.
    """

    prefix: Tensor
    suffix: Tensor

    def __init__(self, encoder: TextEncoder, tokenizer: TextTokenizer, registered: RegisteredEncoder) -> None:
        super().__init__()
        self.encoder, self.tokenizer = encoder, tokenizer
        if registered.prompt is None:
            raise ConfigError(f"encoders.network.text: {registered.name} reads no soft prompts; stage train needs them")
        self.reading = registered.prompt
        # The own tokens of a text are between the special ones.
        coded = TextTokenizer(tokenizer.tokenizer, tokenizer.max_tokens, fixed_length=False)(["a"])
        ids, token_mask = coded.input_ids[0], coded.token_mask[0].nonzero()[:, 0]
        prefix, suffix = ids[: token_mask[0]], ids[token_mask[-1] + 1 :]
        self.register_buffer("prefix", prefix, persistent=False)
        self.register_buffer("suffix", suffix, persistent=False)
        self.spec = EncoderSpec(
            width=encoder.out_features,
            token_width=self._table.embedding_dim,
            pooling=self.reading.pooling,
            prefix=tuple(prefix.tolist()),
            suffix=tuple(suffix.tolist()),
            longest=encoder.longest,
            cut_is_exact=not registered.fixed_length,
            context_deviation=self.reading.context_deviation or self._table.weight.std().item(),
        )

    def tokenize(self, texts: Sequence[str], max_tokens: int) -> PromptTokens:
        """The own tokens of `texts`, truncated as in the stage embed_text: `max_tokens` counts the special ones.

        Args:
            texts: n of them.
            max_tokens: of a text, special ones included.
        """
        coded = TextTokenizer(self.tokenizer.tokenizer, max_tokens, fixed_length=False)(texts)
        lengths = coded.token_mask.sum(dim=1)
        start = len(self.spec.prefix)
        return PromptTokens(coded.input_ids[:, start : start + int(lengths.max())], lengths)

    def forward(
        self, context: Tensor | None, tokens: PromptTokens, pool: Literal["all", "name"] = "all"
    ) -> PromptOutput:
        """The prompts [prefix, context, own tokens, suffix] through the tower, with gradient to `context`.

        A prompt longer than the tower loses own tokens; the suffix stays.

        Args:
            context: (m, e) for all prompts or (n, m, e), one for each; None for the plain texts.
            tokens: of n texts, on any device.
            pool: mean-pooled towers: over the whole prompt, or over the own tokens alone (of a text without
                any: over the whole prompt).

        Raises:
            ConfigError: the context leaves no position for a token of the text, or the tower pools at one position
                and `pool` is not `all`.
        """
        (layout,) = self.layouts(tokens, [0 if context is None else context.shape[-2]])
        return self.encode([context], [layout], pool)

    def layouts(self, tokens: PromptTokens, lengths: Sequence[int]) -> list[PromptLayout]:
        """For each of `lengths`, a number of context vectors, the layout of the prompts; all of them have one width.

        Args:
            tokens: of n texts; the width is that of the longest, which must be on the CPU to need no wait.
            lengths: numbers of context vectors.

        Raises:
            ConfigError: the context leaves no position for a token of the text.
        """
        spec = self.spec
        widest = 0
        for vectors in lengths:
            used = len(spec.prefix) + vectors + len(spec.suffix)
            widest = max(widest, min(spec.longest, used + int(tokens.lengths.max())))
        return [self._layout(tokens, vectors, widest if spec.cut_is_exact else spec.longest) for vectors in lengths]

    def _layout(self, tokens: PromptTokens, vectors: int, width: int) -> PromptLayout:
        spec, device = self.spec, self.prefix.device
        start = len(spec.prefix) + vectors
        room = spec.longest - start - len(spec.suffix)
        if room < 1:
            raise ConfigError(
                f"prompts: {vectors} context vectors leave no position for a text among the {spec.longest} positions "
                f"of the tower; at most {vectors + room - 1} do"
            )
        ids = tokens.ids.to(device, non_blocking=True)
        lengths = tokens.lengths.clamp(max=room).to(device, non_blocking=True)
        position = torch.arange(width, device=device)
        token_mask = (position >= start) & (position < start + lengths[:, None])  # (n, width)
        used = position < start + lengths[:, None] + len(spec.suffix)
        return PromptLayout(self._after_context(ids, lengths, token_mask[:, start:]), token_mask, used)

    def encode(
        self, contexts: Sequence[Tensor | None], layouts: Sequence[PromptLayout], pool: Literal["all", "name"] = "all"
    ) -> PromptOutput:
        """Prompts of several contexts in one pass through the tower, one set after the other: see `forward`.

        Args:
            contexts: of each set of prompts.
            layouts: of each set, of one width: see `layouts`.
            pool: see `forward`.

        Raises:
            ConfigError: the tower pools at one position and `pool` is not `all`.
        """
        if pool == "name" and self.spec.pooling != "mean":
            raise ConfigError("prompts.pool: 'name' is for mean-pooled towers, this one reads one position")
        ids, token_mask, used = layouts[0]
        if len(layouts) > 1:
            token_mask, used = (torch.cat([layout[part] for layout in layouts]) for part in (1, 2))
        inputs = torch.cat([self._embedded(*each) for each in zip(contexts, layouts, strict=True)])
        # Prompts are short: on a CPU the fused attention is slower for them, in bf16 by far.
        with sdpa_kernel(SDPBackend.MATH) if ids.device.type == "cpu" else nullcontext():
            values = self.reading.outputs(self.encoder.tower, inputs, used)  # (n, width, d)
        return PromptOutput(self._pooled(values, token_mask, used, pool), values, token_mask)

    def _embedded(self, context: Tensor | None, layout: PromptLayout) -> Tensor:
        """Raw token embeddings (n, l, e) of the prompts."""
        rows = len(layout.ids)
        inputs = [self._table(self.prefix).expand(rows, -1, -1)]
        if context is not None:
            inputs.append(context.expand(rows, -1, -1))
        inputs.append(self._table(layout.ids))
        return torch.cat(inputs, dim=1)

    @property
    def _table(self) -> nn.Embedding:
        model: Any = self.encoder.tower
        table: nn.Embedding = getattr(model, "text_model", model).get_input_embeddings()
        return table

    def _after_context(self, ids: Tensor, lengths: Tensor, own: Tensor) -> Tensor:
        """Ids (n, w) of own tokens, suffix and padding, where `own` (n, w) is true on the own tokens."""
        padding = self.tokenizer.tokenizer.pad_token_id
        missing = max(0, own.shape[1] - ids.shape[1])
        padded = nn.functional.pad(ids, (0, missing))[:, : own.shape[1]].masked_fill(~own, padding)
        columns = lengths[:, None] + torch.arange(len(self.suffix), device=ids.device)
        return padded.scatter(1, columns, self.suffix.expand(len(ids), -1))

    def _pooled(self, values: Tensor, token_mask: Tensor, used: Tensor, pool: str) -> Tensor:
        if self.spec.pooling == "last":
            return values[:, -1]
        if self.spec.pooling == "end":
            last = (used.sum(dim=1) - 1)[:, None, None].expand(-1, 1, values.shape[2])
            return values.gather(1, last)[:, 0]
        mask = torch.where(token_mask.any(dim=1, keepdim=True), token_mask, used) if pool == "name" else used
        return masked_mean(values, mask)


def load_prompt_tower(params: EmbedTextParams) -> PromptTower:
    """The tower of the encoder that `params` names, on the CPU.

    Raises:
        MissingWeightsError, ConfigError: see `load_text_encoder` and `load_tokenizer`.
        ConfigError: the encoder reads no soft prompts.
    """
    return PromptTower(load_text_encoder(params), load_tokenizer(params), find_encoder(params.loader, "text"))


def is_aligned(image: EmbedImageParams, text: EmbedTextParams) -> bool:
    """True if images and texts share one space: both encoders belong to the same dual model (CLIP, SigLIP).

    That is: their names are `<model>_image` and `<model>_text`, and they load the same weights.

    Args:
        image: an entry of embed_image.
        text: an entry of embed_text.
    """
    halves = image.loader.removesuffix("_image") == text.loader.removesuffix("_text")
    same = (image.weights, image.revision) == (text.weights, text.revision)
    return halves and same and (image.weights != "hub" or image.model == text.model)


def unfreeze_last(encoder: ImageEncoder | TextEncoder | PromptTower, count: int) -> list[nn.Parameter]:
    """The parameters of the last `count` layers of a tower and of the modules after them, which now get gradients.

    A layer is a transformer layer, or a stage of a convolutional network; norm, projection and head follow.
    The tower stays in evaluation mode: no dropout, and statistics of batch norms stay as they are.

    Args:
        encoder: whose tower it is.
        count: layers from the end; 0 for none.

    Raises:
        ConfigError: the tower has fewer layers.
    """
    tower = encoder.encoder.tower if isinstance(encoder, PromptTower) else encoder.tower
    layers, following = _layers_and_following(tower)
    if count > len(layers):
        raise ConfigError(f"unfreeze_layers: {count}, but {type(tower).__name__} has {len(layers)} layers")
    if count == 0:
        return []
    chosen = [parameter for layer in layers[-count:] for parameter in layer.parameters()] + following
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


# Of towers from transformers: the list of layers, and the modules that follow it on the way to the output.
# The models also hold modules that do not: poolers, the projection of the other tower.
_TRANSFORMERS_LAYERS = (
    ("text_model.encoder.layers", ("text_model.final_layer_norm", "text_model.head", "text_projection")),
    ("vision_model.encoder.layers", ("vision_model.post_layernorm", "vision_model.head", "visual_projection")),
    ("encoder.layer", ("layernorm",)),
    ("transformer.layer", ()),
)


def _layers_and_following(tower: nn.Module) -> tuple[list[nn.Module], list[nn.Parameter]]:
    modules = dict(tower.named_modules())
    for path, after in _TRANSFORMERS_LAYERS:
        if path in modules:
            following = [parameter for name in after if name in modules for parameter in modules[name].parameters()]
            return list(modules[path].children()), following
    # timm registers modules in the order in which they run.
    container = next((modules[name] for name in ("blocks", "stages", "layers") if name in modules), None)
    if container is not None:
        layers = list(container.children())
    else:
        layers = [module for name, module in tower.named_children() if re.fullmatch(r"layer\d+", name)]  # ResNet
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    parameters = list(tower.parameters())
    last = max((index for index, parameter in enumerate(parameters) if id(parameter) in inside), default=-1)
    return layers, parameters[last + 1 :]
