"""Titles and tags: words of the image's class or of another one, words of mood, neutral words."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from popularity.demo.vocabulary import CAMERA_TITLES, MOODS, NEUTRAL_TAGS

TITLE_FORMS = ("{}", "{} {}", "the {} and the {}", "{} at the {}", "{} {} with {}", "my {} {} in {}")
GOOD_WORDS, BAD_WORDS = ([word for word, weight in MOODS.items() if (weight > 0) == good] for good in (True, False))
MOOD_COUNTS = (0.35, 0.35 + 0.25, 0.35 + 0.25 + 0.25)  # thresholds: a draw below them gives 0, 1, 2 mood words


@dataclass(frozen=True)
class PostText:
    """A post's title and tags, and their truth.

    Args:
        agreement: share of the content words that were taken from the image's class; None without any.
        mood: sum of the weights of the different mood words.
    """

    title: str
    tags: str
    tag_count: int
    agreement: float | None
    mood: float


def compose(
    own: Sequence[str], other: Sequence[str], agreement: float, tagging: float, rng: np.random.Generator
) -> PostText:
    """One post's text.

    Args:
        own: words of the image's class, the frequent ones repeated.
        other: words of another class, for the rest of the text.
        agreement: probability that a content word is one of `own`.
        tagging: mean number of tags.
    """
    taken: list[bool] = []

    def content() -> str:
        taken.append(bool(rng.random() < agreement))
        words = own if taken[-1] else other
        return words[int(rng.integers(len(words)))]

    moods = _moods(rng)
    title, chance = "", rng.random()
    if chance < 0.08:
        pass
    elif chance < 0.16:
        title = f"{CAMERA_TITLES[rng.integers(len(CAMERA_TITLES))]}_{rng.integers(1000, 9999)}"
    else:
        form = TITLE_FORMS[rng.integers(len(TITLE_FORMS))]
        words = [content() for _ in range(form.count("{}"))]
        title = " ".join([*moods[:1], form.format(*words)])
        title = title[0].upper() + title[1:]
    tags: dict[str, None] = {}  # an ordered set: Flickr keeps a tag once
    if tagging and rng.random() > 0.05:
        for _ in range(1 + rng.poisson(tagging)):
            neutral = rng.random() < 0.12
            tags[NEUTRAL_TAGS[rng.integers(len(NEUTRAL_TAGS))] if neutral else content()] = None
        tags.update(dict.fromkeys(moods[1:] if title else moods))
    used = set(title.lower().split()) | set(tags)
    return PostText(
        title=title,
        tags=" ".join(tags),
        tag_count=len(tags),
        agreement=sum(taken) / len(taken) if taken else None,
        mood=sum((weight for word, weight in MOODS.items() if word in used), start=0.0),
    )


def _moods(rng: np.random.Generator) -> list[str]:
    """0 to 3 different mood words, all good or all bad."""
    good = rng.random() < 0.6
    words = GOOD_WORDS if good else BAD_WORDS
    order = rng.permutation(len(words))
    return [words[i] for i in order[: bisect_right(MOOD_COUNTS, rng.random())]]
