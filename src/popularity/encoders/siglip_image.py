"""The image tower of SigLIP, from a folder that transformers wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from popularity.encoders.image import EmbedImageParams, ImageEncoder
from popularity.encoders.image_processor import read_preprocessing
from popularity.encoders.registry import register_encoder
from popularity.encoders.transformers_loading import load_tower, require_model_type


def load_siglip_image(folder: Path, params: EmbedImageParams) -> ImageEncoder:
    """SigLIP's image tower with its attention pooling, in the space that it shares with the text tower.

    Args:
        folder: config.json, safetensors and preprocessor_config.json.
        params: section embed_image.

    Raises:
        MissingWeightsError: the folder lacks one of them, or tensors.
        ConfigError: it holds another type of model.
    """
    require_model_type(folder, ("siglip",))
    tower = load_tower("SiglipModel", folder, without="text_model")
    return ImageEncoder(tower, _features, "attention pooling head", read_preprocessing(folder, params.image_size))


def _features(model: Any, pixels: Tensor) -> Tensor:
    features: Tensor = model.vision_model(pixel_values=pixels, interpolate_pos_encoding=True).pooler_output
    return features


register_encoder("siglip_image", load_siglip_image)
