"""The demo's users: activity, profile, and favourite classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from popularity.core.arrays import BoolArray, Float64Array, Int64Array
from popularity.demo.params import DemoParams

START = 1_420_070_400  # 2015-01-01 UTC, unix seconds
DAY = 86_400
SPAN = 540 * DAY  # about 18 months, as in SMPD
FIRST_UPLOAD = 1_076_371_200  # 2004-02-10: no account is older than the site
UNSEEN_SHARE = 0.64  # of the test posts, by users without a training post, as in SMPD

# (minutes east of UTC, name, share of users, latitude, longitude of a home in it)
TIMEZONES = (
    (-480, "PST8PDT", 0.24, 37.77, -122.42),
    (-300, "EST5EDT", 0.26, 40.71, -74.01),
    (0, "Europe/London", 0.20, 51.51, -0.13),
    (60, "Europe/Paris", 0.18, 48.86, 2.35),
    (540, "Asia/Tokyo", 0.12, 35.68, 139.69),
)


@dataclass(frozen=True)
class Users:
    """Profiles; every array has one entry per user.

    Args:
        uid: as published, "70478@N10".
        train_posts, test_posts: posts in each split.
        photo_count: photos of the whole account, more than the posts here.
        first_photo_at: unix s of the first upload, before any post here.
        first_taken_at: unix s by the camera's clock; 0 where the camera had none.
        zone: row in TIMEZONES.
        zone_public, described: True if the profile shows the zone, and has a description.
        skill: standard normal; raises the quality of the user's images.
        renown: standard normal; no profile field shows it.
        tagging: mean number of tags; 0 = never tags.
        geotagging: share of posts with a location.
        favourites: (n, 3) rows of subcategories.
    """

    uid: list[str]
    train_posts: Int64Array
    test_posts: Int64Array
    photo_count: Int64Array
    first_photo_at: Int64Array
    first_taken_at: Int64Array
    is_pro: BoolArray
    can_buy_pro: BoolArray
    zone: Int64Array
    zone_public: BoolArray
    described: BoolArray
    skill: Float64Array
    renown: Float64Array
    tagging: Float64Array
    geotagging: Float64Array
    favourites: Int64Array


def draw_users(params: DemoParams, class_shares: Float64Array, rng: np.random.Generator) -> Users:
    """Users with skewed activity, many of them with posts in the test split alone.

    Args:
        class_shares: share of each subcategory in all posts; sums to 1.
    """
    n = params.users
    activity = 1.0 / (rng.permutation(n) + 5.0)
    posts = 1 + rng.multinomial(params.posts - n, activity / activity.sum()).astype(np.int64)
    test_posts = _test_posts(posts, round(params.test_fraction * params.posts), rng)
    photo_count = np.round(posts * np.exp(rng.normal(3.5, 1.0, n))).astype(np.int64) + posts
    is_pro = rng.random(n) < 1.0 / (1.0 + np.exp(-(np.log(photo_count) - 5.5)))
    first_photo_at = np.maximum(START - rng.exponential(4 * 365 * DAY, n).astype(np.int64) - DAY, FIRST_UPLOAD)
    first_taken_at = first_photo_at - rng.exponential(365 * DAY, n).astype(np.int64)
    numbers = rng.choice(90_000, size=n, replace=False) + 100
    return Users(
        uid=[f"{number}@N{suffix}" for number, suffix in zip(numbers, rng.integers(0, 100, n), strict=True)],
        train_posts=posts - test_posts,
        test_posts=test_posts,
        photo_count=photo_count,
        first_photo_at=first_photo_at,
        first_taken_at=np.where(rng.random(n) < 0.03, 0, first_taken_at),
        is_pro=is_pro,
        can_buy_pro=~is_pro & (rng.random(n) < 0.3),
        zone=rng.choice(len(TIMEZONES), size=n, p=[zone[2] for zone in TIMEZONES]),
        zone_public=rng.random(n) < 0.9,
        described=rng.random(n) < 0.6,
        skill=rng.standard_normal(n),
        renown=rng.standard_normal(n),
        tagging=np.where(rng.random(n) < 0.08, 0.0, rng.lognormal(1.8, 0.6, n)),
        geotagging=np.where(rng.random(n) < 0.4, 0.0, rng.beta(2, 1.5, n)),
        favourites=rng.choice(len(class_shares), size=(n, 3), p=class_shares),
    )


def _test_posts(posts: Int64Array, wanted: int, rng: np.random.Generator) -> Int64Array:
    """Posts of each user in the test split: `wanted` in all, UNSEEN_SHARE of them by users without training posts."""
    in_test = np.zeros_like(posts)
    order = rng.permutation(len(posts))
    room = round(UNSEEN_SHARE * wanted)
    for user in order:  # users who join late: all their posts are in the test split
        if posts[user] <= room:
            in_test[user] = posts[user]
            room -= posts[user]
    room = wanted - in_test.sum()
    for user in order:  # users who stay: some of their posts
        if in_test[user] == 0 and posts[user] > 1:
            in_test[user] = min(max(1, int(posts[user] * rng.uniform(0.15, 0.6))), room)
            room -= in_test[user]
    return in_test
