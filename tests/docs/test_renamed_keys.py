"""The tables of renamed keys: every key that params.yaml of commit 4ce4abb had and today's has not stands in them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.docs.pages import parameter_paths, section_of, tables, text_of
from tests.repository import REPOSITORY

# `git show 4ce4abb:params.yaml`: a line for every key that holds a value; ranges and choices of a search are values
OLD_KEYS = text_of(REPOSITORY / "tests" / "docs" / "params_4ce4abb.txt").splitlines()
HEADINGS = {"CHANGELOG.md": "Renamed keys of params.yaml", "docs/experiments.md": "Renamed keys"}
GONE = "gone: "


def renamed(page: str) -> dict[str, str]:
    """Old key -> new key, or why it is gone; `a.*` stands for all keys below a."""
    rows = next(tables(section_of(text_of(REPOSITORY / page), HEADINGS[page])))
    table = {row["old key"].strip("`"): row["new key"].strip("`") for row in rows}
    assert len(table) == len(rows), "an old key has one row"
    return table


def new_name(key: str, table: Mapping[str, str]) -> str | None:
    """The key's new name, or `gone: why`; None if it has no row."""
    if key in table:
        return table[key]
    for old, new in table.items():
        if old.endswith(".*") and key.startswith(old[:-1]):
            return new if new.startswith(GONE) else new[:-1] + key.removeprefix(old[:-1])
    return None


@pytest.mark.parametrize("page", HEADINGS)
def test_every_key_that_left_has_a_row(page: str) -> None:
    table = renamed(page)
    left = [key for key in OLD_KEYS if key not in parameter_paths()]
    assert len(left) > 80
    assert [key for key in left if new_name(key, table) is None] == []


@pytest.mark.parametrize("page", HEADINGS)
def test_a_row_leads_from_an_old_key_to_one_of_today(page: str) -> None:
    table = renamed(page)
    olds = {key[: -len(".*")] if key.endswith(".*") else key for key in table}
    known = set(OLD_KEYS) | {key[:end] for key in OLD_KEYS for end, char in enumerate(key) if char == "."}
    assert sorted(olds - known) == [], "no key of 4ce4abb"
    assert sorted(olds & parameter_paths()) == [], "still a key"
    new = [new_name(key, table) or "" for key in OLD_KEYS if key not in parameter_paths()]
    assert [key for key in new if not key.startswith(GONE) and key not in parameter_paths()] == []


def test_both_pages_have_the_same_table() -> None:
    first, second = (list(renamed(page).items()) for page in HEADINGS)
    assert first == second


def test_a_missing_row_is_found() -> None:
    table = renamed("CHANGELOG.md")
    assert new_name("stack.trees.max_bin", table) == "stack.lightgbm.max_bin"
    assert (new_name("stack.columns.network.steps", table) or "").startswith(GONE)
    assert new_name("stack.seeds", {key: new for key, new in table.items() if key != "stack.seeds"}) is None
