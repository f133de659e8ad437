"""The tables of docs/results.md and docs/scaling.md hold the numbers of their CSV files and name their origin."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from tests.docs.pages import cells_of, text_of
from tests.repository import REPOSITORY

FILES = sorted((REPOSITORY / "docs" / "results").glob("*.csv"))
SHOWN = {
    "docs/results.md": text_of(REPOSITORY / "docs/results.md"),
    "docs/scaling.md": text_of(REPOSITORY / "docs/scaling.md"),
}
ORIGIN = re.compile(r"> `.+`.* · commit [0-9a-f]{7} · 20\d\d-\d\d-\d\d · .+ · .*\bcores?\b")


def table_of(file: Path) -> tuple[str, list[list[str]]]:
    """(the page's text before the table, its cells with the header first)."""
    pages = [text for text in SHOWN.values() if f"<!-- generated: results/{file.name} -->" in text]
    assert len(pages) == 1, f"{file.name} is shown {len(pages)} times in {', '.join(SHOWN)}"
    before, _, after = pages[0].partition(f"<!-- generated: results/{file.name} -->\n")
    head, _, *rows = after.partition("<!-- end -->")[0].splitlines()
    return before, [cells_of(head), *map(cells_of, rows)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_cell_is_that_of_the_csv_file(file: Path) -> None:
    with file.open(encoding="utf-8", newline="") as stream:
        expected = list(csv.DictReader(stream))
    _, (head, *rows) = table_of(file)
    assert len(rows) == len(expected)
    bounds = {f"{name} {side}" for name in head for side in ("low", "high")}
    assert set(expected[0]) - bounds == set(head)
    for row, record in zip(rows, expected, strict=True):
        for name, cell in zip(head, row, strict=True):
            value, low, high = (record.get(key, "") for key in (name, f"{name} low", f"{name} high"))
            numbers = re.findall(r"[^\[\], ]+", cell) if low else [cell.replace(",", "") if value.isdigit() else cell]
            assert numbers == ([value, low, high] if low else [value]), f"{file.name}: {row[0]}, {name}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_table_names_command_commit_date_data_and_machine(file: Path) -> None:
    before, _ = table_of(file)
    origins = [line for line in before.rpartition("\n## ")[2].splitlines() if line.startswith("> ")]
    assert origins, file.name
    assert ORIGIN.fullmatch(origins[-1]), origins[-1]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_columns_have_names_of_their_own_and_bounds_hold_the_value(file: Path) -> None:
    with file.open(encoding="utf-8", newline="") as stream:
        head, *rows = list(csv.reader(stream))
    assert len(set(head)) == len(head)
    for row in rows:
        record = dict(zip(head, row, strict=True))
        for name in head:
            if record.get(f"{name} low"):
                low, value, high = (float(record[key]) for key in (f"{name} low", name, f"{name} high"))
                assert low <= value <= high, (row[0], name)
