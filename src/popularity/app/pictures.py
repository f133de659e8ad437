"""Uploaded pictures: refused or decoded as the graph does it, and cropped."""

from __future__ import annotations

import base64
import binascii
import io

from PIL import Image

from popularity.app.bodies import MAX_IMAGE_BYTES
from popularity.core.errors import DataError
from popularity.images.reading import FORMATS, ImageDecodeError, content_name, decode_image, read_header

MAX_PIXELS = 60_000_000  # of an upload; the graph may allow less
CLOSER = 0.7  # of each side
ASPECTS = {"square": 1.0, "upright 4:5": 4 / 5, "wide 16:9": 16 / 9}  # width / height
QUALITY = 92  # of a crop's JPEG


def read_picture(encoded: str, max_pixels: int) -> bytes:
    """The file of a picture that can be decoded.

    Args:
        encoded: in base64.
        max_pixels: section index_images.

    Raises:
        DataError: it is not base64, too large, of another format, or damaged.
    """
    expected = f"a picture ({', '.join(FORMATS)}) of at most {MAX_IMAGE_BYTES / 1e6:.0f} MB"
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"the picture is not base64: {error}", expected=expected) from error
    if len(content) > MAX_IMAGE_BYTES:
        raise DataError(f"the picture has {len(content) / 1e6:.0f} MB", expected=expected)
    limit = min(max_pixels, MAX_PIXELS)
    try:
        header = read_header(io.BytesIO(content))
        if header.width * header.height > limit:
            raise ImageDecodeError(f"{header.width} x {header.height} pixels, more than {limit:,}")
        decode_image(content, limit)
    except (ImageDecodeError, Image.DecompressionBombError) as error:
        raise DataError(
            f"the picture cannot be used ({content_name(content[:64])}): {error}", expected=expected
        ) from error
    return content


def crops(content: bytes) -> dict[str, bytes]:
    """JPEG files of crops from the middle, by name; the largest of each of ASPECTS, and one that is closer.

    Args:
        content: of `read_picture`.
    """
    image = decode_image(content, MAX_PIXELS)
    width, height = image.size
    sizes = {name: (min(width, height * aspect), min(height, width / aspect)) for name, aspect in ASPECTS.items()}
    sizes["closer"] = (CLOSER * width, CLOSER * height)
    found = {}
    for name, size in sizes.items():
        wide, high = (max(1, round(side)) for side in size)
        left, top = (width - wide) // 2, (height - high) // 2
        stream = io.BytesIO()
        image.crop((left, top, left + wide, top + high)).save(stream, "JPEG", quality=QUALITY)
        found[name] = stream.getvalue()
    return found


def thumbnail(content: bytes, size: int) -> str:
    """A small JPEG as a data URI.

    Args:
        content: of `read_picture` or `crops`.
        size: pixels of the longer side.
    """
    image = decode_image(content, MAX_PIXELS)
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
