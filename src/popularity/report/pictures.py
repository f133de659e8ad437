"""Pictures of posts, small enough to lie inside a page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from types import TracebackType

import polars as pl
from PIL import Image

from popularity.images.reading import ImageDecodeError, PictureReader, decode_picture

QUALITY = 78  # of the JPEG: a reader looks at what is shown, not at pixels


class Thumbnails:
    """Small JPEGs of posts as data URIs; a context that closes the shards.

    Args:
        root: of the data set.
        images: contract IMAGES.
        size: pixels of the longer side.
        max_pixels: of a picture that is decoded at all.
    """

    def __init__(self, root: Path, images: pl.DataFrame, size: int, max_pixels: int) -> None:
        self._reader = PictureReader(root)
        self._places = images.filter(status="ok").select("pid", "shard", "offset", "bytes")
        self._size, self._max_pixels = size, max_pixels

    def __enter__(self) -> Thumbnails:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()

    def __call__(self, pid: str) -> str | None:
        """The picture of a post; None where there is none that can be decoded.

        Raises:
            DataError: the data set is no longer what index_images read.
        """
        for _, shard, offset, length in self._places.filter(pid=pid).iter_rows():
            try:
                picture = decode_picture(self._reader.read(shard, offset, length), self._max_pixels)
            except ImageDecodeError:
                return None
            picture.thumbnail((self._size, self._size), Image.Resampling.LANCZOS)
            stream = io.BytesIO()
            picture.save(stream, "JPEG", quality=QUALITY, optimize=True)
            return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
        return None
