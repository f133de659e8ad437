"""Places the labels of a map so that none overlaps a label or a point, or leaves the map."""

from __future__ import annotations

import unicodedata

import numpy as np

from popularity.core.arrays import BoolArray, Float64Array

GAPS = (1, 6, 12, 20, 30, 42, 56, 72, 90, 110, 132, 156, 182, 210)  # pixels from the point's rim to the label
DIRECTIONS = 16  # right first, then left, below, above, then those between


def text_width(text: str, size: float) -> float:
    """An upper bound of the text's width in pixels in common sans-serif fonts; a wide letter of East Asia is one em."""
    ems = sum(1.0 if unicodedata.east_asian_width(letter) in "WF" else 0.66 for letter in text)
    return size * ems + 2


def place_labels(
    points: Float64Array, radii: Float64Array, widths: Float64Array, height: float, area: tuple[float, float]
) -> list[tuple[float, float] | None]:
    """The centre of each point's label, or None where there is no room; earlier points come first.

    Candidates are on rings around the point, the nearest ring first.

    Args:
        points: (n, 2) pixels.
        radii: (n,) of the points; no label overlaps a point.
        widths: (m,) of the labels of the first m points, m <= n.
        height: of a label.
        area: width and height of the map.
    """
    half_sizes = np.stack([radii, radii], axis=1)
    taken = np.concatenate([points - half_sizes, points + half_sizes], axis=1)  # (boxes, 4): left, top, right, bottom
    centres_of_labels: list[tuple[float, float] | None] = []
    rays = _rays()
    for point, radius, width in zip(points, radii, widths, strict=False):
        half = np.array([width, height]) / 2
        centres = np.concatenate([point + rays * (half + radius + gap) for gap in GAPS])
        boxes = np.concatenate([centres - half, centres + half], axis=1)
        inside = (boxes[:, :2] >= 0).all(axis=1) & (boxes[:, 2:] <= area).all(axis=1)
        free = np.flatnonzero(inside & ~overlaps(boxes, taken).any(axis=1))
        if not len(free):
            centres_of_labels.append(None)
            continue
        taken = np.concatenate([taken, boxes[free[:1]]])
        centres_of_labels.append((float(centres[free[0], 0]), float(centres[free[0], 1])))
    return centres_of_labels


def overlaps(left: Float64Array, right: Float64Array) -> BoolArray:
    """(a, b) whether boxes (a, 4) and (b, 4) share more than an edge."""
    one, other = left[:, None], right[None, :]
    shared = np.asarray((one[..., :2] < other[..., 2:]) & (other[..., :2] < one[..., 2:])).all(axis=2)
    return np.asarray(shared)


def _rays() -> Float64Array:
    """(DIRECTIONS, 2) offsets of the label's centre from the point, in half sizes: on the rim of a square."""
    angles = np.linspace(0, 2 * np.pi, DIRECTIONS, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    square: Float64Array = circle / np.abs(circle).max(axis=1, keepdims=True)
    quarters = np.array([0, 2, 1, 3]) * DIRECTIONS // 4
    others = np.setdiff1d(np.arange(DIRECTIONS), quarters)
    return np.concatenate([square[quarters], square[others]])
