"""The shared code of text encoders. Each encoder is a file of its own, found by name (`registry.py`).

params = load_params("embed_text.minilm", EmbedTextParams)
encoder, tokenize = load_text_encoder(params), load_tokenizer(params)
batch = tokenize(["a title", ""])
pooled, tokens = encoder(batch.input_ids, batch.attention_mask)   # (2, d), (2, l, d)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import torch
import transformers
from pydantic import Field
from torch import Tensor, nn

from popularity.core.config import PARAMS_FILE
from popularity.core.errors import ConfigError, MissingWeightsError
from popularity.encoders.registry import find_encoder
from popularity.encoders.sources import EncoderParams, find_weights, network_entry

Outputs = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class EmbedTextParams(EncoderParams):
    """An entry of section `embed_text`; longer texts are cut to `max_tokens`, special tokens included."""

    max_tokens: Annotated[int, Field(ge=3)]


class TextBatch(NamedTuple):
    """Tokenised texts, padded to one length l.

    Args:
        input_ids: (n, l) int64.
        attention_mask: (n, l) int64, 0 on padding.
        token_mask: (n, l) bool, true on the text's own tokens: neither special nor padding.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_mask: Tensor


class TextEncoder(nn.Module):
    """A frozen text tower.

    Args:
        tower: the network.
        outputs: (tower, input_ids (n, l), attention_mask (n, l)) -> pooled (n, d) and token vectors (n, l, d).
        pooling: description of the pooled vector.
        longest: number of positions of the tower.

    Attributes:
        out_features: d.
    """

    def __init__(self, tower: nn.Module, outputs: Outputs, pooling: str, longest: int) -> None:
        super().__init__()
        self.tower, self.outputs = tower.eval().requires_grad_(False), outputs
        self.pooling, self.longest = pooling, longest
        one = torch.ones(1, min(3, longest), dtype=torch.int64)
        with torch.inference_mode():
            self.out_features = self(one, one)[0].shape[1]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled vectors (n, d) and token vectors (n, l, d), both in the space of the pooled ones.

        Args:
            input_ids: (n, l) int64.
            attention_mask: (n, l), 0 on padding.
        """
        return self.outputs(self.tower, input_ids, attention_mask)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, also when layers of it are trained: no dropout."""
        del mode
        return super().train(False)


class TextTokenizer:
    """Texts to a TextBatch; needs no model, so that loader workers stay small."""

    def __init__(self, tokenizer: Any, max_tokens: int, fixed_length: bool) -> None:
        self.tokenizer, self.max_tokens, self.fixed_length = tokenizer, max_tokens, fixed_length

    def __call__(self, texts: Sequence[str]) -> TextBatch:
        coded = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.max_tokens,
            padding="max_length" if self.fixed_length else "longest",
            padding_side="right",
            return_special_tokens_mask=True,
            return_attention_mask=True,
            split_special_tokens=True,  # "[SEP]" or "<|endoftext|>" written by a user is text
            return_tensors="pt",
        )
        token_mask = (coded["special_tokens_mask"] == 0) & (coded["attention_mask"] == 1)
        return TextBatch(coded["input_ids"], coded["attention_mask"], token_mask)


def network_text_params(path: Path = PARAMS_FILE) -> EmbedTextParams:
    """The entry of section embed_text that encoders.network names: see `network_entry`."""
    return network_entry("text", EmbedTextParams, path)


def load_text_encoder(params: EmbedTextParams) -> TextEncoder:
    """The encoder that `params` names, on the CPU.

    Raises:
        MissingWeightsError: its weights are not on this machine.
        ConfigError: no text encoder has the name `params.loader`, the weights are of another architecture, or it does
            not read `max_tokens`.
    """
    registered, location = find_encoder(params.loader, "text"), find_weights(params)
    encoder = registered.load(location, params)
    assert isinstance(encoder, TextEncoder), params.loader
    longest = encoder.longest
    if params.max_tokens > longest or (registered.fixed_length and params.max_tokens < longest):
        wanted = "exactly" if registered.fixed_length else "at most"
        raise ConfigError(f"max_tokens: {params.model} reads {wanted} {longest} tokens, not {params.max_tokens}")
    return encoder


def load_tokenizer(params: EmbedTextParams) -> TextTokenizer:
    """The tokenizer in the folder of the encoder's weights.

    Raises:
        MissingWeightsError: no tokenizer.json there.
        ConfigError: no encoder has the name `params.loader`.
    """
    folder = find_weights(params)
    if not (folder / "tokenizer.json").is_file():
        raise MissingWeightsError(
            f"{params.model}: {folder} lacks tokenizer.json; run `make weights` for a hub encoder"
        )
    # The generic class: SigLIP's own class needs sentencepiece, although tokenizer.json is complete.
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return TextTokenizer(tokenizer, params.max_tokens, find_encoder(params.loader, "text").fixed_length)


def count_positions(tower: Any) -> int:
    """Number of token positions of a tower of transformers (RoBERTa types count them from pad_token_id + 1)."""
    config = tower.config.get_text_config()
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "mpnet") else 0
    return int(config.max_position_embeddings) - offset


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """L2-normalised mean (n, d) of token vectors (n, l, d) where `mask` (n, l) is 1, as sentence-transformers pools.

    Args:
        values: (n, l, d).
        mask: (n, l), 0 or 1.
    """
    weights = mask.unsqueeze(-1).float()  # (n, l, 1)
    mean = (values.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    return nn.functional.normalize(mean, dim=-1)
