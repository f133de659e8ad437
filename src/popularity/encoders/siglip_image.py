"""The image tower of SigLIP with its attention pooling, in the space that it shares with the text tower."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from popularity.encoders.registry import register_encoder
from popularity.encoders.transformers_images import ImageTower


def _features(model: Any, pixels: Tensor) -> Tensor:
    features: Tensor = model.vision_model(pixel_values=pixels, interpolate_pos_encoding=True).pooler_output
    return features


SIGLIP = ImageTower("siglip", "SiglipModel", _features, "attention pooling head", without="text_model")
register_encoder("siglip_image", SIGLIP.load)
