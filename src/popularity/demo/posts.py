"""The demo's posts: user, time, class, image quality, text, location."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from popularity.core.arrays import Float64Array
from popularity.demo.params import DemoParams
from popularity.demo.texts import compose
from popularity.demo.users import DAY, SPAN, START, TIMEZONES, Users
from popularity.demo.vocabulary import CATEGORIES, Category, Subcategory, widened

BURST_GAP = (40, 600)  # s between the posts of one upload session
BURST_SIZE = 5
ACCURACIES = (1, 3, 6, 11, 16)
SKILL_REST = np.sqrt(0.75)
HOURS = np.arange(24)
HOUR_RATES = 1.2 + 0.8 * np.cos((HOURS - 20) * np.pi / 12) + 0.3 * np.cos((HOURS - 13) * np.pi / 6)  # local time

COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "split": pl.String,
    "user": pl.Int64,
    "class_index": pl.Int64,
    "posted_at": pl.Int64,
    "local_hour": pl.Float64,
    "collected_at": pl.Float64,
    "concept": pl.Int64,
    "quality": pl.Float64,
    "title": pl.String,
    "tags": pl.String,
    "tag_count": pl.Int64,
    "agreement": pl.Float64,
    "media_type": pl.String,
    "mood": pl.Float64,
    "latitude": pl.Float64,
    "longitude": pl.Float64,
    "geo_accuracy": pl.Int64,
}
COLLECTED = {
    "train": (1.0, 1.0),
    "test": (4.0, 1.0),
}  # beta distribution of a session's place in the collection, 0 to 1
ROWS = 8192  # drawn before they become columns
Row = tuple[Any, ...]


@dataclass(frozen=True)
class DemoClass:
    """A subcategory that the demo uses, with its category."""

    category: Category
    subcategory: Subcategory
    share: float  # of all posts


def choose_classes(count: int) -> list[DemoClass]:
    """`count` subcategories, spread over the categories in turn; shares follow those of SMPD's categories."""
    each = -(-count // len(CATEGORIES))
    rounds = max(each, *(len(category.subcategories) for category in CATEGORIES))
    categories = [widened(category, max(each, len(category.subcategories))) for category in CATEGORIES]
    pairs = [
        (category, category.subcategories[turn])
        for turn in range(rounds)
        for category in categories
        if turn < len(category.subcategories)
    ][:count]
    siblings = [sum(category is other for other, _ in pairs) for category, _ in pairs]
    shares = np.array([category.share / n for (category, _), n in zip(pairs, siblings, strict=True)])
    shares /= shares.sum()
    return [DemoClass(*pair, share) for pair, share in zip(pairs, shares.tolist(), strict=True)]


def draw_posts(params: DemoParams, users: Users, classes: list[DemoClass], rng: np.random.Generator) -> pl.DataFrame:
    """All posts in the order of collection, which is nearly the order of time, if the trend is not along it.

    Columns: pid; split; user, class_index, concept (rows of `users`, `classes`, concepts of the class); posted_at
    (unix s); local_hour; quality (0-1); title; tags; tag_count; agreement (null without content words); mood;
    media_type; latitude, longitude (null without a location); geo_accuracy.
    """
    rows = _rows(params, users, classes, rng)
    frames = [pl.DataFrame(chunk, schema=COLUMNS, orient="row") for chunk in _chunks(rows, ROWS)]
    # The splits were collected one after the other, or together; pids count the collected posts, with gaps.
    first = [] if params.trend_along == "collection" else [pl.col("split") == "test"]
    posts = pl.concat(frames).sort(*first, "collected_at", "posted_at", maintain_order=True)
    numbers = 1000 + np.cumsum(rng.integers(1, 9, len(posts)))
    return posts.drop("collected_at").with_columns(pl.Series("pid", [str(number) for number in numbers]))


def _chunks(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def _rows(params: DemoParams, users: Users, classes: list[DemoClass], rng: np.random.Generator) -> Iterator[Row]:
    """The posts, user by user, in the order of COLUMNS."""
    split_time = START + round(SPAN * (1 - params.test_fraction))
    shares = _cumulated([used.share for used in classes])
    hours = _cumulated(HOUR_RATES / HOUR_RATES.sum())
    vocabularies = _vocabularies(classes)
    for user in range(len(users.uid)):
        for split, count, phase in (
            ("train", users.train_posts[user], (START, split_time)),
            ("test", users.test_posts[user], (split_time, START + SPAN)),
        ):
            stays = split == "train" and users.test_posts[user] > 0
            returns = split == "test" and users.train_posts[user] > 0
            window = _window(phase, until_end=bool(stays), from_start=bool(returns), rng=rng)
            offset = TIMEZONES[users.zone[user]][0] * 60
            left = int(count)
            while left:
                burst = min(int(rng.geometric(0.55)), BURST_SIZE, left)
                left -= burst
                favourite = rng.random() < 0.7
                class_index = int(users.favourites[user, rng.integers(3)]) if favourite else _choice(shares, rng)
                moment = _moment(window, phase, offset, hours, rng)
                collected = moment + rng.exponential(5 * DAY)  # of the session
                if params.trend_along == "collection":
                    collected = rng.beta(*COLLECTED[split])
                for _ in range(burst):
                    local_hour = (moment + offset) % DAY / 3600
                    content = _content(users, user, vocabularies[class_index], rng)
                    yield split, user, class_index, moment, local_hour, collected, *content
                    moment += int(rng.integers(*BURST_GAP))


def _cumulated(shares: Sequence[float] | Float64Array) -> list[float]:
    """Cumulated shares for `_choice`, computed as numpy's `choice` does."""
    total = np.asarray(shares, dtype=np.float64).cumsum()
    return (total / total[-1]).tolist()  # type: ignore[no-any-return]


def _choice(cumulated: list[float], rng: np.random.Generator) -> int:
    """The same draw as `rng.choice(len(shares), p=shares)`, at a tenth of the cost."""
    return bisect_right(cumulated, rng.random())


def _window(
    phase: tuple[int, int], *, until_end: bool, from_start: bool, rng: np.random.Generator
) -> tuple[float, float]:
    """The time in which a user is active within a phase, unix s: users join and leave."""
    length = min(3 * DAY + rng.exponential(0.15 * SPAN), 0.8 * (phase[1] - phase[0]))
    start = phase[0] if from_start else rng.uniform(phase[0], phase[1] - length)
    return start, phase[1] if until_end else start + length


def _moment(
    window: tuple[float, float], phase: tuple[int, int], offset: int, hours: list[float], rng: np.random.Generator
) -> int:
    """The start of a session, unix s: a day of the window, at an hour drawn from HOUR_RATES in local time."""
    hour = _choice(hours, rng)
    day = int(rng.uniform(*window)) // DAY * DAY
    moment = day + hour * 3600 + int(rng.integers(3600)) - offset
    while moment < phase[0]:
        moment += DAY
    while moment + BURST_SIZE * BURST_GAP[1] >= phase[1]:
        moment -= DAY
    return moment


ACCURACY_SHARES = _cumulated((0.02, 0.05, 0.08, 0.25, 0.6))


@dataclass(frozen=True)
class Vocabulary:
    """The words of a class for each of its concepts, and those of every class below another category."""

    own: list[list[str]]
    foreign: list[list[str]]


def _vocabularies(classes: list[DemoClass]) -> list[Vocabulary]:
    words = [[_words(used, concept) for concept in range(len(used.subcategory.concepts))] for used in classes]
    return [
        Vocabulary(own, [words[index][0] for index, other in enumerate(classes) if other.category is not used.category])
        for own, used in zip(words, classes, strict=True)
    ]


def _content(users: Users, user: int, vocabulary: Vocabulary, rng: np.random.Generator) -> Row:
    """The columns from `concept` on: they follow from the user and the class of a post."""
    concept = min(int(rng.geometric(0.5)), len(vocabulary.own)) - 1
    other = vocabulary.foreign[rng.integers(len(vocabulary.foreign))]
    text = compose(vocabulary.own[concept], other, _agreement(rng), float(users.tagging[user]), rng)
    latitude = longitude = None
    accuracy = 0
    if rng.random() < users.geotagging[user]:
        home = TIMEZONES[users.zone[user]]
        latitude, longitude = home[3] + rng.normal(0, 1.5), home[4] + rng.normal(0, 1.5)
        accuracy = ACCURACIES[_choice(ACCURACY_SHARES, rng)]
    quality = _uniform(0.5 * users.skill[user] + SKILL_REST * rng.standard_normal())
    media_type = "video" if rng.random() < 0.03 else "photo"
    return (
        *(concept, quality, text.title, text.tags, text.tag_count, text.agreement, media_type, text.mood),
        *(latitude, longitude, accuracy),
    )


def _words(used: DemoClass, concept: int) -> list[str]:
    """The words of a class, each repeated by its frequency."""
    own = used.subcategory
    return [*used.category.words, *2 * own.words, *4 * (own.name.lower(), own.concepts[concept])]


def _agreement(rng: np.random.Generator) -> float:
    """Probability that a word is about the image: mostly high, sometimes medium, sometimes near 0."""
    kind = rng.random()
    return float(rng.beta(9, 1) if kind < 0.6 else rng.beta(4, 4) if kind < 0.8 else rng.beta(1, 12))


def _uniform(normal: float) -> float:
    """The standard normal distribution function."""
    return 0.5 * (1.0 + math.erf(normal / math.sqrt(2.0)))
