"""The text tower of SigLIP with its head, in the space that it shares with the image tower.

It attends to padding, so its length is fixed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from popularity.encoders.registry import PromptReading, register_encoder
from popularity.encoders.transformers_texts import TextTower


def _outputs(model: Any, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    del attention_mask  # trained without one
    hidden = model.text_model(input_ids=input_ids).last_hidden_state
    tokens = model.text_model.head(hidden)
    return tokens[:, -1], tokens


def _prompt_tokens(model: Any, embeddings: Tensor, used: Tensor) -> Tensor:
    """The tower takes no `inputs_embeds`: its embeddings, layers, final norm and head run one by one."""
    del used  # trained without a mask
    tower = model.text_model
    hidden = tower.encoder(inputs_embeds=tower.embeddings(inputs_embeds=embeddings)).last_hidden_state
    tokens: Tensor = tower.head(tower.final_layer_norm(hidden))
    return tokens


SIGLIP = TextTower(("siglip",), "SiglipModel", _outputs, "projected last position", without="vision_model")
register_encoder("siglip_text", SIGLIP.load, prompt=PromptReading("last", None, _prompt_tokens), fixed_length=True)
