"""Readable class names for prompts: a few rules of spelling, then an explicit table (paper, Sec 3.2)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

# SMPD's names that are misspelt or truncated at a space, spelt by the rules of `readable_name` -> readable.
READABLE: Mapping[str, Mapping[str, str]] = {
    "category": {
        "holiday and celebrations": "holidays and celebrations",
        "social and people": "people",
        "travel and active and sports": "travel and sports",
        "whether and season": "weather and seasons",
    },
    "subcategory": {
        "go pro": "gopro",
        "good": "good morning",
        "high": "high heels",
        "i pad": "ipad",
        "i phone": "iphone",
        "independence": "independence day",
        "labor": "labor day",
        "memorial": "memorial day",
        "new": "new year",
        "super": "super bowl",
        "valentine": "valentine's day",
        "valentines": "valentine's day",
        "video": "video games",
        "video and games": "video games",
    },
    "concept": {},
}


def readable_name(name: str, level: str) -> str:
    """Returns a name as lower-case words: CamelCase, '_' and ',' become spaces, '&' becomes 'and', then READABLE.

    Args:
        name: as published.
        level: one of LEVELS.

    >>> readable_name("Whether&Season", "category"), readable_name("StreetArt", "subcategory")
    ('weather and seasons', 'street art')
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[_,]", " ", name).replace("&", " and ")
    tidy = " ".join(words.lower().split())
    return READABLE[level].get(tidy, tidy) or name


def readable_names(names: Sequence[str], level: str, parents: Sequence[str | None]) -> list[str]:
    """Returns a readable name for each class of a level; equal names get their parent's in front.

    Args:
        names: the classes' own names, as published.
        level: one of LEVELS.
        parents: readable name of each class's parent; None: it has none.
    """
    readable = [readable_name(name, level) for name in names]
    times = Counter(readable)
    return [
        f"{parent} {name}" if parent and times[name] > 1 else name
        for name, parent in zip(readable, parents, strict=True)
    ]
