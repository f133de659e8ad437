"""The report that the graph wrote, opened in a real browser."""

from __future__ import annotations

import pytest

from tests.browser import COLLISIONS, WIDTHS, shown
from tests.clones import Clone


@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_of_the_graph_shows_everything(clone: Clone, width: int) -> None:
    file = clone.root / "reports/report.html"
    assert file.stat().st_size < 10 * 2**20
    with shown(file, width) as browser:
        browser.check(images=20)
        assert browser.page.locator("#prototypes svg").evaluate(COLLISIONS) == []
        for anchor in ("splits", "intervals", "tuning", "network", "run"):
            assert browser.page.locator(f"#{anchor} table, #{anchor} svg").count() > 0


def test_the_model_card_of_the_graph_names_its_code(clone: Clone) -> None:
    card = (clone.root / "reports/model_card.md").read_text(encoding="utf-8")
    revision = clone.run("git", "log", "-1", "--format=%H", "--", "src", "stages", "configs").stdout.strip()
    assert f"Code: {revision[:12]}" in card
