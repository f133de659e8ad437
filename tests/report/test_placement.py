from __future__ import annotations

import numpy as np
import pytest

from popularity.report.placement import place_labels, text_width

AREA = (760.0, 570.0)
HEIGHT = 15.0


def boxes_of(centres: list[tuple[float, float]], widths: np.ndarray) -> list[tuple[float, float, float, float]]:
    return [
        (x - width / 2, y - HEIGHT / 2, x + width / 2, y + HEIGHT / 2)
        for (x, y), width in zip(centres, widths, strict=True)
    ]


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] - 1e-9 and b[0] < a[2] - 1e-9 and a[1] < b[3] - 1e-9 and b[1] < a[3] - 1e-9


@pytest.mark.parametrize("spread", [220.0, 60.0, 5.0])
def test_eighty_labels_lie_apart_inside_and_off_the_points(spread: float) -> None:
    rng = np.random.default_rng(int(spread))
    points = np.clip(rng.normal([380, 285], spread, (80, 2)), 20, 550)
    radii, widths = rng.uniform(3, 10, 80), rng.uniform(30, 160, 80)
    found = place_labels(points, radii, widths, HEIGHT, AREA)
    placed = [(place, width) for place, width in zip(found, widths, strict=True) if place is not None]
    assert len(placed) >= 70
    labels = boxes_of([place for place, _ in placed], np.array([width for _, width in placed]))
    dots = [(x - r, y - r, x + r, y + r) for (x, y), r in zip(points, radii, strict=True)]
    for place, label in enumerate(labels):
        assert label[0] >= 0 and label[1] >= 0 and label[2] <= AREA[0] and label[3] <= AREA[1]
        assert not any(overlap(label, other) for other in labels[place + 1 :])
        assert not any(overlap(label, dot) for dot in dots)


def test_a_lone_label_stands_right_of_its_point() -> None:
    (place,) = place_labels(np.array([[100.0, 100.0]]), np.array([5.0]), np.array([40.0]), HEIGHT, AREA)
    assert place == (100 + 20 + 5 + 1, 100)


def test_a_label_without_room_is_left_out_and_later_ones_still_stand() -> None:
    points, radii = np.array([[30.0, 30.0], [50.0, 30.0]]), np.array([4.0, 4.0])
    found = place_labels(points, radii, np.array([500.0, 20.0]), HEIGHT, (80.0, 60.0))
    assert found[0] is None
    assert found[1] is not None


def test_wide_letters_count_as_wide() -> None:
    assert text_width("写真", 11) > text_width("ab", 11)
    assert text_width("", 11) < 5
