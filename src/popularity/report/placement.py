"""Where the labels of a map go so that none lies on another, on a point, or outside."""

from __future__ import annotations

import unicodedata

import numpy as np
import numpy.typing as npt

from popularity.core.metrics import FloatArray

GAPS = (1, 6, 12, 20, 30, 42, 56, 72, 90, 110, 132, 156, 182, 210)  # pixels from the point's rim to the label
TURNS = 16  # directions: right first, then left, below, above, and what lies between


def text_width(text: str, size: float) -> float:
    """A width in pixels that no common sans-serif face exceeds: wide letters of East Asia are a full em."""
    ems = sum(1.0 if unicodedata.east_asian_width(letter) in "WF" else 0.66 for letter in text)
    return size * ems + 2


def place_labels(
    points: FloatArray, radii: FloatArray, widths: FloatArray, height: float, area: tuple[float, float]
) -> list[tuple[float, float] | None]:
    """The centre of each point's label, or None where there is no room left; earlier points choose first.

    Candidates lie on rings around the point, nearest first.

    Args:
        points: (n, 2) pixels.
        radii: (n,) of the points; labels keep off every one.
        widths: (m,) of the labels of the first m points, m <= n.
        height: of a label.
        area: width and height of the map.
    """
    reach = np.stack([radii, radii], axis=1)
    taken = np.concatenate([points - reach, points + reach], axis=1)  # (boxes, 4): left, top, right, bottom
    places: list[tuple[float, float] | None] = []
    rays = _rays()
    for point, radius, width in zip(points, radii, widths, strict=False):
        half = np.array([width, height]) / 2
        centres = np.concatenate([point + rays * (half + radius + gap) for gap in GAPS])
        boxes = np.concatenate([centres - half, centres + half], axis=1)
        inside = (boxes[:, :2] >= 0).all(axis=1) & (boxes[:, 2:] <= area).all(axis=1)
        free = np.flatnonzero(inside & ~overlaps(boxes, taken).any(axis=1))
        if not len(free):
            places.append(None)
            continue
        taken = np.concatenate([taken, boxes[free[:1]]])
        places.append((float(centres[free[0], 0]), float(centres[free[0], 1])))
    return places


def overlaps(left: FloatArray, right: FloatArray) -> npt.NDArray[np.bool_]:
    """(a, b) whether boxes (a, 4) and (b, 4) share more than an edge."""
    one, other = left[:, None], right[None, :]
    shared = np.asarray((one[..., :2] < other[..., 2:]) & (other[..., :2] < one[..., 2:])).all(axis=2)
    return np.asarray(shared)


def _rays() -> FloatArray:
    """(TURNS, 2) where the label's centre goes from the point, as a share of its half size: on the rim of a square."""
    angles = np.linspace(0, 2 * np.pi, TURNS, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    square: FloatArray = circle / np.abs(circle).max(axis=1, keepdims=True)
    quarters = np.array([0, 2, 1, 3]) * TURNS // 4
    others = np.setdiff1d(np.arange(TURNS), quarters)
    return np.concatenate([square[quarters], square[others]])
