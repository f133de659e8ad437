"""Mean-pooled text encoders, as sentence-transformers has them: BERT, DistilBERT, MPNet, RoBERTa, XLM-RoBERTa."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from popularity.encoders.registry import PromptReading, register_encoder
from popularity.encoders.sources import EncoderParams
from popularity.encoders.text import TextEncoder, count_positions, masked_mean
from popularity.encoders.transformers_loading import load_tower, require_model_type

MODEL_TYPES = ("bert", "distilbert", "mpnet", "roberta", "xlm-roberta")


def load_bert(folder: Path, params: EncoderParams) -> TextEncoder:
    """A mean-pooled text tower.

    Args:
        folder: config.json and safetensors, as transformers or sentence-transformers wrote them.
        params: section embed_text.

    Raises:
        MissingWeightsError: the folder lacks tensors.
        ConfigError: it holds another type of model.
    """
    del params
    require_model_type(folder, MODEL_TYPES)
    tower = load_tower("AutoModel", folder, optional=("pooler.",))  # BERT's pooler is not used
    return TextEncoder(tower, _outputs, "mean over the attention mask, L2-normalised", count_positions(tower))


def _outputs(model: Any, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    tokens = model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    return masked_mean(tokens, attention_mask), tokens


def _prompt_tokens(model: Any, embeddings: Tensor, used: Tensor) -> Tensor:
    tokens: Tensor = model(inputs_embeds=embeddings, attention_mask=used.long()).last_hidden_state
    return tokens


register_encoder("bert_text", load_bert, prompt=PromptReading("mean", None, _prompt_tokens))
