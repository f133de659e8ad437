"""Image encoders: timm models, and the vision towers of CLIP, SigLIP and DINOv2 from transformers.

params = load_params("embed_image", EmbedImageParams)
encoder = load_image_encoder(params)
pixels = picture_transform(encoder.preprocessing)(picture)   # uint8 (3, size, size)
features = encoder(torch.from_numpy(pixels)[None])           # (1, encoder.out_features)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import timm
import torch
import transformers
from PIL import Image
from pydantic import Field
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from popularity.encoders.sources import EncoderParams, find_weights
from popularity.encoders.transformers_loading import load_tower, read_model_type
from popularity.errors import ConfigError, MissingWeightsError


@dataclass(frozen=True)
class EmbedImageParams(EncoderParams):
    """Section `embed_image`; `image_size` is the side of the square input in pixels."""

    library: Literal["timm", "transformers"]
    image_size: Annotated[int, Field(ge=8)]


@dataclass(frozen=True)
class Preprocessing:
    """What a model wants its pictures to go through, taken from its own configuration, at our size.

    Args:
        size: side of the square input, pixels.
        interpolation: Pillow's name of the resampling filter.
        crop_mode: center (scale the shorter side to size / crop_share, cut the middle) or squash.
        crop_share: side of the cut-out as a share of the scaled shorter side.
        mean: per channel, of values in [0, 1].
        std: per channel.
    """

    size: int
    interpolation: str
    crop_mode: Literal["center", "squash"]
    crop_share: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def picture_transform(preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """A function from an RGB picture to uint8 (3, size, size).

    It holds no model, so that loader workers stay light, and leaves the normalisation to the encoder: whole
    numbers are a quarter of the bytes to hand over.
    """
    transform: Callable[[Image.Image], Tensor] = create_transform(
        (3, preprocessing.size, preprocessing.size),
        interpolation=preprocessing.interpolation,
        crop_mode=preprocessing.crop_mode,
        crop_pct=preprocessing.crop_share,
        use_prefetcher=True,  # timm's way to ask for unnormalised uint8
    )
    return transform


class ImageEncoder(nn.Module):
    """A frozen vision tower from uint8 pixels to one vector per picture.

    Args:
        tower: the network.
        features: runs `tower` on normalised pixels (n, 3, size, size) and gives (n, d).
        pooling: in words, what that vector is.
        preprocessing: of the pictures.

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
        """Vectors (n, d) of pictures (n, 3, size, size) with values 0 to 255."""
        normalised = (pixels.float() - self.mean) / self.std
        return self.features(self.tower, normalised.contiguous(memory_format=torch.channels_last))

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, also when blocks of it are trained: no dropout, fixed batch statistics."""
        del mode
        return super().train(False)

    def describe(self) -> dict[str, Any]:
        return {"pooling": self.pooling, "preprocessing": asdict(self.preprocessing)}


def load_image_encoder(params: EmbedImageParams) -> ImageEncoder:
    """The encoder that `params` names, on the CPU.

    Raises:
        MissingWeightsError: its weights are not on this machine.
        ConfigError: weights and architecture differ, or it does not take pictures of that size.
    """
    location = find_weights(params)
    load = _from_timm if params.library == "timm" else _from_transformers
    try:
        return load(location, params)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(f"embed_image: {params.model} with image_size {params.image_size}: {error}") from error


def _from_timm(location: Path, params: EmbedImageParams) -> ImageEncoder:
    model: Any
    if location.is_dir():
        if not (location / "model.safetensors").is_file():  # timm would take a pickle in its place
            raise MissingWeightsError(f"{params.model}: {location} lacks model.safetensors")
        model = timm.create_model(f"local-dir:{location}", pretrained=True)
    else:
        model = timm.create_model(params.model, pretrained=False)
        load_by_position(model, torch.load(location, map_location="cpu", weights_only=True))
    wanted = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    model.reset_classifier(0)
    if hasattr(model, "set_input_size"):  # models with position embeddings
        model.set_input_size(img_size=(params.image_size, params.image_size))
    preprocessing = Preprocessing(
        size=params.image_size,
        interpolation=wanted["interpolation"],
        crop_mode="squash" if wanted["crop_mode"] == "squash" else "center",
        crop_share=wanted["crop_pct"],
        mean=wanted["mean"],
        std=wanted["std"],
    )
    return ImageEncoder(model, _timm_features, "timm's pooled features before the classifier", preprocessing)


def load_by_position(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copies a checkpoint whose names differ from the model's, tensor by tensor in order of definition.

    Raises:
        ValueError: another number of tensors, or a pair that differs in shape or in kind (the last part of
            the name: weight, running_mean, ...).
    """
    own = model.state_dict()
    if len(own) != len(tensors):
        raise ValueError(f"the model has {len(own)} tensors, the weights {len(tensors)}")
    for (name, tensor), (other_name, other) in zip(own.items(), tensors.items(), strict=True):
        if tensor.shape != other.shape or name.rpartition(".")[2] != other_name.rpartition(".")[2]:
            raise ValueError(
                f"{name} {tuple(tensor.shape)} of the model stands where the weights have "
                f"{other_name} {tuple(other.shape)}"
            )
    model.load_state_dict(dict(zip(own, tensors.values(), strict=True)))


def _timm_features(model: Any, pixels: Tensor) -> Tensor:
    features: Tensor = model(pixels)
    return features


def _clip_features(model: Any, pixels: Tensor) -> Tensor:
    pooled = model.vision_model(pixel_values=pixels, interpolate_pos_encoding=True).pooler_output
    features: Tensor = model.visual_projection(pooled)
    return features


def _siglip_features(model: Any, pixels: Tensor) -> Tensor:
    features: Tensor = model.vision_model(pixel_values=pixels, interpolate_pos_encoding=True).pooler_output
    return features


def _dinov2_features(model: Any, pixels: Tensor) -> Tensor:
    features: Tensor = model(pixel_values=pixels).pooler_output
    return features


# model_type -> class in transformers, its part that is not needed, what to read, and that in words
_TOWERS: dict[str, tuple[str, str, Callable[[Any, Tensor], Tensor], str]] = {
    "clip": ("CLIPModel", "text_model", _clip_features, "projected class token"),
    "siglip": ("SiglipModel", "text_model", _siglip_features, "attention pooling head"),
    "dinov2": ("Dinov2Model", "", _dinov2_features, "class token after the last norm"),
}


def _from_transformers(location: Path, params: EmbedImageParams) -> ImageEncoder:
    class_name, unneeded, features, pooling = _TOWERS[read_model_type(location, tuple(_TOWERS))]
    tower = load_tower(class_name, location, without=unneeded)
    return ImageEncoder(tower, features, pooling, _processor_preprocessing(location, params.image_size))


def _processor_preprocessing(folder: Path, size: int) -> Preprocessing:
    """What the image processor saved beside the weights asks for."""
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)  # type: ignore[no-untyped-call]
    except (OSError, json.JSONDecodeError) as error:
        raise MissingWeightsError(
            f"{folder}: no usable preprocessor_config.json; the image processor belongs beside the weights"
        ) from error
    cuts = processor.do_center_crop and processor.size.shortest_edge is not None
    return Preprocessing(
        size=size,
        interpolation=Image.Resampling(processor.resample).name.lower(),
        crop_mode="center" if cuts else "squash",
        crop_share=processor.crop_size.height / processor.size.shortest_edge if cuts else 1.0,
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
    )
