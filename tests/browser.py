"""A page in a real browser: Debian's Chromium, headless, driven by Playwright."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
WIDTHS = (1280, 390)  # pixels: a laptop, a telephone

# Texts that lie on one another in a drawing, as pairs of their words.
COLLISIONS = """
svg => {
  const boxes = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
  return boxes.flatMap(([left, a], index) => boxes.slice(index + 1).filter(([, b]) =>
    a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1
  ).map(([right]) => [left, right]));
}
"""
# The least font size of any text that is shown, in pixels; in a drawing as it is scaled.
SMALLEST_FONT = """
() => {
  const sizes = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !parent.getClientRects().length) continue;
    const svg = parent.closest('svg');
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    sizes.push(parseFloat(getComputedStyle(parent).fontSize) * scale);
  }
  return Math.min(...sizes);
}
"""


@dataclass
class Shown:
    """An open page and what went wrong with it so far."""

    page: Any
    troubles: list[str]

    def check(self, images: int = 0) -> None:
        """No trouble, every image there, at least `images` of them, nothing wider than the window, no tiny text."""
        assert self.troubles == []
        widths = self.page.evaluate("[...document.images].map(image => image.naturalWidth)")
        assert len(widths) >= images
        assert all(widths)
        assert self.page.evaluate("document.images.length === [...document.images].filter(i => i.alt).length")
        root = "document.documentElement"
        assert self.page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")
        assert self.page.evaluate(SMALLEST_FONT) >= 11


def shown(file: Path, width: int, scheme: str = "light") -> AbstractContextManager[Shown]:
    """`file` opened from disk in a window of `width` pixels."""
    return shown_at(file.resolve().as_uri(), width, scheme)


@contextmanager
def shown_at(address: str, width: int, scheme: str = "light") -> Iterator[Shown]:
    """The page at `address` in a window of `width` pixels; a request to anywhere else is a trouble.

    Without Chromium the test is skipped, but not where CI is true.
    """
    if not CHROMIUM.exists() and os.environ.get("CI") != "true":
        pytest.skip(f"{CHROMIUM} is missing: apt-get install --no-install-recommends chromium")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415  # of the extra `dev`: only here is it needed

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        troubles: list[str] = []
        page.on("console", lambda message: troubles.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url[:200]}"))

        def note_foreign(request: Any) -> None:
            if not request.url.startswith(("data:", address, f"blob:{address}")):
                troubles.append(f"request: {request.url[:200]}")

        page.on("request", note_foreign)
        page.goto(address)
        yield Shown(page, troubles)
        browser.close()
