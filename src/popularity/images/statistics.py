"""Quality and layout of an image in a few numbers, from pixels that are decoded for the encoder anyway.

All but `sharpness` are fractions or grey values in [0, 1]. They are computed on a copy whose longer side is SIDE, so
they do not depend on the resolution (size and aspect of the header are features of their own).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from popularity.core.arrays import BoolArray, Float32Array
from popularity.images.reading import Box

SIDE = 128  # pixels: 3 ms an image
CELL = 8  # pixels, side of the cells that are classed as text or not
EDGE = 0.2  # least step of brightness between pixels at an edge
TEXT_EDGES = 0.2  # least fraction of edge pixels in a cell of text
CLIPPED = 0.02  # distance from black or white
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey: ITU-R BT.601
NAMES = (
    "sharpness", "brightness", "contrast", "dark", "bright", "saturation", "colourfulness", "entropy", "edges",
    "text", "text_top", "text_middle", "text_bottom",
)  # fmt: skip


def image_statistics(image: Image.Image, box: Box | None = None) -> Float32Array:
    """Statistics (13,) of an RGB image, in the order of NAMES.

    sharpness: logarithm of the variance of the Laplacian. brightness, contrast: mean and deviation of the grey values.
    dark, bright: fraction of clipped pixels. saturation: mean of (max - min) / max. colourfulness: Hasler and
    Suesstrunk 2003, eq. 3. entropy: of the grey values, over 8 bits. edges: fraction of pixels. text: fraction of cells
    that hold many edges, and light and dark pixels, as lettering does: of all cells, and of each third from the top.

    Args:
        image: whole, or decoded at a reduced scale.
        box: of the pixels that the image fills (`decode_reduced`), by default all.
    """
    left, upper, right, lower = box or (0, 0, *image.size)
    size = thumbnail_size(right - left, lower - upper)
    small = image.resize(size, Image.Resampling.BOX, box=box, reducing_gap=2.0)
    colour = np.asarray(small, dtype=np.float32) / np.float32(255)
    red, green, blue = colour[..., 0], colour[..., 1], colour[..., 2]
    grey: Float32Array = (colour @ LUMA).astype(np.float32)
    padded = np.pad(grey, 1, mode="edge")
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * grey
    steps = np.maximum(np.abs(padded[1:-1, 2:] - grey), np.abs(padded[2:, 1:-1] - grey))
    edges = steps > EDGE
    highest, lowest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    opponent = red - green, 0.5 * (red + green) - blue
    spread, centre = (np.hypot(fold(opponent[0]), fold(opponent[1])) for fold in (np.std, np.mean))
    levels = np.bincount((grey * 255).round().astype(np.int64).ravel(), minlength=256) / grey.size
    text = _text_cells(grey, edges)
    thirds = [rows.mean() if rows.size else 0.0 for rows in np.array_split(text, 3)]
    values = (
        np.log(laplacian.var() + 1e-6),
        grey.mean(),
        grey.std(),
        (grey < CLIPPED).mean(),
        (grey > 1 - CLIPPED).mean(),
        ((highest - lowest) / np.maximum(highest, 1 / 255)).mean(),
        spread + 0.3 * centre,
        -(levels[levels > 0] * np.log2(levels[levels > 0])).sum() / 8,
        edges.mean(),
        text.mean(),
        *thirds,
    )
    return np.array(values, dtype=np.float32)


def thumbnail_size(width: float, height: float) -> tuple[int, int]:
    """The size that `Image.thumbnail` gives: at most SIDE, with the rounding that keeps the aspect better.

    Args:
        width: pixels.
        height: pixels.
    """
    if max(width, height) <= SIDE:
        return int(width), int(height)
    aspect = width / height
    if aspect <= 1:
        exact = SIDE * aspect
        return max(min(math.floor(exact), math.ceil(exact), key=lambda side: abs(aspect - side / SIDE)), 1), SIDE
    exact = SIDE / aspect
    return SIDE, max(
        min(math.floor(exact), math.ceil(exact), key=lambda side: abs(aspect - SIDE / side) if side else 0), 1
    )


def _text_cells(grey: Float32Array, edges: BoolArray) -> Float32Array:
    """(rows, columns) 1 where a cell resembles lettering; pixels beyond the last whole cell are left out."""
    height, width = (max(1, side // CELL) for side in grey.shape)
    tall, wide = (side // cells for side, cells in zip(grey.shape, (height, width), strict=True))

    def cells(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return values[: height * tall, : width * wide].reshape(height, tall, width, wide)

    dense = cells(edges).mean(axis=(1, 3)) > TEXT_EDGES
    shades = cells(grey)
    both = (shades.max(axis=(1, 3)) > 0.75) & (shades.min(axis=(1, 3)) < 0.25)
    return np.asarray(dense & both, dtype=np.float32)
