"""Random small tables with every awkward case: ties in time, empty texts, missing values, lone users."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from popularity.core.contracts import IMAGES, POSTS, check_table

WORDS = ("cat", "dog", "Sea", "sun2", "sky!", "ÄRGER", "why?", "2016", "red", "car")


def random_posts(seed: int, train: int = 90, test: int = 40, users: int = 18) -> pl.DataFrame:
    """Posts in time order, the test split after the training split and partly by users of its own."""
    rng = np.random.default_rng(seed)
    n = train + test
    hours = np.sort(rng.integers(0, 400, n)) * 6  # many ties
    hours[train:] += hours[train - 1] + 1 - min(0, int(hours[train] - hours[train - 1] - 1))

    def text() -> str:
        return " ".join(rng.choice(WORDS, rng.integers(0, 5)))

    def maybe(value: object, share: float = 0.2) -> object:
        return None if rng.random() < share else value

    rows = []
    for position in range(n):
        level = int(rng.integers(4))
        posted = datetime(2015, 12, 20, tzinfo=UTC) + timedelta(
            hours=int(hours[position]), minutes=int(rng.integers(2))
        )
        user = int(rng.integers(users)) if position < train else int(rng.integers(users // 2, users * 2))
        rows.append(
            {
                "pid": str(int(rng.integers(10)) + 10 * (7 * n - 3 * position)),
                "split": "train" if position < train else "test",
                "source_index": position if position < train else position - train,
                "uid": f"{user}@N0",
                "label": round(float(rng.normal(6, 2)), 2) if position < train else None,
                "category": f"C{level % 2}",
                "subcategory": f"C{level % 2}/S{level}",
                "concept": f"C{level % 2}/S{level}/{rng.integers(3)}",
                "title": text(),
                "tags": text(),
                "media_type": "photo",
                "posted_at": posted,
                "latitude": maybe(float(rng.uniform(-90, 90))),
                "longitude": maybe(float(rng.uniform(-180, 180))),
                "geo_accuracy": 11,
                "has_path_alias": bool(rng.random() < 0.5),
                "is_public": maybe(True),
                "media_status": "ready",
                "image_path": f"x/{position}.jpg",
                "photo_count": maybe(int(rng.integers(1000))),
                "is_pro": maybe(bool(rng.random() < 0.5)),
                "can_buy_pro": False,
                "first_photo_at": maybe(posted - timedelta(days=float(rng.uniform(0.1, 900)))),
                "first_taken_at": None,
                "timezone_offset": maybe(int(rng.integers(-720, 720))),
                "timezone_id": maybe("Europe/Paris"),
                "user_description": maybe(text()),
                "location_description": None,
            }
        )
    posts = pl.DataFrame(rows, schema={name: rule.dtype for name, rule in POSTS.columns.items()}).sort("pid")
    check_table(posts, POSTS)
    return posts


def random_images(posts: pl.DataFrame, seed: int) -> pl.DataFrame:
    """A header for most posts; some images are missing."""
    rng = np.random.default_rng(seed)
    rows = []
    for pid in posts["pid"]:
        missing = rng.random() < 0.1
        width, height = (None, None) if missing else (int(rng.integers(1, 500)), int(rng.integers(1, 500)))
        size, mode, status = (0, None, "missing") if missing else (int(rng.integers(1, 9999)), "RGB", "ok")
        rows.append((pid, "" if missing else "a.tar", 0, size, width, height, mode, status, ""))
    return pl.DataFrame(rows, schema={name: rule.dtype for name, rule in IMAGES.columns.items()}, orient="row")
