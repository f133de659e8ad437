"""The text tower of SigLIP, from a folder that transformers wrote. It attends to padding, so its length is fixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from popularity.encoders.registry import PromptReading, register_encoder
from popularity.encoders.sources import EncoderParams
from popularity.encoders.text import TextEncoder, count_positions
from popularity.encoders.transformers_loading import load_tower, require_model_type


def load_siglip_text(folder: Path, params: EncoderParams) -> TextEncoder:
    """SigLIP's text tower with its head, in the space that it shares with the image tower.

    Args:
        folder: config.json and safetensors.
        params: section embed_text.

    Raises:
        MissingWeightsError: the folder lacks tensors.
        ConfigError: it holds another type of model.
    """
    del params
    require_model_type(folder, ("siglip",))
    tower = load_tower("SiglipModel", folder, without="vision_model")
    return TextEncoder(tower, _outputs, "projected last position", count_positions(tower))


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


register_encoder("siglip_text", load_siglip_text, prompt=PromptReading("last", None, _prompt_tokens), fixed_length=True)
