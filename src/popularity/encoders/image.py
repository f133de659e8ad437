"""The shared code of image encoders. Each encoder is a file of its own, found by name (`registry.py`).

params = load_params("embed_image.efficientnet_lite0", EmbedImageParams)
encoder = load_image_encoder(params)
pixels = ImageTransform(encoder.preprocessing)(image)   # uint8 (3, size, size)
features = encoder(torch.from_numpy(pixels)[None])           # (1, encoder.out_features)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from popularity.core.config import PARAMS_FILE
from popularity.core.errors import ConfigError
from popularity.encoders.registry import find_encoder
from popularity.encoders.sources import EncoderParams, find_weights, network_entry

# An image is reduced by a whole factor, or decoded at 1/2, 1/4 or 1/8, only where its sides stay this many times longer
# than those that are resampled: the vectors then keep a cosine of .999.
REDUCING_GAP = 3.0


@dataclass(frozen=True)
class EmbedImageParams(EncoderParams):
    """An entry of section `embed_image`; `image_size` is the side of the square input in pixels."""

    image_size: Annotated[int, Field(ge=8)]


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of images that a model expects, from its own configuration, at our size.

    Args:
        size: side of the square input, pixels.
        interpolation: Pillow's name of the resampling filter.
        crop_mode: center (scale the shorter side to size / crop_share, crop the centre) or squash.
        crop_share: side of the crop as a fraction of the scaled shorter side.
        mean: per channel, of values in [0, 1].
        std: per channel.
    """

    size: int
    interpolation: str
    crop_mode: Literal["center", "squash"]
    crop_share: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if self.crop_share > 1:
            raise ValueError(f"the crop is {self.crop_share:.2f} times the scaled image; expected at most 1")


@dataclass(frozen=True)
class ImageTransform:
    """From an RGB image to uint8 (3, size, size), as timm's evaluation transform gives it, but for rounding.

    It holds no model, so that loader workers stay small, and leaves the normalisation to the encoder: bytes are a
    quarter of the size of floats. An image of more than twice REDUCING_GAP times the size is first reduced by whole
    factors.

    Args:
        preprocessing: of the encoder.
    """

    preprocessing: Preprocessing

    @property
    def scaled_side(self) -> int:
        """Pixels of the shorter side before the crop."""
        return math.floor(self.preprocessing.size / self.preprocessing.crop_share)

    def __call__(self, image: Image.Image, box: tuple[float, float, float, float] | None = None) -> Tensor:
        """The pixels of an RGB image of any size.

        Args:
            image: whole, or decoded at a reduced scale.
            box: of the pixels that the image fills (`decode_reduced`), by default all.
        """
        left, upper, right, lower = box or (0, 0, *image.size)
        width, height, side = right - left, lower - upper, self.scaled_side
        if self.preprocessing.crop_mode == "squash":
            scaled = side, side
        else:
            scaled = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
        resampling = Image.Resampling[self.preprocessing.interpolation.upper()]
        size = self.preprocessing.size
        x, y = (round((each - size) / 2) for each in scaled)
        across, down = width / scaled[0], height / scaled[1]  # pixels of the image for one of the scaled image
        # Only what the crop keeps is resampled. A rounded product may lie beyond the image by its last bit.
        kept = left + x * across, upper + y * down, left + (x + size) * across, upper + (y + size) * down
        box = kept[0], kept[1], min(kept[2], right), min(kept[3], lower)
        crop = image.resize((size, size), resampling, box=box, reducing_gap=REDUCING_GAP)
        return torch.from_numpy(np.array(crop).transpose(2, 0, 1).copy())


class ImageEncoder(nn.Module):
    """A frozen vision tower from uint8 pixels to one vector per image.

    Args:
        tower: the network.
        features: runs `tower` on normalised pixels (n, 3, size, size) and gives (n, d).
        pooling: description of that vector.
        preprocessing: of the images.

    Attributes:
        out_features: d.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, tower: nn.Module, features: Callable[[Any, Tensor], Tensor], pooling: str, preprocessing: Preprocessing
    ) -> None:
        super().__init__()
        self.tower = tower.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.features, self.pooling, self.preprocessing = features, pooling, preprocessing
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(3, 1, 1) * 255, persistent=False)
        with torch.inference_mode():
            self.out_features = self(torch.zeros(1, 3, preprocessing.size, preprocessing.size)).shape[1]

    def forward(self, pixels: Tensor) -> Tensor:
        """Vectors (n, d) of images (n, 3, size, size) with values 0 to 255."""
        normalised = (pixels.float() - self.mean) / self.std
        return self.features(self.tower, normalised.contiguous(memory_format=torch.channels_last))

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, also when layers of it are trained: no dropout, fixed batch statistics."""
        del mode
        return super().train(False)

    def describe(self) -> dict[str, Any]:
        """Pooling and preprocessing, for the metadata of a block."""
        return {"pooling": self.pooling, "preprocessing": asdict(self.preprocessing)}


def network_image_params(path: Path = PARAMS_FILE) -> EmbedImageParams:
    """The entry of section embed_image that encoders.network names: see `network_entry`."""
    return network_entry("image", EmbedImageParams, path)


def load_image_encoder(params: EmbedImageParams) -> ImageEncoder:
    """The encoder that `params` names, on the CPU.

    Raises:
        MissingWeightsError: its weights are not on this machine.
        ConfigError: no image encoder has the name `params.loader`, weights and architecture differ, or it does not
            take images of that size.
    """
    location = find_weights(params)
    try:
        encoder = find_encoder(params.loader, "image").load(location, params)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(f"embed_image: {params.model} with image_size {params.image_size}: {error}") from error
    assert isinstance(encoder, ImageEncoder), params.loader
    return encoder
