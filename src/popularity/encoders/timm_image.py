"""Image encoders of timm: a model that it knows by name, with weights from its own folder or from a weights package."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from popularity.core.errors import MissingWeightsError
from popularity.encoders.image import EmbedImageParams, ImageEncoder, Preprocessing
from popularity.encoders.registry import register_encoder

TOLERANCE = 1e-3  # of vectors with folded batch norms, as a share of their largest value


def load_timm(location: Path, params: EmbedImageParams) -> ImageEncoder:
    """The timm model `params.model` without its classifier, its batch norms folded into the convolutions.

    Args:
        location: a folder that timm wrote (config.json, model.safetensors), or a .pth file of tensors in the order of
            the model's definition.
        params: an entry of embed_image.

    Raises:
        MissingWeightsError: the folder lacks model.safetensors.
        ValueError: the tensors of the file are not those of the model.
    """
    model: Any
    if location.is_dir():
        if not (location / "model.safetensors").is_file():  # timm would read a pickle instead
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
    return ImageEncoder(
        fold_batch_norms(model, params.image_size),
        _features,
        "timm's pooled features before the classifier",
        preprocessing,
    )


def fold_batch_norms(model: nn.Module, size: int) -> nn.Module:
    """The model in evaluation mode, with batch norms as part of the convolutions before them: fewer operations.

    Vectors are the same but for rounding. A model of which that does not hold stays as it is: one in which a batch norm
    reads something else than the convolution that was registered before it, or whose convolutions change their weights.
    Layers that train with the network (`train.unfreeze_layers`) train the folded weights.

    Args:
        model: from pixels (n, 3, size, size) to vectors.
        size: pixels of a side.
    """
    model = model.eval()
    if not any(isinstance(each, nn.BatchNorm2d) for each in model.modules()):
        return model
    folded = copy.deepcopy(model)
    for parent in [*folded.modules()]:
        for (before, convolution), (after, norm) in pairwise([*parent.named_children()]):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
                setattr(parent, before, fuse_conv_bn_eval(convolution, norm))
                setattr(parent, after, getattr(norm, "act", nn.Identity()))  # timm's batch norms hold the activation
    pixels = torch.randn((4, 3, size, size), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = model(pixels), folded(pixels)
    return folded if (found - expected).abs().max() <= TOLERANCE * expected.abs().max() else model


def load_by_position(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copies a checkpoint whose names differ from the model's, tensor by tensor in order of definition.

    Args:
        model: whose tensors are replaced.
        tensors: of the checkpoint, by their names there, in their order.

    Raises:
        ValueError: another number of tensors, or a pair that differs in shape or in kind (the end of the
            name: weight, running_mean, ...).
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


def _features(model: Any, pixels: Tensor) -> Tensor:
    features: Tensor = model(pixels)
    return features


register_encoder("timm_image", load_timm)
