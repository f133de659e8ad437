"""Features of the post alone: time, account, text form, location, image header, classes.

Each function takes the posts as a lazy frame and returns (pid, its features).
"""

from __future__ import annotations

import polars as pl

from popularity.core.collection_order import id_number
from popularity.core.contracts import FURTHER

# Columns of text that the learners take as categories; the uid only if `stack.columns.uid_category` is true.
CATEGORIES = ("category", "subcategory", "concept", "media_type", "timezone_id", "uid")


def categories_of(features: pl.DataFrame) -> tuple[str, ...]:
    """The categories among the columns of `features`: CATEGORIES, and those of a user's own table."""
    further = (name for name, dtype in features.schema.items() if name.startswith(FURTHER) and dtype == pl.String)
    return (*CATEGORIES, *further)


TEXT = "text"  # title and tags unchanged: for the ridge on characters and the text model, not a column of the matrix

DAY = 86_400.0


def days(duration: pl.Expr) -> pl.Expr:
    """Returns a duration in days, as a float."""
    return duration.dt.total_seconds() / DAY


def join_by_pid(table: pl.DataFrame, features: pl.DataFrame) -> pl.DataFrame:
    """Returns `table` with the columns of `features`, by pid; no join is made if both have the same posts in order.

    Args:
        table: (pid, columns).
        features: (pid, further columns).
    """
    if table["pid"].equals(features["pid"]):
        return table.hstack(features.drop("pid"))
    return table.join(features, on="pid", how="left", validate="1:1", maintain_order="left")


def time_features(posts: pl.LazyFrame) -> pl.LazyFrame:
    """Returns the calendar of the post: hour (0-23, UTC and the user's clock), weekday (1-7), day, week, month."""
    local = pl.col("posted_at") + pl.duration(minutes=pl.col("timezone_offset").fill_null(0))
    return posts.select(
        "pid",
        hour=pl.col("posted_at").dt.hour().cast(pl.Float64) + pl.col("posted_at").dt.minute() / 60,
        hour_local=local.dt.hour().cast(pl.Float64) + local.dt.minute() / 60,
        weekday=local.dt.weekday().cast(pl.Int32),
        day_of_month=local.dt.day().cast(pl.Int32),
        week=local.dt.week().cast(pl.Int32),
        month=local.dt.month().cast(pl.Int32),
    )


def account_features(posts: pl.LazyFrame) -> pl.LazyFrame:
    """Returns the account at post time: age, photo count, their ratio, and permissions."""
    age = days(pl.col("posted_at") - pl.col("first_photo_at"))
    taken_age = days(pl.col("posted_at") - pl.col("first_taken_at"))
    return posts.select(
        "pid",
        account_age_days=age,
        first_taken_age_days=taken_age,
        photo_count="photo_count",
        photos_per_day=pl.col("photo_count") / age.clip(lower_bound=1.0),
        is_pro=pl.col("is_pro").cast(pl.Int32),
        can_buy_pro=pl.col("can_buy_pro").cast(pl.Int32),
        is_public=pl.col("is_public").cast(pl.Int32),
        has_path_alias=pl.col("has_path_alias").cast(pl.Int32),
        timezone_offset="timezone_offset",
        user_description_length=pl.col("user_description").str.len_chars().cast(pl.Int32),
        location_description_length=pl.col("location_description").str.len_chars().cast(pl.Int32),
    )


def text_features(posts: pl.LazyFrame) -> pl.LazyFrame:
    """Returns the form of title and tags: lengths in characters and words, punctuation, case, digits."""
    columns: dict[str, pl.Expr] = {}
    for name in ("title", "tags"):
        text = pl.col(name)
        length = text.str.len_chars()
        words = text.str.extract_all(r"\S+")
        columns |= {
            f"{name}_length": length.cast(pl.Int32),
            f"{name}_words": words.list.len().cast(pl.Int32),
            f"{name}_word_length": (text.str.count_matches(r"\S") / words.list.len()).fill_nan(0.0),
            f"{name}_unique_words": words.list.n_unique().cast(pl.Int32),
            f"{name}_upper_share": (text.str.count_matches(r"\p{Lu}") / length).fill_nan(0.0),
            f"{name}_digit_share": (text.str.count_matches(r"\d") / length).fill_nan(0.0),
            f"{name}_questions": text.str.count_matches(r"\?").cast(pl.Int32),
            f"{name}_exclamations": text.str.count_matches("!").cast(pl.Int32),
            f"{name}_non_ascii_share": (text.str.count_matches(r"[^\x00-\x7F]") / length).fill_nan(0.0),
        }
    return posts.select("pid", **columns)


def location_features(posts: pl.LazyFrame) -> pl.LazyFrame:
    """Returns coordinates in degrees, their accuracy, and whether there are any."""
    return posts.select(
        "pid",
        has_place=pl.col("latitude").is_not_null().cast(pl.Int32),
        latitude="latitude",
        longitude="longitude",
        geo_accuracy=pl.col("geo_accuracy").cast(pl.Int32),
    )


def image_features(images: pl.LazyFrame) -> pl.LazyFrame:
    """Returns the image header: size in pixels and bytes, aspect, bytes a pixel, and whether the image is usable."""
    area = pl.col("width").cast(pl.Float64) * pl.col("height")
    return images.select(
        "pid",
        image_ok=(pl.col("status") == "ok").cast(pl.Int32),
        image_width="width",
        image_height="height",
        image_aspect=pl.col("width") / pl.col("height"),
        image_bytes=pl.when(pl.col("bytes") > 0).then(pl.col("bytes")),
        image_bytes_per_pixel=pl.when(area > 0).then(pl.col("bytes") / area),
        image_grey=(pl.col("mode") == "L").cast(pl.Int32),
    )


def collection_features(posts: pl.LazyFrame) -> pl.LazyFrame:
    """Returns the feature group `collection_order`: the numbers of Pid and Uid; null where one is no number."""
    return posts.select("pid", **{f"collection_order.{name}": id_number(name) for name in ("pid", "uid")})


def row_features(posts: pl.LazyFrame, images: pl.LazyFrame) -> pl.LazyFrame:
    """Returns (pid, categories, the text, every row feature): one row a post, from that post alone.

    Args:
        posts: contract POSTS.
        images: contract IMAGES, of the same posts.
    """
    table = posts.select("pid", *CATEGORIES, pl.concat_str("title", "tags", separator=" ").alias(TEXT))
    for features in (time_features, account_features, text_features, location_features, collection_features):
        table = table.join(features(posts), on="pid", how="left", validate="1:1")
    return table.join(image_features(images), on="pid", how="left", validate="1:1")
