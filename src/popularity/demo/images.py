"""Small images: hue and texture by category, shape by subcategory, arrangement by concept, and quality.

Quality is visible: a poor image is blurred, badly exposed, flat, pale and noisy.
"""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from popularity.core.arrays import Float32Array
from popularity.demo.vocabulary import Category, Subcategory

Plane = Float32Array  # (height, width)
Pixels = Float32Array  # (height, width, 3), 0 to 1
Point = tuple[float, float]

ASPECTS = (3 / 2, 4 / 3, 1.0, 3 / 4, 2 / 3, 16 / 9)  # width by height
ASPECT_SHARES = (0.4, 0.2, 0.15, 0.1, 0.1, 0.05)
JPEG_QUALITY = 88


def _regular(corners: int, inner: float = 1.0, turn: float = 0.0) -> tuple[Point, ...]:
    """Corners of a polygon of radius 1; every second one at radius `inner`."""
    return tuple(
        (radius * math.sin(angle), -radius * math.cos(angle))
        for i in range(corners)
        for angle, radius in [(2 * math.pi * i / corners + turn, inner if i % 2 else 1.0)]
    )


def _box(half_width: float, half_height: float) -> tuple[Point, ...]:
    return (
        (-half_width, -half_height),
        (half_width, -half_height),
        (half_width, half_height),
        (-half_width, half_height),
    )


_TURN = tuple(2 * math.pi * i / 24 for i in range(24))
_RIM = (*_regular(24), _regular(24)[0])

# Shapes as polygons within the unit circle; a shape may consist of several.
SHAPES: Mapping[str, tuple[tuple[Point, ...], ...]] = {
    "circle": (_regular(24),),
    "ellipse": (tuple((0.6 * x, y) for x, y in _regular(24)),),
    "ring": (_RIM + tuple((0.55 * x, 0.55 * y) for x, y in reversed(_RIM)),),
    "triangle": (_regular(3),),
    "diamond": (tuple((0.7 * x, y) for x, y in _regular(4)),),
    "rectangle": (_box(0.9, 0.55),),
    "star": (_regular(10, 0.45),),
    "flake": (_regular(12, 0.25),),
    "cross": (_box(0.25, 0.9), _box(0.9, 0.25)),
    "bars": tuple(
        ((left, top), (left + 0.3, top), (left + 0.3, 0.9), (left, 0.9))
        for left, top in ((-0.8, -0.2), (-0.15, -0.9), (0.5, 0.1))
    ),
    "pair": tuple(tuple((x / 2 + shift, y / 2) for x, y in _regular(16)) for shift in (-0.52, 0.52)),
    "heart": (
        tuple(
            (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
            for t in _TURN
        ),
    ),
    "hourglass": (((-0.6, -0.9), (0.6, -0.9), (0.12, 0.0), (0.7, 0.9), (-0.7, 0.9), (-0.12, 0.0)),),
    "wedge": (((-0.95, 0.5), (0.95, 0.5), (0.95, 0.2), (0.1, -0.1), (-0.6, -0.7)),),
    "leaf": (tuple((0.95 * math.cos(t), 0.5 * math.sin(t) ** 3) for t in _TURN),),
    "bolt": (((0.2, -0.95), (-0.5, 0.15), (0.0, 0.1), (-0.2, 0.95), (0.55, -0.2), (0.05, -0.15)),),
}


def _flakes(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    cells = rng.random((14, 14), dtype=np.float32) ** 6
    brightness: Plane = cells[(np.abs(y) * 4.9 + 7).astype(int) % 14, (x * 4.9 + 7).astype(int) % 14]
    return brightness


def _fur(x: Plane, y: Plane, rng: np.random.Generator) -> Plane:
    strands = rng.random(256, dtype=np.float32)
    brightness: Plane = strands[((x * 50 + np.sin(y * 6) * 4).astype(int)) % 256]
    return brightness


def _circuit(x: Plane, y: Plane, _: np.random.Generator) -> Plane:
    wires = (x * 5 % 1 < 0.15) & (np.floor(y * 5) % 2 == 0)
    lines: Plane = (wires | (y * 5 % 1 < 0.15)).astype(np.float32)
    return lines


# Brightness from 0 to 1 at coordinates within about -1 to 1, longer side.
TEXTURES: Mapping[str, Callable[[Plane, Plane, np.random.Generator], Plane]] = {
    "waves": lambda x, y, _: 0.5 + 0.5 * np.sin(14 * y + 2 * np.sin(5 * x)),
    "dots": lambda x, y, _: ((x * 4 % 1 - 0.5) ** 2 + (y * 4 % 1 - 0.5) ** 2 < 0.06).astype(np.float32),
    "stripes": lambda x, y, _: 0.5 + 0.5 * np.sign(np.sin(16 * (x + y))),
    "rays": lambda x, y, _: 0.5 + 0.5 * np.sin(12 * np.arctan2(y + 0.8, x)),
    "gradient": lambda x, y, _: np.clip(0.5 - 0.45 * y + 0.2 * x, 0, 1),
    "flakes": _flakes,
    "fur": _fur,
    "checker": lambda x, y, _: ((np.floor(x * 3.5) + np.floor(y * 3.5)) % 2).astype(np.float32),
    "grid": lambda x, y, _: ((x * 4 % 1 < 0.18) | (y * 4 % 1 < 0.18)).astype(np.float32),
    "circuit": _circuit,
}


def draw(
    category: Category, subcategory: Subcategory, concept: int, quality: float, size: int, rng: np.random.Generator
) -> bytes:
    """A JPEG image of a class; its longer side has `size` pixels.

    Args:
        concept: its index in `subcategory`; decides the number of shapes.
        quality: 0 (poor) to 1 (good).
    """
    aspect = ASPECTS[rng.choice(len(ASPECTS), p=ASPECT_SHARES)]
    width, height = (size, round(size / aspect)) if aspect >= 1 else (round(size * aspect), size)
    image = _blur(_scene(category, subcategory, concept, width, height, rng), quality, size, rng)
    pixels = _expose(np.asarray(image, dtype=np.float32) / np.float32(255), quality, rng)
    result = Image.fromarray((pixels * 255).astype(np.uint8))
    if rng.random() < 0.03:  # some people like black and white
        result = result.convert("L")
    stream = io.BytesIO()
    result.save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def _scene(
    category: Category, subcategory: Subcategory, concept: int, width: int, height: int, rng: np.random.Generator
) -> Image.Image:
    """The image without any fault."""
    longer = max(width, height)
    y, x = np.meshgrid(
        (np.arange(height, dtype=np.float32) * 2 - height) / longer,
        (np.arange(width, dtype=np.float32) * 2 - width) / longer,
        indexing="ij",
    )
    shift = rng.uniform(-0.5, 0.5, 2).astype(np.float32)
    texture = TEXTURES[category.texture](x + shift[0], y + shift[1], rng)
    hue = category.hue + rng.normal(0, 0.02)
    dark, light = (
        np.array(colorsys.hsv_to_rgb(hue % 1, *rest), dtype=np.float32) for rest in ((0.75, 0.3), (0.5, 0.75))
    )
    ground = dark + (light - dark) * texture[..., None]  # (height, width, 3)
    image = Image.fromarray((ground * 255).astype(np.uint8))
    order = category.subcategories.index(subcategory)
    colour = colorsys.hsv_to_rgb((hue + 0.35 + 0.15 * order) % 1, 0.85, 1.0)
    fill = tuple(round(255 * value) for value in colour)
    pencil = ImageDraw.Draw(image)
    shapes = 1 + 2 * concept
    radius = min(width, height) * (0.36, 0.21, 0.16)[min(concept, 2)] * rng.uniform(0.85, 1.15)
    turn = rng.normal(0, 0.15)
    for i in range(shapes):
        angle = 2 * math.pi * i / max(shapes - 1, 1) + turn
        reach = 0.0 if i == 0 else 0.34
        centre_x = width * (0.5 + reach * math.cos(angle) + rng.normal(0, 0.03))
        centre_y = height * (0.5 + reach * math.sin(angle) + rng.normal(0, 0.03))
        for polygon in SHAPES[subcategory.shape]:
            corners = [
                (
                    centre_x + radius * (px * math.cos(turn) - py * math.sin(turn)),
                    centre_y + radius * (px * math.sin(turn) + py * math.cos(turn)),
                )
                for px, py in polygon
            ]
            pencil.polygon(corners, fill=fill)
    return image


def _fault(quality: float, rng: np.random.Generator) -> float:
    """Strength of one fault of an image, 0 to 1: about 1 - quality."""
    return float(np.clip(1 - quality + rng.normal(0, 0.1), 0, 1))


def _blur(image: Image.Image, quality: float, size: int, rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(0.03 * size * _fault(quality, rng) ** 1.5))


def _expose(pixels: Pixels, quality: float, rng: np.random.Generator) -> Pixels:
    """Loses contrast and colour, shifts brightness and adds grain. (height, width, 3), 0 to 1."""
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = grey + (pixels - grey) * (1 - 0.6 * _fault(quality, rng))
    brightness = 0.5 + (0.3 if rng.random() < 0.4 else -0.3) * _fault(quality, rng)
    pixels = brightness + (pixels - pixels.mean()) * (1 - 0.65 * _fault(quality, rng))
    grain = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(0.12 * _fault(quality, rng))
    result: Pixels = np.clip(pixels + grain, 0, 1)
    return result
