"""Text encoders: mean-pooled BERT types (MiniLM), and the text towers of CLIP and SigLIP.

params = load_params("embed_text", EmbedTextParams)
encoder, tokenize = load_text_encoder(params), load_tokenizer(params)
batch = tokenize(["a title", ""])
pooled, tokens = encoder(batch.input_ids, batch.attention_mask)   # (2, d), (2, l, d)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Self

import torch
import transformers
from pydantic import Field
from torch import Tensor, nn

from popularity.encoders.sources import EncoderParams, find_weights
from popularity.encoders.transformers_loading import load_tower, read_model_type
from popularity.errors import ConfigError, MissingWeightsError


@dataclass(frozen=True)
class EmbedTextParams(EncoderParams):
    """Section `embed_text`; longer texts are cut to `max_tokens`, special tokens included."""

    max_tokens: Annotated[int, Field(ge=3)]


class TextBatch(NamedTuple):
    """Tokenised texts, padded to one length l.

    Args:
        input_ids: (n, l) int64.
        attention_mask: (n, l) int64, 0 on padding.
        content: (n, l) bool, true on the text's own tokens: neither special nor padding.
    """

    input_ids: Tensor
    attention_mask: Tensor
    content: Tensor


class TextTower(NamedTuple):
    """How a kind of text tower is loaded and read.

    Args:
        class_name: in transformers.
        unneeded: the class's part that is not needed.
        outputs: (model, input_ids, attention_mask) -> pooled (n, d) and token vectors (n, l, d).
        pooling: in words, what the pooled vector is.
        fixed_length: the tower reads its full length whatever the text (SigLIP attends to its padding).
    """

    class_name: str
    unneeded: str
    outputs: Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]
    pooling: str
    fixed_length: bool


class TextEncoder(nn.Module):
    """A frozen text tower.

    Attributes:
        out_features: d.
        longest: tokens that the tower has positions for.
    """

    def __init__(self, tower: nn.Module, kind: TextTower) -> None:
        super().__init__()
        self.tower, self.kind, self.longest = tower.eval().requires_grad_(False), kind, _longest(tower)
        one = torch.ones(1, self.longest if kind.fixed_length else 3, dtype=torch.int64)
        with torch.inference_mode():
            self.out_features = self(one, one)[0].shape[1]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled vectors (n, d) and token vectors (n, l, d), both in the space of the pooled ones."""
        return self.kind.outputs(self.tower, input_ids, attention_mask)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, also when blocks of it are trained: no dropout."""
        del mode
        return super().train(False)


class TextTokenizer:
    """Texts to a TextBatch; needs no model, so that loader workers stay light."""

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
        content = (coded["special_tokens_mask"] == 0) & (coded["attention_mask"] == 1)
        return TextBatch(coded["input_ids"], coded["attention_mask"], content)


def load_text_encoder(params: EmbedTextParams) -> TextEncoder:
    """The encoder that `params` names, on the CPU.

    Raises:
        MissingWeightsError: its weights are not on this machine.
        ConfigError: its architecture is not supported, or it does not read `max_tokens`.
    """
    folder = find_weights(params)
    kind = _TOWERS[read_model_type(folder, tuple(_TOWERS))]
    tower = load_tower(kind.class_name, folder, kind.unneeded, optional=("pooler.",))  # BERT's own pooler is not used
    longest = _longest(tower)
    if params.max_tokens > longest or (kind.fixed_length and params.max_tokens < longest):
        wanted = "exactly" if kind.fixed_length else "at most"
        raise ConfigError(
            f"embed_text.max_tokens: {params.model} reads {wanted} {longest} tokens, not {params.max_tokens}"
        )
    return TextEncoder(tower, kind)


def load_tokenizer(params: EmbedTextParams) -> TextTokenizer:
    """The tokenizer beside the encoder's weights.

    Raises:
        MissingWeightsError: no tokenizer.json there.
    """
    folder = find_weights(params)
    kind = _TOWERS[read_model_type(folder, tuple(_TOWERS))]
    if not (folder / "tokenizer.json").is_file():
        raise MissingWeightsError(
            f"{params.model}: {folder} lacks tokenizer.json; run `make weights` for a hub encoder"
        )
    # The generic class: SigLIP's own asks for sentencepiece although tokenizer.json holds all of it.
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return TextTokenizer(tokenizer, params.max_tokens, kind.fixed_length)


def _longest(tower: Any) -> int:
    """Tokens that the tower has positions for (RoBERTa types count theirs from pad_token_id + 1)."""
    config = tower.config.get_text_config()
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "mpnet") else 0
    return int(config.max_position_embeddings) - offset


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """L2-normalised mean (n, d) of token vectors (n, l, d) where `mask` (n, l) is 1, as sentence-transformers pools."""
    weights = mask.unsqueeze(-1).float()  # (n, l, 1)
    mean = (values.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    return nn.functional.normalize(mean, dim=-1)


def _bert_outputs(model: Any, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    tokens = model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    return masked_mean(tokens, attention_mask), tokens


def _clip_outputs(model: Any, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    hidden = model.text_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    tokens = model.text_projection(hidden)
    last = attention_mask.sum(dim=1) - 1  # the end token: its id also pads, and some configs misname it
    return tokens[torch.arange(len(tokens), device=tokens.device), last], tokens


def _siglip_outputs(model: Any, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    del attention_mask  # trained without one
    hidden = model.text_model(input_ids=input_ids).last_hidden_state
    tokens = model.text_model.head(hidden)
    return tokens[:, -1], tokens


_MEAN = TextTower("AutoModel", "", _bert_outputs, "mean over the attention mask, L2-normalised", fixed_length=False)
_TOWERS = {
    **dict.fromkeys(("bert", "distilbert", "mpnet", "roberta", "xlm-roberta"), _MEAN),
    "clip": TextTower("CLIPModel", "vision_model", _clip_outputs, "projected end token", fixed_length=False),
    "siglip": TextTower("SiglipModel", "vision_model", _siglip_outputs, "projected last position", fixed_length=True),
}
