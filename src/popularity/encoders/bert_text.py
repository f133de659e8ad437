"""Mean-pooled text encoders, as sentence-transformers has them: BERT, DistilBERT, MPNet, RoBERTa, XLM-RoBERTa."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from popularity.encoders.registry import PromptReading, register_encoder
from popularity.encoders.text import masked_mean
from popularity.encoders.transformers_texts import TextTower

MODEL_TYPES = ("bert", "distilbert", "mpnet", "roberta", "xlm-roberta")


def _outputs(model: Any, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    tokens = model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    return masked_mean(tokens, attention_mask), tokens


def _prompt_tokens(model: Any, embeddings: Tensor, used: Tensor) -> Tensor:
    mask = used.long()
    if model.config.model_type != "mpnet" and model.config._attn_implementation == "sdpa":
        # Of a mask (n, l) transformers asks the device whether it hides anything; this one is taken as it is.
        mask = used[:, None, None].expand(-1, 1, used.shape[1], -1)
    tokens: Tensor = model(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
    return tokens


BERT = TextTower(
    MODEL_TYPES,
    "AutoModel",
    _outputs,
    "mean over the attention mask, L2-normalised",
    optional=("pooler.",),  # BERT's pooler is not used
)
register_encoder("bert_text", BERT.load, prompt=PromptReading("mean", None, _prompt_tokens))
