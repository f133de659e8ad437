"""The text tower of CLIP with its projection into the space that it shares with the image tower."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from popularity.encoders.registry import PromptReading, register_encoder
from popularity.encoders.transformers_texts import TextTower


def _outputs(model: Any, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    hidden = model.text_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    tokens = model.text_projection(hidden)
    last = attention_mask.sum(dim=1) - 1  # the end token; its id also pads, and some configs name another
    return tokens[torch.arange(len(tokens), device=tokens.device), last], tokens


def _prompt_tokens(model: Any, embeddings: Tensor, used: Tensor) -> Tensor:
    """The tower takes no `inputs_embeds`: its embeddings, layers, final norm and projection run one by one."""
    del used  # attention is causal, and the padding comes last
    tower = model.text_model
    hidden = tower.embeddings(inputs_embeds=embeddings)
    # Both are needed: eager attention ignores is_causal, and sdpa may get no mask because of it.
    mask = create_causal_mask(config=tower.config, inputs_embeds=hidden, attention_mask=None, past_key_values=None)
    hidden = tower.encoder(inputs_embeds=hidden, attention_mask=mask, is_causal=True).last_hidden_state
    tokens: Tensor = model.text_projection(tower.final_layer_norm(hidden))
    return tokens


CLIP = TextTower(("clip",), "CLIPModel", _outputs, "projected end token", without="vision_model")
register_encoder("clip_text", CLIP.load, prompt=PromptReading("end", 0.02, _prompt_tokens))
