"""Small images and tar shards for tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw


def image_bytes(seed: int = 0, size: tuple[int, int] = (24, 16), **options: Any) -> bytes:
    """A JPEG of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **options)
    return stream.getvalue()


def photograph(seed: int, size: tuple[int, int], **options: Any) -> bytes:
    """A JPEG with the spectrum of a photograph, sharp shapes and lettering."""
    rng, (width, height) = np.random.default_rng(seed), size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf

    def field() -> np.ndarray[Any, Any]:
        waves = (rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)) / frequency**1.2
        values: np.ndarray[Any, Any] = np.fft.irfft2(waves, (height, width))
        values /= values.std()
        return values

    light = field()
    pixels = np.stack([0.8 * light + 0.4 * field() for _ in range(3)], axis=-1) * 45 + rng.uniform(80, 170, 3)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        left, upper, side = (
            int(rng.integers(width)),
            int(rng.integers(height)),
            int(rng.integers(width // 20, width // 4)),
        )
        draw.ellipse((left, upper, left + side, upper + side), fill=tuple(rng.integers(0, 256, 3).tolist()))
    draw.text((width // 8, height // 2), "a popular picture", fill="white", font_size=width // 12)
    stream = io.BytesIO()
    image.save(stream, "JPEG", **{"quality": 90, **options})
    return stream.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes] | tarfile.TarInfo]) -> None:
    """A tar of files (name, content) and of bare headers (links, devices)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                header = tarfile.TarInfo(member[0])
                header.size = len(member[1])
                archive.addfile(header, io.BytesIO(member[1]))
