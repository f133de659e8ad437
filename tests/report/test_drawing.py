from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from markupsafe import Markup

from popularity.report import drawing
from popularity.report.drawing import Interval, Line, MapPoint, SplitRow, XAxis

HOSTILE = '<b>&" $x$写 #0072b2'


def _scatter() -> Markup:
    rng = np.random.default_rng(0)
    label = rng.normal(6, 2, 300)
    return drawing.predicted_against_true(label, label + rng.normal(0, 1, 300), (0, 12), HOSTILE, HOSTILE)


def _intervals() -> Markup:
    rows = [Interval("holdout", HOSTILE, 0.5, 0.4, 0.6), Interval("group", "constant", None, None, None)]
    return drawing.intervals(rows, HOSTILE, HOSTILE, strong="holdout", zero=True)


def _lines() -> Markup:
    line = Line(HOSTILE, [0, 1, 2], [1.0, float("nan"), 2.0], [0.5, 1, 1], [1.5, 2, 3])
    return drawing.lines(
        [line, Line("point", [1], [2.0])], "label", HOSTILE, x=XAxis(names=["2015-01", "2015-02", "2015-03"])
    )


def _splits() -> Markup:
    rows = [SplitRow(HOSTILE, {"train": [5, 2, 0], "valid": [0, 1, 3], "excluded": [0, 0, 0]})]
    return drawing.split_timeline(rows, ["2015-01", "2015-02", "2015-03"], HOSTILE)


def _map() -> Markup:
    rng = np.random.default_rng(1)
    points = [
        MapPoint(f"{HOSTILE} {n}", float(x), float(y), 100 - n, n % 3)
        for n, (x, y) in enumerate(rng.normal(size=(30, 2)))
    ]
    return drawing.class_map(points, 20, HOSTILE)


@pytest.mark.parametrize("draw", [_scatter, _intervals, _lines, _splits, _map])
def test_a_drawing_is_the_same_each_time_and_self_contained(draw: Callable[[], Markup]) -> None:
    svg = draw()
    assert svg == draw()
    assert svg.startswith('<svg role="img" aria-label="&lt;b&gt;')
    assert "http" not in svg
    assert "<style" not in svg
    assert "<b>" not in svg  # text is escaped
    ids = re.findall(r' id="([^"]*)"', svg)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', svg))
    assert set(ids) == used  # no id that another drawing of the page could share by chance, like axes_1


@pytest.mark.parametrize("draw", [_scatter, _intervals, _lines, _splits, _map])
def test_colours_come_from_the_page_and_text_is_not_small(draw: Callable[[], Markup]) -> None:
    svg = draw()
    styles = re.findall(r'style="([^"]*)"', svg)
    assert not [style for style in styles if re.search(r"#[0-9a-f]{3,6}", style)]
    assert any("var(--ink)" in style for style in styles)
    sizes = [float(size) for size in re.findall(r"font(?:-size)?:[^;\"]*?(\d+(?:\.\d+)?)px", svg)]
    assert sizes
    assert min(sizes) >= 11


def test_dollar_signs_are_no_formula() -> None:
    assert "$x$" in _intervals()


def test_hexagons_stand_where_posts_are_and_the_fullest_is_opaque() -> None:
    label = np.array([2.0, 2.0, 2.0, 9.0])
    svg = drawing.predicted_against_true(label, np.array([2.0, 2.0, 2.0, 5.0]), (0, 10), "", "")
    shades = re.findall(r"fill: var\(--blue\)(?:; fill-opacity: ([\d.]+))?", svg)
    assert len(shades) == 2
    assert sorted(float(shade or 1) for shade in shades) == pytest.approx([0.18 + 0.82 * 3**-0.5, 1], abs=0.01)


def test_a_class_map_of_alike_classes_does_not_fail() -> None:
    svg = drawing.class_map([MapPoint("a", 0, 0, 1, 0), MapPoint("b", 0, 0, 1, 1)], 80, "two")
    assert ">a</text>" in svg
    assert ">b</text>" in svg
