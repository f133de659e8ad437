"""Images of posts, small enough to lie inside a page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import polars as pl
from PIL import Image

from popularity.images.reading import ImageDecodeError, ImageReader, decode_image

QUALITY = 78  # of the JPEG: artifacts do not show at this size


class Thumbnails:
    """Small JPEGs of posts as data URIs.

    Args:
        dataset: folder of the data set.
        images: contract IMAGES.
        size: pixels of the longer side.
        max_pixels: largest image that is decoded.
    """

    def __init__(self, dataset: Path, images: pl.DataFrame, size: int, max_pixels: int) -> None:
        self._reader = ImageReader(dataset)
        self._locations = images.filter(status="ok").select("pid", "shard", "offset", "bytes")
        self._size, self._max_pixels = size, max_pixels

    def close(self) -> None:
        """Closes the shards."""
        self._reader.close()

    def data_uri(self, pid: str) -> str | None:
        """The image of a post; None if the post has none that can be decoded.

        Raises:
            DataError: the data set changed after the images were indexed.
        """
        for _, shard, offset, length in self._locations.filter(pid=pid).iter_rows():
            try:
                image = decode_image(self._reader.read(shard, offset, length), self._max_pixels)
            except ImageDecodeError:
                return None
            image.thumbnail((self._size, self._size), Image.Resampling.LANCZOS)
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=QUALITY, optimize=True)
            return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
        return None
