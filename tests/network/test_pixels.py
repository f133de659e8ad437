"""Pixels of unfrozen training: those that embed_image reads, without the statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from popularity.core.contracts import IMAGES, read_table
from popularity.encoders import image_blocks
from popularity.encoders.image import ImageTransform, load_image_encoder
from popularity.encoders.image_blocks import ImageBatches
from tests.encoders.tiny_encoders import make_images


def test_pixels_without_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_images(tmp_path)
    params = images.params()
    transform = ImageTransform(load_image_encoder(params).preprocessing)
    stored = read_table(images.table, IMAGES).filter(pl.col("status") == "ok")
    rows = range(stored.height)
    whole = ImageBatches(images.root, stored, params.image_size, transform)(rows)

    def refuse(_image: Any) -> Any:
        raise AssertionError("nobody reads the statistics")

    monkeypatch.setattr(image_blocks, "image_statistics", refuse)
    found = ImageBatches(images.root, stored, params.image_size, transform, described=False)(rows)
    assert torch.equal(found.pixels, whole.pixels)
    assert torch.equal(found.decoded, whole.decoded)
    assert found.statistics.shape == (0, whole.statistics.shape[1])
