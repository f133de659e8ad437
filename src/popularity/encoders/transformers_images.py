"""Image towers from folders that transformers wrote, with the preprocessing that its image processor saved there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from PIL import Image
from torch import Tensor

from popularity.core.errors import MissingWeightsError
from popularity.encoders.image import EmbedImageParams, ImageEncoder, Preprocessing
from popularity.encoders.transformers_loading import load_tower, require_model_type


@dataclass(frozen=True)
class ImageTower:
    """An image tower of transformers and how its vectors are read.

    Args:
        model_type: as config.json names it.
        class_name: the class of transformers that the folder holds.
        features: (model, normalised pixels (n, 3, size, size)) -> (n, d).
        pooling: description of that vector.
        without: submodule that is not needed, such as the text tower of a dual encoder.
    """

    model_type: str
    class_name: str
    features: Callable[[Any, Tensor], Tensor]
    pooling: str
    without: str = ""

    def load(self, folder: Path, params: EmbedImageParams) -> ImageEncoder:
        """The encoder, on the CPU.

        Args:
            folder: config.json, safetensors and preprocessor_config.json.
            params: an entry of embed_image.

        Raises:
            MissingWeightsError: the folder lacks one of them, or tensors.
            ConfigError: it holds another type of model.
        """
        require_model_type(folder, (self.model_type,))
        tower = load_tower(self.class_name, folder, without=self.without)
        return ImageEncoder(tower, self.features, self.pooling, read_preprocessing(folder, params.image_size))


def read_preprocessing(folder: Path, size: int) -> Preprocessing:
    """The preprocessing of preprocessor_config.json, at our size.

    Args:
        folder: as save_pretrained wrote it.
        size: side of the square input, pixels.

    Raises:
        MissingWeightsError: no usable preprocessor_config.json there.
    """
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)  # type: ignore[no-untyped-call]
    except (OSError, json.JSONDecodeError) as error:
        raise MissingWeightsError(
            f"{folder}: no usable preprocessor_config.json; the image processor belongs next to the weights"
        ) from error
    crops = processor.do_center_crop and processor.size.shortest_edge is not None
    return Preprocessing(
        size=size,
        interpolation=Image.Resampling(processor.resample).name.lower(),
        crop_mode="center" if crops else "squash",
        crop_share=processor.crop_size.height / processor.size.shortest_edge if crops else 1.0,
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
    )
