"""DINOv2, an image encoder, read at its class token."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from popularity.encoders.registry import register_encoder
from popularity.encoders.transformers_images import ImageTower


def _features(model: Any, pixels: Tensor) -> Tensor:
    features: Tensor = model(pixel_values=pixels).pooler_output
    return features


DINOV2 = ImageTower("dinov2", "Dinov2Model", _features, "class token after the last norm")
register_encoder("dinov2_image", DINOV2.load)
