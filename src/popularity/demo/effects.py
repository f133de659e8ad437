"""Labels as a known sum of effects."""

from __future__ import annotations

import numpy as np
import polars as pl

from popularity.core.arrays import Float64Array, Int64Array
from popularity.demo.params import DemoParams
from popularity.demo.posts import DemoClass
from popularity.demo.users import DAY, SPAN, START, Users

BASE = 6.4  # mean label of the training part, as in SMPD
NOISE = 1.25  # standard deviation
# Standard deviation of each effect over the posts, in units of the label (doublings of views).
SPREADS = {
    "user_profile": 0.8,  # follows from photo count, pro status and age of the account
    "user_own": 1.15,  # visible in the user's other posts alone
    "category": 0.5,
    "subcategory": 0.4,
    "concept": 0.25,
    "image_quality": 1.05,
    "words": 0.8,
    "tag_count": 0.4,
    "agreement": 0.55,  # of text and image
    "hour": 0.3,
}
EFFECTS = ("base", *SPREADS, "trend")


def add_up(
    posts: pl.DataFrame, users: Users, classes: list[DemoClass], params: DemoParams, rng: np.random.Generator
) -> pl.DataFrame:
    """Columns pid, split, the effects, noise, expected (the sum of the effects), views and label; rows as in `posts`.

    views = 2 ** (expected + noise) - 1, rounded, at least 1; label = log2(views + 1), to 2 decimals.
    """
    user = posts["user"].to_numpy()
    age = (START - users.first_photo_at) / (365 * DAY)  # years
    profile = 0.5 * np.log(users.photo_count) + 0.8 * users.is_pro + 0.1 * age
    class_index, concept = posts["class_index"].to_numpy(), posts["concept"].to_numpy()
    names = [used.category.name for used in classes]
    category = np.array([names.index(name) for name in names])[class_index]
    agreement = posts["agreement"].to_numpy()
    hour = posts["local_hour"].to_numpy()
    raw: dict[str, Float64Array] = {
        "user_profile": profile[user],
        "user_own": users.renown[user],
        "category": rng.standard_normal(len(classes))[category],
        "subcategory": rng.standard_normal(len(classes))[class_index],
        "concept": rng.standard_normal((len(classes), 8))[class_index, concept],
        "image_quality": posts["quality"].to_numpy(),
        "words": posts["mood"].to_numpy(),
        "tag_count": np.log2(1.0 + posts["tag_count"].to_numpy()),
        "agreement": np.where(np.isnan(agreement), np.nanmean(agreement), agreement),
        "hour": np.cos((hour - 20.0) * np.pi / 12.0),  # best in the evening
    }
    effects = {name: (values - values.mean()) / values.std() * SPREADS[name] for name, values in raw.items()}
    if params.trend_along == "collection":  # the order of the rows
        along = np.arange(len(posts)) / len(posts)
    else:
        along = (posts["posted_at"].to_numpy() - START) / SPAN
    effects["trend"] = -params.trend * (along - along[(posts["split"] == "train").to_numpy()].mean())
    effects = {"base": np.full(len(posts), BASE)} | effects
    expected = np.sum(list(effects.values()), axis=0)
    noise = rng.normal(0.0, NOISE, len(posts))
    views = views_of(expected + noise)
    return posts.select("pid", "split").with_columns(
        **{name: pl.Series(values) for name, values in effects.items()},
        noise=pl.Series(noise),
        expected=pl.Series(expected),
        views=pl.Series(views),
        label=pl.Series(label_of(views)),
    )


def views_of(expected_label: Float64Array) -> Int64Array:
    """The whole number of views, at least 1, whose label is nearest to `expected_label`."""
    return np.maximum(np.round(np.exp2(expected_label) - 1.0), 1.0).astype(np.int64)


def label_of(views: Int64Array) -> Float64Array:
    """log2(views + 1), rounded to 2 decimals as published."""
    labels: Float64Array = np.round(np.log2(views + 1.0), 2)
    return labels
