"""Row features against a slow reference that reads one post at a time."""

from __future__ import annotations

import math
import re
import unicodedata
from datetime import timedelta
from typing import Any

import pytest

from popularity.features import row_features
from tests.random_posts import random_images, random_posts


def slow(post: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
    local = post["posted_at"] + timedelta(minutes=post["timezone_offset"] or 0)

    def days(since: Any) -> float | None:
        return None if since is None else (post["posted_at"] - since).total_seconds() // 1 / 86_400

    age = days(post["first_photo_at"])
    known = image["width"] is not None
    expected: dict[str, Any] = {
        "hour": post["posted_at"].hour + post["posted_at"].minute / 60,
        "hour_local": local.hour + local.minute / 60,
        "weekday": local.isoweekday(),
        "day_of_month": local.day,
        "week": local.isocalendar().week,
        "month": local.month,
        "account_age_days": age,
        "first_taken_age_days": days(post["first_taken_at"]),
        "photo_count": post["photo_count"],
        "photos_per_day": None if None in (post["photo_count"], age) else post["photo_count"] / max(age or 0.0, 1.0),
        "is_pro": post["is_pro"],
        "can_buy_pro": post["can_buy_pro"],
        "is_public": post["is_public"],
        "has_path_alias": post["has_path_alias"],
        "timezone_offset": post["timezone_offset"],
        "user_description_length": None if post["user_description"] is None else len(post["user_description"]),
        "location_description_length": None,
        "has_place": post["latitude"] is not None,
        "latitude": post["latitude"],
        "longitude": post["longitude"],
        "geo_accuracy": post["geo_accuracy"],
        "image_ok": image["status"] == "ok",
        "image_width": image["width"],
        "image_height": image["height"],
        "image_aspect": image["width"] / image["height"] if known else None,
        "image_bytes": image["bytes"] or None,
        "image_bytes_per_pixel": image["bytes"] / (image["width"] * image["height"]) if known else None,
        "collection_order.pid": int(post["pid"]),
        "collection_order.uid": int(post["uid"].removesuffix("@N0")),
        "image_grey": None if image["mode"] is None else image["mode"] == "L",
    }
    for name in ("title", "tags"):
        text, words = post[name], post[name].split()
        expected |= {
            f"{name}_length": len(text),
            f"{name}_words": len(words),
            f"{name}_word_length": sum(map(len, words)) / len(words) if words else 0,
            f"{name}_unique_words": len(set(words)),
            f"{name}_upper_share": sum(unicodedata.category(c) == "Lu" for c in text) / len(text) if text else 0,
            f"{name}_digit_share": len(re.findall(r"\d", text)) / len(text) if text else 0,
            f"{name}_questions": text.count("?"),
            f"{name}_exclamations": text.count("!"),
            f"{name}_non_ascii_share": sum(ord(c) > 127 for c in text) / len(text) if text else 0,
        }
    return expected


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equal_to_the_slow_reference(seed: int) -> None:
    posts = random_posts(seed)
    images = random_images(posts, seed)
    table = row_features(posts.lazy(), images.lazy()).collect().sort("pid")
    assert table["pid"].to_list() == posts["pid"].to_list()
    for post, image, found in zip(posts.to_dicts(), images.to_dicts(), table.to_dicts(), strict=True):
        for name, value in slow(post, image).items():
            if value is None:
                assert found[name] is None, name
            else:
                assert math.isclose(found[name], value, rel_tol=1e-12), (name, found[name], value)


def test_the_text_is_title_and_tags_as_published() -> None:
    posts = random_posts(0)
    table = row_features(posts.lazy(), random_images(posts, 0).lazy()).collect().sort("pid")
    assert table["text"].to_list() == [f"{title} {tags}" for title, tags in posts.select("title", "tags").iter_rows()]
    assert table["text"].n_unique() > 10


def test_the_order_of_the_files_is_never_a_feature() -> None:
    posts = random_posts(0)
    assert not {"source_index", "label", "split"} & set(
        row_features(posts.lazy(), random_images(posts, 0).lazy()).collect_schema()
    )
