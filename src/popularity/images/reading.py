"""Reads an image of images.parquet: bytes from a shard, decoded to RGB under a pixel limit."""

from __future__ import annotations

import io
import os
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from popularity.core.errors import DataError, PopularityError

# Formats of photo sites. Pillow knows more, some of which start other programs (EPS) or hide text (PDF).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")

_EXPECTED = "the file as it was when index_images read it"
_FIX = "restore the file, or index the images again: dvc repro -f index_images"

# Exceptions of Pillow's decoders on hostile or broken content; its UnidentifiedImageError is an OSError.
_BROKEN_CONTENT = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, IndexError, KeyError, OverflowError),
    *(MemoryError, AttributeError, RuntimeError, struct.error, zlib.error),
)


class ImageDecodeError(PopularityError):
    """An image whose content cannot be turned into pixels, or that has more of them than allowed."""


class ImageReader:
    """Reads images by (shard, offset, length) under the root of a data set.

    Tar shards are opened on first use in each process and read by position: DataLoader workers and threads share a
    reader without a shared file position. An image file is closed at once.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._shards: dict[str, BinaryIO] = {}

    def __getstate__(self) -> dict[str, Any]:
        """The reader as a worker receives it, without open files."""
        return {"root": self.root, "_shards": {}}

    def read(self, shard: str, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset` of the file `shard`.

        Args:
            shard: path below the root.
            offset: bytes from the start of the shard.
            length: bytes.

        Raises:
            DataError: the shard is missing or shorter than when the images were indexed.
        """
        path = self.root / shard
        try:
            if path.suffix == ".tar":
                stream = self._shards.get(shard) or self._shards.setdefault(shard, path.open("rb"))
                content = os.pread(stream.fileno(), length, offset)
            else:
                with path.open("rb") as stream:
                    content = os.pread(stream.fileno(), length, offset)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", file=path, expected=_EXPECTED, fix=_FIX) from error
        if len(content) != length:
            problem = f"ends {length - len(content)} bytes before the end of the image at byte {offset}"
            raise DataError(problem, file=path, expected=_EXPECTED, fix=_FIX)
        return content

    def close(self) -> None:
        """Closes the shards; the next read opens them again."""
        while self._shards:
            self._shards.popitem()[1].close()


@dataclass(frozen=True)
class ImageHeader:
    """Size in pixels and Pillow's mode, as the header states them (before any EXIF rotation)."""

    width: int
    height: int
    mode: str


def read_header(stream: IO[bytes]) -> ImageHeader:
    """Size and mode of the image that starts at the stream's position 0; no pixel is decoded.

    Raises:
        ImageDecodeError: no header of a known format.
        Image.DecompressionBombError: so many pixels that Pillow refuses to open it.
    """
    try:
        with Image.open(stream, formats=FORMATS) as image:
            return ImageHeader(*image.size, image.mode)
    except _BROKEN_CONTENT as error:
        raise ImageDecodeError(f"no readable image header: {error}") from error


def decode_image(content: bytes, max_pixels: int) -> Image.Image:
    """The image as upright RGB (first frame, EXIF orientation applied, transparency on white).

    Args:
        content: bytes of the file.
        max_pixels: largest accepted width times height.

    Raises:
        ImageDecodeError: unknown format, damaged or truncated content, or more than `max_pixels` pixels.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageDecodeError(f"{width} x {height} pixels, more than the {max_pixels} allowed")
            image.load()
            upright: Image.Image = image
            with suppress(*_BROKEN_CONTENT):  # a damaged EXIF block costs the rotation, not the image
                upright = ImageOps.exif_transpose(image)
            return _as_rgb(upright)
    except (*_BROKEN_CONTENT, Image.DecompressionBombError) as error:
        raise ImageDecodeError(f"cannot be decoded: {error}") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        # convert() would clip 16-bit values at 255 and turn most pixels white.
        values = np.asarray(image, dtype=np.float64)
        scale = 257.0 if image.mode.startswith("I;16") or values.max() > 255 else 1.0
        image = Image.fromarray(np.clip(values / scale, 0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    # A copy if the mode is RGB already: the result must not depend on the closed source.
    return image.convert("RGB") if image.mode != "RGB" else image.copy()
