"""DINOv2, an image encoder, from a folder that transformers wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from popularity.encoders.image import EmbedImageParams, ImageEncoder
from popularity.encoders.image_processor import read_preprocessing
from popularity.encoders.registry import register_encoder
from popularity.encoders.transformers_loading import load_tower, require_model_type


def load_dinov2(folder: Path, params: EmbedImageParams) -> ImageEncoder:
    """DINOv2, read at its class token.

    Args:
        folder: config.json, safetensors and preprocessor_config.json.
        params: section embed_image.

    Raises:
        MissingWeightsError: the folder lacks one of them, or tensors.
        ConfigError: it holds another type of model.
    """
    require_model_type(folder, ("dinov2",))
    preprocessing = read_preprocessing(folder, params.image_size)
    return ImageEncoder(load_tower("Dinov2Model", folder), _features, "class token after the last norm", preprocessing)


def _features(model: Any, pixels: Tensor) -> Tensor:
    features: Tensor = model(pixel_values=pixels).pooler_output
    return features


register_encoder("dinov2_image", load_dinov2)
