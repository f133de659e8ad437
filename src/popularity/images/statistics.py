"""Quality and layout of an image in a few numbers, from pixels that are decoded anyway.

All but `sharpness` are shares or levels in [0, 1]; they are taken from a copy whose longer side is SIDE, so that they
do not follow the resolution (the header's size and aspect are features of their own).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from popularity.core.arrays import BoolArray, Float32Array

SIDE = 128  # pixels: 3 ms an image
CELL = 8  # pixels, side of the cells that are text or not
EDGE = 0.2  # step of brightness from pixel to pixel that is an edge
WRITTEN = 0.2  # share of edges in a cell of text
CLIPPED = 0.02  # of black or white
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey: ITU-R BT.601
NAMES = (
    "sharpness", "brightness", "contrast", "dark", "bright", "saturation", "colourfulness", "entropy", "edges",
    "text", "text_top", "text_middle", "text_bottom",
)  # fmt: skip


def image_statistics(image: Image.Image) -> Float32Array:
    """(13,) in the order of NAMES of an RGB image.

    sharpness: logarithm of the variance of the Laplacian. brightness, contrast: mean and deviation of the grey levels.
    dark, bright: share of clipped pixels. saturation: mean of (max - min) / max. colourfulness: Hasler and Suesstrunk
    2003, eq. 3. entropy: of the grey levels, over 8 bits. edges: share of pixels. text: share of cells that are dense
    in edges with light and dark side by side, as lettering is, in all and in each third from the top.
    """
    small = image.resize(thumbnail_size(*image.size), Image.Resampling.BOX, reducing_gap=2.0)
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
    thirds = [part.mean() if part.size else 0.0 for part in np.array_split(text, 3)]
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


def thumbnail_size(width: int, height: int) -> tuple[int, int]:
    """The size that `Image.thumbnail` gives: at most SIDE, of the two roundings that which keeps the aspect better.

    Args:
        width: pixels.
        height: pixels.
    """
    if max(width, height) <= SIDE:
        return width, height
    aspect = width / height
    if aspect <= 1:
        exact = SIDE * aspect
        return max(min(math.floor(exact), math.ceil(exact), key=lambda side: abs(aspect - side / SIDE)), 1), SIDE
    exact = SIDE / aspect
    return SIDE, max(
        min(math.floor(exact), math.ceil(exact), key=lambda side: abs(aspect - SIDE / side) if side else 0), 1
    )


def _text_cells(grey: Float32Array, edges: BoolArray) -> Float32Array:
    """(rows, columns) 1 where a cell looks like lettering; the image's last pixels fill no cell of their own."""
    height, width = (max(1, side // CELL) for side in grey.shape)
    tall, wide = (side // cells for side, cells in zip(grey.shape, (height, width), strict=True))

    def cells(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return values[: height * tall, : width * wide].reshape(height, tall, width, wide)

    dense = cells(edges).mean(axis=(1, 3)) > WRITTEN
    shades = cells(grey)
    both = (shades.max(axis=(1, 3)) > 0.75) & (shades.min(axis=(1, 3)) < 0.25)
    return np.asarray(dense & both, dtype=np.float32)
