"""The image tower of CLIP with its projection into the space that it shares with the text tower."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from popularity.encoders.registry import register_encoder
from popularity.encoders.transformers_images import ImageTower


def _features(model: Any, pixels: Tensor) -> Tensor:
    pooled = model.vision_model(pixel_values=pixels, interpolate_pos_encoding=True).pooler_output
    features: Tensor = model.visual_projection(pooled)
    return features


CLIP = ImageTower("clip", "CLIPModel", _features, "projected class token", without="text_model")
register_encoder("clip_image", CLIP.load)
