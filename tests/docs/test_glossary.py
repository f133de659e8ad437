"""docs/contributing.md: every word of the glossary leads to a function, and the main words stand where they lead."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import (
    PACKAGE,
    Row,
    definitions,
    missing,
    parameter_paths,
    references,
    section_of,
    tables,
    text_of,
)
from tests.repository import REPOSITORY

ROWS = next(tables(section_of(text_of(REPOSITORY / "docs" / "contributing.md"), "Glossary")))
MAIN_WORDS = (
    "holdout",
    "forward split",
    "unseen users",
    "target statistics",
    "out-of-fold",
    "early stopping",
    "sample_weight",
    "detrend",
    "ensemble weights",
    "selection loss",
    "SHAP",
    "conformal",
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["word"])
def test_a_row_leads_to_one_function_and_its_key(row: Row) -> None:
    (reference,) = references(row["code"], PACKAGE)
    assert len(reference.names) == 1
    assert missing(reference) == ""
    key = row["key"].strip("`")
    assert not key or key in parameter_paths(), key


@pytest.mark.parametrize("word", MAIN_WORDS)
def test_the_word_stands_in_the_name_or_in_the_first_line_of_the_docstring(word: str) -> None:
    row = next(row for row in ROWS if row["word"] == word)
    (reference,) = references(row["code"], PACKAGE)
    assert missing(reference) == ""
    name = reference.names[0]
    where = f"{name} {definitions(reference.file)[name]}".lower()
    forms = (word.lower(), re.sub(r"[- ]", "_", word.lower()))
    assert any(form in where for form in forms), f"{word} is not in: {where}"


def test_a_word_has_one_row() -> None:
    words = [row["word"] for row in ROWS]
    assert sorted(set(words)) == sorted(words)
    assert all(row["in one sentence"].endswith(".") for row in ROWS)
