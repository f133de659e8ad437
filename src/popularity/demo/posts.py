"""The demo's posts: who, when, what class, how good a picture, which text, where."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import polars as pl

from popularity.demo.params import DemoParams
from popularity.demo.texts import compose
from popularity.demo.users import DAY, SPAN, START, TIMEZONES, Users
from popularity.demo.vocabulary import CATEGORIES, Category, Subcategory

BURST_GAP = (40, 600)  # s between the posts of one upload session
BURST_SIZE = 5
HOURS = np.arange(24)
HOUR_RATES = 1.2 + 0.8 * np.cos((HOURS - 20) * np.pi / 12) + 0.3 * np.cos((HOURS - 13) * np.pi / 6)  # local time


@dataclass(frozen=True)
class SubcategoryPlace:
    """A subcategory in use, below its category."""

    category: Category
    subcategory: Subcategory
    share: float  # of all posts


def choose_classes(count: int) -> list[SubcategoryPlace]:
    """`count` subcategories, spread over the categories in turn; shares follow those of SMPD's categories."""
    rounds = max(len(category.subcategories) for category in CATEGORIES)
    places = [
        (category, category.subcategories[turn])
        for turn in range(rounds)
        for category in CATEGORIES
        if turn < len(category.subcategories)
    ][:count]
    siblings = [sum(category is other for other, _ in places) for category, _ in places]
    shares = np.array([category.share / n for (category, _), n in zip(places, siblings, strict=True)])
    shares /= shares.sum()
    return [SubcategoryPlace(*place, share) for place, share in zip(places, shares.tolist(), strict=True)]


def draw_posts(
    params: DemoParams, users: Users, classes: list[SubcategoryPlace], rng: np.random.Generator
) -> pl.DataFrame:
    """All posts in the order of collection, which is nearly that of time.

    Columns: pid; split; user, place, concept (rows of `users`, `classes`, concepts of the place); posted_at (unix s);
    local_hour; quality (0-1); title; tags; tag_count; agreement (null without content words); mood; media_type;
    latitude, longitude (null without a place); geo_accuracy.
    """
    cut = START + round(SPAN * (1 - params.test_share))
    shares = np.array([place.share for place in classes])
    rows: list[dict[str, object]] = []
    for user in range(len(users.uid)):
        for split, count, phase in (
            ("train", users.train_posts[user], (START, cut)),
            ("test", users.test_posts[user], (cut, START + SPAN)),
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
                place = int(users.favourites[user, rng.integers(3)] if favourite else rng.choice(len(shares), p=shares))
                moment = _moment(window, phase, offset, rng)
                lag = rng.exponential(5 * DAY)  # between a session and its collection
                for _ in range(burst):
                    rows.append(
                        {
                            "split": split,
                            "user": user,
                            "place": place,
                            "posted_at": moment,
                            "local_hour": (moment + offset) % DAY / 3600,
                            "collected_at": moment + lag,
                        }
                        | _content(users, user, classes, place, rng)
                    )
                    moment += int(rng.integers(*BURST_GAP))
    # The parts were collected one after the other; the pid counts what was collected, with gaps.
    posts = pl.DataFrame(rows, infer_schema_length=None).sort(
        pl.col("split") == "test", "collected_at", "posted_at", maintain_order=True
    )
    numbers = 1000 + np.cumsum(rng.integers(1, 9, len(posts)))
    return posts.drop("collected_at").with_columns(pl.Series("pid", [str(number) for number in numbers]))


def _window(
    phase: tuple[int, int], *, until_end: bool, from_start: bool, rng: np.random.Generator
) -> tuple[float, float]:
    """The time in which a user is active within a phase, unix s: users join and leave."""
    length = min(3 * DAY + rng.exponential(0.15 * SPAN), 0.8 * (phase[1] - phase[0]))
    start = phase[0] if from_start else rng.uniform(phase[0], phase[1] - length)
    return start, phase[1] if until_end else start + length


def _moment(window: tuple[float, float], phase: tuple[int, int], offset: int, rng: np.random.Generator) -> int:
    """The start of a session, unix s: a day of the window, at an hour that people like in local time."""
    hour = rng.choice(24, p=HOUR_RATES / HOUR_RATES.sum())
    day = int(rng.uniform(*window)) // DAY * DAY
    moment = day + int(hour) * 3600 + int(rng.integers(3600)) - offset
    while moment < phase[0]:
        moment += DAY
    while moment + BURST_SIZE * BURST_GAP[1] >= phase[1]:
        moment -= DAY
    return moment


def _content(
    users: Users, user: int, classes: list[SubcategoryPlace], place: int, rng: np.random.Generator
) -> dict[str, object]:
    """The columns of one post that its user and its class decide."""
    here = classes[place]
    concept = min(int(rng.geometric(0.5)), len(here.subcategory.concepts)) - 1
    foreign = [other for other in classes if other.category is not here.category]
    other = foreign[rng.integers(len(foreign))]
    text = compose(_words(here, concept), _words(other, 0), _agreement(rng), float(users.tagging[user]), rng)
    latitude = longitude = None
    accuracy = 0
    if rng.random() < users.geotagging[user]:
        home = TIMEZONES[users.zone[user]]
        latitude, longitude = home[3] + rng.normal(0, 1.5), home[4] + rng.normal(0, 1.5)
        accuracy = int(rng.choice((1, 3, 6, 11, 16), p=(0.02, 0.05, 0.08, 0.25, 0.6)))
    return {
        "concept": concept,
        "quality": _uniform(0.5 * users.skill[user] + np.sqrt(0.75) * rng.standard_normal()),
        "title": text.title,
        "tags": text.tags,
        "tag_count": text.tag_count,
        "agreement": text.agreement,
        "media_type": "video" if rng.random() < 0.03 else "photo",
        "mood": text.mood,
        "latitude": latitude,
        "longitude": longitude,
        "geo_accuracy": accuracy,
    }


def _words(place: SubcategoryPlace, concept: int) -> list[str]:
    """The words of a class, each as often as it is to be used."""
    own = place.subcategory
    return [*place.category.words, *2 * own.words, *4 * (own.name.lower(), own.concepts[concept])]


def _agreement(rng: np.random.Generator) -> float:
    """Chance that a word is about the picture: mostly high, sometimes middling, sometimes about nil."""
    kind = rng.random()
    return float(rng.beta(9, 1) if kind < 0.6 else rng.beta(4, 4) if kind < 0.8 else rng.beta(1, 12))


def _uniform(normal: float) -> float:
    """The standard normal distribution function."""
    return 0.5 * (1.0 + math.erf(normal / math.sqrt(2.0)))
