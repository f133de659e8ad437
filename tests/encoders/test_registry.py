"""A new encoder is one file and one line: here this file and its two calls of register_encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from popularity.core.contracts import IMAGES, POSTS, write_table
from popularity.core.errors import ConfigError
from popularity.core.vectors import read_block, read_tokens
from popularity.encoders.image import EmbedImageParams, ImageEncoder, Preprocessing, load_image_encoder
from popularity.encoders.image_blocks import embed_images
from popularity.encoders.prompting import load_prompt_tower
from popularity.encoders.registry import Kind, encoder_files, find_encoder, register_encoder
from popularity.encoders.text import EmbedTextParams, TextEncoder, load_text_encoder, load_tokenizer
from popularity.encoders.text_blocks import embed_texts
from tests.encoders.tiny_encoders import image_params, text_params, word_tokenizer
from tests.small_tables import small_posts

COLOURS = {"red": (200, 20, 20), "blue": (20, 20, 200)}


def load_mean_colour(folder: Path, params: EmbedImageParams) -> ImageEncoder:
    """The mean of each channel, from 0 to 1, times the weights of the folder."""
    tower = nn.Linear(3, 3, bias=False)
    tower.load_state_dict(load_file(folder / "model.safetensors"))
    preprocessing = Preprocessing(params.image_size, "bilinear", "squash", 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return ImageEncoder(tower, lambda model, pixels: model(pixels.mean(dim=(2, 3))), "mean colour", preprocessing)


def load_bag_of_words(folder: Path, params: EmbedTextParams) -> TextEncoder:
    """The sum of the words' vectors."""
    tower = nn.Embedding(20, 4)
    tower.load_state_dict(load_file(folder / "model.safetensors"))
    return TextEncoder(tower, bag_of_words, "sum over the attention mask", longest=params.max_tokens)


def bag_of_words(model: Any, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    tokens: Tensor = model(input_ids)
    return (tokens * attention_mask[:, :, None]).sum(dim=1), tokens


register_encoder("mean_colour_image", load_mean_colour)
register_encoder("bag_of_words_text", load_bag_of_words)


def weights(folder: Path, tensor: Tensor) -> Path:
    folder.mkdir()
    save_file({"weight": tensor}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({}))
    return folder


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POPULARITY_WORKERS", "0")


def test_two_images_through_an_encoder_of_our_own(tmp_path: Path) -> None:
    rows = []
    for pid, (name, colour) in zip(("1", "2"), COLOURS.items(), strict=True):
        Image.new("RGB", (9, 9), colour).save(tmp_path / f"{name}.png")
        size = (tmp_path / f"{name}.png").stat().st_size
        rows.append((pid, f"{name}.png", 0, size, 9, 9, "RGB", "ok", ""))
    schema = {name: column.dtype for name, column in IMAGES.columns.items()}
    write_table(pl.DataFrame(rows, schema=schema, orient="row"), tmp_path / "images.parquet", IMAGES)
    folder = weights(tmp_path / "weights", 2 * torch.eye(3))
    params = image_params(loader="mean_colour_image", model="mean colour", weights=f"path:{folder}", image_size=8)
    embed_images(tmp_path, tmp_path / "images.parquet", tmp_path / "out", params)
    block = read_block(tmp_path / "out", "pooled")
    np.testing.assert_allclose(block.values, 2 * np.array(list(COLOURS.values())) / 255, atol=1e-3)
    assert block.metadata["pooling"] == "mean colour"


def test_two_texts_through_an_encoder_of_our_own(tmp_path: Path) -> None:
    folder = weights(tmp_path / "weights", torch.arange(80.0).view(20, 4))
    tokenizer = word_tokenizer("<s>", "</s>", "<pad>")
    tokenizer.save_pretrained(folder)
    posts = small_posts(train=2, test=0).with_columns(title=pl.Series(["cat sea", ""]), tags=pl.Series(["", "dog"]))
    write_table(posts, tmp_path / "posts.parquet", POSTS)
    params = text_params(loader="bag_of_words_text", model="words", weights=f"path:{folder}", max_tokens=6)
    embed_texts(tmp_path / "posts.parquet", tmp_path / "out", params)
    block, tokens = read_block(tmp_path / "out", "post"), read_tokens(tmp_path / "out", "tokens")
    for row, text in enumerate(("cat sea", "dog")):
        ids = tokenizer(text)["input_ids"]
        vectors = np.arange(80.0).reshape(20, 4)[ids]
        np.testing.assert_array_equal(block.values[row], vectors.sum(axis=0))
        np.testing.assert_array_equal(tokens.values[tokens.offsets[row] : tokens.offsets[row + 1]], vectors[1:-1])
    with pytest.raises(ConfigError, match="bag_of_words_text reads no soft prompts"):
        load_prompt_tower(params)


def test_a_name_that_no_encoder_of_the_kind_has() -> None:
    with pytest.raises(ConfigError, match=r"no image encoder 'resnet_image'; there are clip_image, .*timm_image\. A"):
        load_image_encoder(image_params(loader="resnet_image"))
    with pytest.raises(ConfigError, match=r"embed_image\.loader: no image encoder 'bert_text'"):
        load_image_encoder(image_params(loader="bert_text"))
    with pytest.raises(ConfigError, match=r"embed_text\.loader: no text encoder 'timm_image'"):
        load_text_encoder(text_params(loader="timm_image"))
    with pytest.raises(ConfigError, match="no text encoder 'weights'"):  # a file without an encoder
        load_tokenizer(text_params(loader="weights"))


def test_a_name_is_given_once() -> None:
    register_encoder("mean_colour_image", load_mean_colour)  # the same again, as when a module is loaded anew
    with pytest.raises(ValueError, match="mean_colour_image"):
        register_encoder("mean_colour_image", load_bag_of_words)
    with pytest.raises(ValueError, match="ends in _image or _text"):
        register_encoder("mean_colour", load_mean_colour)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_every_file_registers_the_encoder_of_its_name(kind: Kind) -> None:
    assert len(encoder_files(kind)) >= 3
    for name in encoder_files(kind):
        assert find_encoder(name, kind).name == name
        assert (find_encoder(name, kind).prompt is not None) == (kind == "text")
