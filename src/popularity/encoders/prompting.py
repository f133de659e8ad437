"""Text towers that read soft prompts (method.md, Sec 3.2, Eq 1-3), and what of a tower is trained when asked.

tower = load_prompt_tower(load_params("embed_text", EmbedTextParams))
names = tower.tokenize(["new year", "beach"], max_tokens=16)
context = nn.Parameter(torch.randn(16, tower.facts.token_width) * tower.facts.context_deviation)
pooled = tower(context, names).pooled   # (2, d), differentiable in `context`

Soft prompts enter as raw token embeddings, before positions are added. BERT types take them as `inputs_embeds`;
the text towers of CLIP and SigLIP do not, so their embeddings, encoder, final norm and projection run one by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.masking_utils import create_causal_mask

from popularity.encoders.image import EmbedImageParams, ImageEncoder
from popularity.encoders.text import (
    EmbedTextParams,
    TextEncoder,
    TextTokenizer,
    load_text_encoder,
    load_tokenizer,
    masked_mean,
)
from popularity.errors import ConfigError


@dataclass(frozen=True)
class TowerFacts:
    """What a prompt has to know of its text tower.

    Args:
        width: d, of the pooled vector and of the token vectors.
        token_width: e, of the token embeddings and so of a context vector.
        pooling: the pooled vector is the masked mean (L2-normalised), the end token, or the last position.
        prefix: ids of the special tokens before a text.
        suffix: ids of those after it.
        longest: positions of the tower, special tokens included.
        cut_is_exact: leaving out the padding changes nothing (SigLIP attends to it).
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
        ids: (n, l) int64, padded; what stands in the padding does not matter.
        lengths: (n,) int64. Kept on the CPU, the cut to the longest does not wait for the device.
    """

    ids: Tensor
    lengths: Tensor


class PromptOutput(NamedTuple):
    """What the tower makes of n prompts of l positions: prefix, context, own tokens, suffix, padding.

    Args:
        pooled: (n, d).
        tokens: (n, l, d), in the space of the pooled vectors.
        content: (n, l) bool, true on the texts' own tokens: H of Sec 3.2.
    """

    pooled: Tensor
    tokens: Tensor
    content: Tensor


class PromptTower(nn.Module):
    """A frozen text tower that reads context vectors before a text's own tokens.

    Attributes:
        facts: widths, special tokens, pooling, length.
    """

    prefix: Tensor
    suffix: Tensor

    def __init__(self, encoder: TextEncoder, tokenizer: TextTokenizer) -> None:
        super().__init__()
        self.encoder, self.tokenizer = encoder, tokenizer
        model: Any = encoder.tower
        self.kind = _KINDS.get(model.config.model_type, _MEAN)
        # A text's own tokens stand between the special ones.
        coded = TextTokenizer(tokenizer.tokenizer, tokenizer.max_tokens, fixed_length=False)(["a"])
        ids, content = coded.input_ids[0], coded.content[0].nonzero()[:, 0]
        prefix, suffix = ids[: content[0]], ids[content[-1] + 1 :]
        self.register_buffer("prefix", prefix, persistent=False)
        self.register_buffer("suffix", suffix, persistent=False)
        self.facts = TowerFacts(
            width=encoder.out_features,
            token_width=self._table.embedding_dim,
            pooling=self.kind.pooling,
            prefix=tuple(prefix.tolist()),
            suffix=tuple(suffix.tolist()),
            longest=encoder.longest,
            cut_is_exact=not encoder.kind.fixed_length,
            context_deviation=self.kind.context_deviation or self._table.weight.std().item(),
        )

    def tokenize(self, texts: Sequence[str], max_tokens: int) -> PromptTokens:
        """The own tokens of `texts`, cut as the stage embed_text cuts them: `max_tokens` counts the special ones."""
        coded = TextTokenizer(self.tokenizer.tokenizer, max_tokens, fixed_length=False)(texts)
        lengths = coded.content.sum(dim=1)
        start = len(self.facts.prefix)
        return PromptTokens(coded.input_ids[:, start : start + int(lengths.max())], lengths)

    def forward(
        self, context: Tensor | None, tokens: PromptTokens, pool: Literal["all", "name"] = "all"
    ) -> PromptOutput:
        """The prompts [prefix, context, own tokens, suffix] through the tower, with gradient to `context`.

        A prompt longer than the tower is cut in its own tokens; the suffix stays.

        Args:
            context: (m, e) for all prompts or (n, m, e), one for each; None for the plain texts.
            tokens: of n texts, on any device.
            pool: mean-pooled towers: over the whole prompt, or over the own tokens alone (of a text without
                any: over the whole prompt).

        Raises:
            ConfigError: the context leaves no place for a token of the text, or the tower pools at one position
                and `pool` is not `all`.
        """
        facts, device = self.facts, self.prefix.device
        if pool == "name" and facts.pooling != "mean":
            raise ConfigError("prompts.pool: 'name' is for mean-pooled towers, this one reads one position")
        vectors = 0 if context is None else context.shape[-2]
        start = len(facts.prefix) + vectors
        room = facts.longest - start - len(facts.suffix)
        if room < 1:
            raise ConfigError(
                f"prompts: {vectors} context vectors leave no place for a text in the {facts.longest} positions "
                f"of the tower; at most {vectors + room - 1} do"
            )
        lengths = tokens.lengths.clamp(max=room)
        width = facts.longest if not facts.cut_is_exact else start + int(lengths.max()) + len(facts.suffix)
        lengths = lengths.to(device)
        place = torch.arange(width, device=device)
        content = (place >= start) & (place < start + lengths[:, None])  # (n, width)
        used = place < start + lengths[:, None] + len(facts.suffix)
        rows = len(lengths)
        parts = [self._table(self.prefix).expand(rows, -1, -1)]
        if context is not None:
            parts.append(context.expand(rows, -1, -1))
        parts.append(self._table(self._after_context(tokens.ids.to(device), lengths, content[:, start:])))
        # Prompts are short: on a CPU the fused attention is then the slower one, in bf16 by far.
        with sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext():
            values = self.kind.outputs(self.encoder.tower, torch.cat(parts, dim=1), used)  # (n, width, d)
        return PromptOutput(self._pooled(values, content, used, pool), values, content)

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
        places = lengths[:, None] + torch.arange(len(self.suffix), device=ids.device)
        return padded.scatter(1, places, self.suffix.expand(len(ids), -1))

    def _pooled(self, values: Tensor, content: Tensor, used: Tensor, pool: str) -> Tensor:
        if self.facts.pooling == "last":
            return values[:, -1]
        if self.facts.pooling == "end":
            return values[torch.arange(len(values), device=values.device), used.sum(dim=1) - 1]
        mask = torch.where(content.any(dim=1, keepdim=True), content, used) if pool == "name" else used
        return masked_mean(values, mask)


def load_prompt_tower(params: EmbedTextParams) -> PromptTower:
    """The tower of the encoder that `params` names, on the CPU.

    Raises:
        MissingWeightsError, ConfigError: see `load_text_encoder` and `load_tokenizer`.
    """
    return PromptTower(load_text_encoder(params), load_tokenizer(params))


def is_aligned(image: EmbedImageParams, text: EmbedTextParams) -> bool:
    """True when pictures and texts share one space: both towers are of the same dual model (CLIP, SigLIP).

    No other type of model holds an image encoder and a text encoder, so the same weights say enough.
    """
    same = (image.weights, image.revision) == (text.weights, text.revision)
    return image.library == "transformers" and same and (image.weights != "hub" or image.model == text.model)


def unfreeze_last(encoder: ImageEncoder | TextEncoder | PromptTower, count: int) -> list[nn.Parameter]:
    """The parameters of the last `count` blocks of a tower and of what follows them, which now get gradients.

    A block is a transformer layer, or a stage of a convolutional network; norm, projection and head follow.
    The tower stays in evaluation mode: no dropout, and statistics of batch norms stay as they are.

    Raises:
        ConfigError: the tower has fewer blocks.
    """
    tower = encoder.encoder.tower if isinstance(encoder, PromptTower) else encoder.tower
    blocks, following = _blocks_and_following(tower)
    if count > len(blocks):
        raise ConfigError(f"train.unfreeze_layers: {count}, but {type(tower).__name__} has {len(blocks)} layers")
    if count == 0:
        return []
    chosen = [parameter for block in blocks[-count:] for parameter in block.parameters()] + following
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


# Of towers from transformers: the list of blocks, and the modules that follow it on the way to the encoder's output.
# The models hold more that does not: poolers, the other tower's projection.
_TRANSFORMERS_BLOCKS = (
    ("text_model.encoder.layers", ("text_model.final_layer_norm", "text_model.head", "text_projection")),
    ("vision_model.encoder.layers", ("vision_model.post_layernorm", "vision_model.head", "visual_projection")),
    ("encoder.layer", ("layernorm",)),
    ("transformer.layer", ()),
)


def _blocks_and_following(tower: nn.Module) -> tuple[list[nn.Module], list[nn.Parameter]]:
    modules = dict(tower.named_modules())
    for path, after in _TRANSFORMERS_BLOCKS:
        if path in modules:
            following = [parameter for name in after if name in modules for parameter in modules[name].parameters()]
            return list(modules[path].children()), following
    # timm registers modules in the order in which they run.
    container = next((modules[name] for name in ("blocks", "stages", "layers") if name in modules), None)
    if container is not None:
        blocks = list(container.children())
    else:
        blocks = [module for name, module in tower.named_children() if re.fullmatch(r"layer\d+", name)]  # ResNet
    inside = {id(parameter) for block in blocks for parameter in block.parameters()}
    parameters = list(tower.parameters())
    last = max((place for place, parameter in enumerate(parameters) if id(parameter) in inside), default=-1)
    return blocks, parameters[last + 1 :]


class _Kind(NamedTuple):
    """How a type of text tower reads embeddings.

    Args:
        pooling: as in TowerFacts.
        context_deviation: as in TowerFacts; None for that of the token table.
        outputs: (model, raw token embeddings (n, l, e), mask (n, l) of used positions) -> token vectors (n, l, d).
    """

    pooling: Literal["mean", "end", "last"]
    context_deviation: float | None
    outputs: Callable[[Any, Tensor, Tensor], Tensor]


def _bert_tokens(model: Any, embeddings: Tensor, used: Tensor) -> Tensor:
    tokens: Tensor = model(inputs_embeds=embeddings, attention_mask=used.long()).last_hidden_state
    return tokens


def _clip_tokens(model: Any, embeddings: Tensor, used: Tensor) -> Tensor:
    del used  # causal: what is read stands before the padding
    tower = model.text_model
    hidden = tower.embeddings(inputs_embeds=embeddings)
    # Both are needed: eager attention ignores is_causal, and sdpa may get no mask because of it.
    mask = create_causal_mask(config=tower.config, inputs_embeds=hidden, attention_mask=None, past_key_values=None)
    hidden = tower.encoder(inputs_embeds=hidden, attention_mask=mask, is_causal=True).last_hidden_state
    tokens: Tensor = model.text_projection(tower.final_layer_norm(hidden))
    return tokens


def _siglip_tokens(model: Any, embeddings: Tensor, used: Tensor) -> Tensor:
    del used  # trained without a mask
    tower = model.text_model
    hidden = tower.encoder(inputs_embeds=tower.embeddings(inputs_embeds=embeddings)).last_hidden_state
    tokens: Tensor = tower.head(tower.final_layer_norm(hidden))
    return tokens


_MEAN = _Kind("mean", None, _bert_tokens)
_KINDS = {"clip": _Kind("end", 0.02, _clip_tokens), "siglip": _Kind("last", None, _siglip_tokens)}
