"""The page in a real browser, opened from disk."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.browser import COLLISIONS, WIDTHS, shown
from tests.report.small_run import SHOWN

IMAGES = 2 * SHOWN["worst_posts"] + 2 * SHOWN["gallery_classes"] * SHOWN["gallery_posts"]


@pytest.mark.parametrize("width", WIDTHS)
def test_everything_is_there_and_nothing_overflows(written: Path, width: int) -> None:
    with shown(written / "report.html", width) as browser:
        browser.check(images=IMAGES)
        # wide tables and drawings move inside their own box
        wide = "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth)"
        assert browser.page.evaluate(f"{wide}.every(box => getComputedStyle(box).overflowX === 'auto')")


def test_a_table_that_is_cut_has_a_shadow_where_it_goes_on(written: Path) -> None:
    with shown(written / "report.html", min(WIDTHS)) as browser:
        box = browser.page.get_by_role("region", name="All scores")
        assert box.evaluate("box => box.scrollWidth > box.clientWidth")
        left, right = edges(box.screenshot())
        assert left > right + 20
        box.evaluate("box => box.scrollLeft = box.scrollWidth")
        left, right = edges(box.screenshot())
        assert right > left + 20


def edges(png: bytes) -> tuple[float, float]:
    """Median brightness of the first and the last columns of pixels."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    return float(np.median(pixels[:, :2])), float(np.median(pixels[:, -2:]))


def test_the_best_trials_fit_a_laptop(written: Path) -> None:
    with shown(written / "report.html", max(WIDTHS)) as browser:
        (box,) = browser.page.locator("#tuning .scroll[aria-label*='best trial']").all()
        assert box.evaluate("box => box.scrollWidth <= box.clientWidth")


def test_no_name_lies_on_another_and_the_contents_stay_in_sight(written: Path) -> None:
    with shown(written / "report.html", WIDTHS[0]) as browser:
        assert browser.page.locator("#prototypes svg").evaluate(COLLISIONS) == []
        for chart in browser.page.locator("figure svg").all():
            assert chart.evaluate(COLLISIONS) == []
        browser.page.locator("#run").scroll_into_view_if_needed()
        assert browser.page.locator("nav a").first.is_visible()
        assert browser.page.locator("nav").bounding_box()["y"] >= 0


def test_dark_is_dark(written: Path) -> None:
    luminance = "getComputedStyle(document.body).{}.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + +part, 0)"
    for scheme, darker in (("light", "color"), ("dark", "backgroundColor")):
        with shown(written / "report.html", WIDTHS[0], scheme) as browser:
            ink, surface = (browser.page.evaluate(luminance.format(name)) for name in ("color", "backgroundColor"))
            assert (ink < surface) == (darker == "color")
            assert abs(ink - surface) > 500
            browser.check()
