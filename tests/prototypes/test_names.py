"""Readable names: the rules, the table, and classes that read alike."""

from __future__ import annotations

import pytest

from popularity.core.contracts import LEVELS
from popularity.prototypes.names import READABLE, readable_name, readable_names


@pytest.mark.parametrize(
    ("name", "level", "readable"),
    [
        ("New", "subcategory", "new year"),
        ("Super", "subcategory", "super bowl"),
        ("New", "concept", "new"),  # the table is that of the level
        ("Whether&Season", "category", "weather and seasons"),
        ("Girls,Fashion", "subcategory", "girls fashion"),
        ("street_art", "subcategory", "street art"),
        ("StreetArt", "subcategory", "street art"),
        ("NYCMarathon", "concept", "nyc marathon"),
        ("iPhone", "subcategory", "iphone"),
        ("Sea/Lake", "concept", "sea/lake"),
        ("日本", "concept", "日本"),
        ("_", "concept", "_"),
    ],
)
def test_names_are_made_readable(name: str, level: str, readable: str) -> None:
    assert readable_name(name, level) == readable


def test_the_table_is_complete_and_reachable() -> None:
    """Every entry is applied: its key is what the rules make of a name, so that it can be met."""
    assert set(READABLE) == set(LEVELS)
    for level, table in READABLE.items():
        for key, readable in table.items():
            assert readable_name(key, level) == readable


def test_classes_that_read_alike_have_their_parent_in_front() -> None:
    names = ["Beach", "beach", "Hiking", "Beach"]
    parents = ["travel", "weather and seasons", "travel", None]
    assert readable_names(names, "subcategory", parents) == [
        "travel beach",
        "weather and seasons beach",
        "hiking",
        "beach",
    ]
