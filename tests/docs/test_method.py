"""docs/method.md: every function and test that the table of equations names is there."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import PACKAGE, Row, missing, references, section_of, tables, text_of
from tests.repository import REPOSITORY

ROWS = next(tables(section_of(text_of(REPOSITORY / "docs" / "method.md"), "Equations")))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['equation']} {row['code']}")
def test_code_and_test_are_there(row: Row) -> None:
    found = [*references(row["code"], PACKAGE), *references(row["test"], REPOSITORY)]
    assert len(found) >= 2
    assert [problem for problem in map(missing, found) if problem] == []
    assert all(reference.names for reference in found), "a row names functions, not whole files"


def test_every_equation_has_a_row() -> None:
    numbers = {int(number) for row in ROWS for number in re.findall(r"\d+", row["equation"]) if "Eq" in row["equation"]}
    assert numbers == {1, 2, 3, 4, 5, 6, 7, 8, 11}
