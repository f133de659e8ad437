"""The preprocessing that transformers' image processor saved next to the weights."""

from __future__ import annotations

import json
from pathlib import Path

import transformers
from PIL import Image

from popularity.core.errors import MissingWeightsError
from popularity.encoders.image import Preprocessing


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
