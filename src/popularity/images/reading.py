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
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, features

from popularity.core.errors import DataError, PopularityError

# Formats of photo sites. Pillow knows more, some of which start other programs (EPS) or hide text (PDF).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))

# Known starts of files that FORMATS cannot read; (offset, bytes) -> name.
_OTHERS: dict[tuple[int, bytes], str] = {
    (0, b"\x00\x00\x00\x0cjP  "): "JPEG 2000",
    (0, b"\xff\x4f\xff\x51"): "JPEG 2000",
    (0, b"\xff\x0a"): "JPEG XL",
    (0, b"\x00\x00\x00\x0cJXL "): "JPEG XL",
    (4, b"ftypavif"): "AVIF",
    (4, b"ftyphei"): "HEIC",
    (4, b"ftypmif1"): "HEIC",
    (4, b"ftyp"): "video",
    (0, b"\x1aE\xdf\xa3"): "video",
    (0, b"%PDF"): "PDF",
    (0, b"8BPS"): "PSD",
    (0, b"\x1f\x8b"): "gzip",
    (0, b"PK\x03\x04"): "zip",
    (0, b"<svg"): "SVG",
    (0, b"<?xml"): "XML",
    (0, b"<!doctype"): "HTML",
    (0, b"<html"): "HTML",
    **{(0, start): "damaged JPEG, PNG, GIF or WebP" for start in (b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF")},
}
_UPRIGHT = (None, 1)  # values of the EXIF orientation that leave an image as it is
_TURNED = (5, 6, 7, 8)  # values of the EXIF orientation that swap the sides
_SAMPLE_RANGE = (340, 341)  # TIFF tags of the least and the greatest sample value

_EXPECTED = "the file as it was when index_images read it"
_FIX = "restore the file, or index the images again: dvc repro -f index_images"

# Exceptions of Pillow's decoders on hostile or broken content; its UnidentifiedImageError is an OSError.
_BROKEN_CONTENT = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, IndexError, KeyError, OverflowError),
    *(MemoryError, AttributeError, RuntimeError, struct.error, zlib.error),
)


Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels
_SCALES = (8, 4, 2)  # at which libjpeg decodes a JPEG, as far as Pillow offers them


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


class Slice(io.RawIOBase):
    """`length` bytes of a file from `offset`, as a file of its own; closing it leaves the file open."""

    def __init__(self, stream: BinaryIO | io.BufferedReader, offset: int, length: int) -> None:
        self._stream, self._offset, self._length, self._at = stream, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        wanted = max(0, min(len(buffer), self._length - self._at))
        content = os.pread(self._stream.fileno(), wanted, self._offset + self._at)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def content_name(start: bytes) -> str:
    """What a file is that cannot be read as an image, by its first 64 bytes."""
    if not start:
        return "empty"
    lowered = start.lstrip().lower()
    return next(
        (
            name
            for (offset, magic), name in _OTHERS.items()
            if start[offset:].startswith(magic) or (offset == 0 and lowered.startswith(magic))
        ),
        "of an unknown format",
    )


@dataclass(frozen=True)
class ImageHeader:
    """Size in pixels of the upright image and Pillow's mode, as the header states them."""

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
            width, height = image.size
            if image.format != "TIFF" and _orientation(image) in _TURNED:  # of a TIFF Pillow gives the upright size
                width, height = height, width
            return ImageHeader(width, height, image.mode)
    except _BROKEN_CONTENT as error:
        raise ImageDecodeError(f"no readable image header: {error}") from error


def _orientation(image: Image.Image) -> int | None:
    with suppress(*_BROKEN_CONTENT):
        # The method of the base class: that of PNG would decode the pixels to find a block at the end.
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    return None


def decode_image(content: bytes, max_pixels: int) -> Image.Image:
    """The image as upright RGB (first frame, EXIF orientation applied, transparency on white).

    Args:
        content: bytes of the file.
        max_pixels: largest accepted width times height.

    Raises:
        ImageDecodeError: unknown format, damaged or truncated content, or more than `max_pixels` pixels.
    """
    return decode_reduced(content, max_pixels, max_pixels)[0]


def decode_reduced(content: bytes, max_pixels: int, least_side: int) -> tuple[Image.Image, Box]:
    """As `decode_image`, a large JPEG at 1/2, 1/4 or 1/8 of its size; and the box of the pixels that the image fills.

    The decoder then computes fewer cosines. It rounds the size up, so the last row and column may belong to the image
    in part: the box ends inside them, and `Image.resize` takes it.

    Args:
        content: bytes of the file.
        max_pixels: largest accepted width times height, before the reduction.
        least_side: of the reduced image, pixels; a smaller one is decoded as it is.

    Raises:
        ImageDecodeError: unknown format, damaged or truncated content, or more than `max_pixels` pixels.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageDecodeError(f"{width} x {height} pixels, more than the {max_pixels} allowed")
            box = _draft(image, least_side)
            image.load()
            declared = _declared_range(image)
            upright: Image.Image = image
            with suppress(*_BROKEN_CONTENT):  # a damaged EXIF block costs the rotation, not the image
                upright = ImageOps.exif_transpose(image)
            return _as_rgb(upright, declared), box or (0.0, 0.0, float(upright.width), float(upright.height))
    except (*_BROKEN_CONTENT, Image.DecompressionBombError) as error:
        raise ImageDecodeError(f"cannot be decoded: {error}") from error


def _draft(image: Image.Image, least_side: int) -> Box | None:
    """Sets the least scale at which `image` keeps `least_side`; the box of its pixels, if they end inside a pixel."""
    width, height = image.size
    scales = [scale for scale in _SCALES if min(width, height) >= scale * least_side]
    if not scales:
        return None
    upright = _orientation(image) in _UPRIGHT
    for scale in scales:
        whole = width % scale == height % scale == 0
        if whole or upright:  # a turn would move the last row and column to another side
            drafted = image.draft(None, (width // scale, height // scale))
            return None if drafted is None or whole else drafted[1]
    return None


def _declared_range(image: Image.Image) -> tuple[float, float] | None:
    """Least and greatest sample value as a TIFF states them."""
    with suppress(*_BROKEN_CONTENT):
        low, high = (float(np.ravel(image.tag_v2[tag])[0]) for tag in _SAMPLE_RANGE)  # type: ignore[attr-defined]
        return (low, high) if low < high else None
    return None


def _scaled(
    values: npt.NDArray[np.float64], mode: str, declared: tuple[float, float] | None
) -> npt.NDArray[np.float64]:
    """Samples of 16 bits and more, or with fractions, as 0 to 255.

    By the range that the file states; else by the usual one that holds them (0 to 1 of fractions, 8 bits, 16 bits);
    else by the range that is found.
    """
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if mode.startswith("I;16"):
        return values / 257
    if mode == "F" and declared is not None:
        low, high = declared
    elif mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        return values
    elif low >= 0 and high <= 65_535:
        return values / 257
    return (values - low) * (255 / ((high - low) or 1.0))


def _as_rgb(image: Image.Image, declared: tuple[float, float] | None) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        # convert() would clip 16-bit values at 255 and turn most pixels white.
        values = _scaled(np.asarray(image, dtype=np.float64), image.mode, declared)
        image = Image.fromarray(np.clip(values, 0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    # A copy if the mode is RGB already: the result must not depend on the closed source.
    return image.convert("RGB") if image.mode != "RGB" else image.copy()
