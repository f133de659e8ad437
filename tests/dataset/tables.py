"""Small tables of posts with pictures, as a shop, a channel and a forum keep them; the docs show the same commands."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image

Row = Mapping[str, Any]
START = datetime(2024, 1, 1, 9, 30)


def write_csv(file: Path, rows: Sequence[Row], separator: str = ",", encoding: str = "utf-8") -> Path:
    with file.open("w", newline="", encoding=encoding) as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return file


def write_pictures(folder: Path, names: Sequence[str]) -> Path:
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 16), (10 * index % 256, 80, 120)).save(folder / name)
    return folder


def shop(folder: Path, rows: int = 60) -> tuple[Path, Path]:
    """listings.csv and photos/: prices and conditions beside the text; no seller, no classes."""
    listings = [
        {
            "listing_id": f"L{row}",
            "photo": f"{row}.JPG",
            "title": ("brass lamp", "wool rug, red", 'chair "oak"')[row % 3],
            "tags": ("lamp,home", "rug,home", "chair,garden")[row % 3],
            "listed_at": (START + timedelta(hours=20 * row)).isoformat(),
            "views": "" if row >= rows - 10 else 3 * row,
            "Price (EUR)": 5 + row % 4,
            "condition": ("new", "used")[row % 2],
            "favorites": row,
        }
        for row in range(rows)
    ]
    table = write_csv(folder / "listings.csv", listings)
    return table, write_pictures(folder / "photos", [str(row["photo"]) for row in listings])


def channel(folder: Path, rows: int = 60) -> tuple[Path, Path]:
    """videos.jsonl and thumbnails/: a list of tags, classes, unix seconds; thumbnails are named by the ids."""
    table = folder / "videos.jsonl"
    videos = [
        {
            "videoId": f"v{row}",
            "channelId": f"c{row % 4}",
            "videoTitle": f"how to bake {('bread', 'cake', 'pie')[row % 3]}",
            "hashtags": ["baking", ("bread", "cake", "pie")[row % 3]],
            "publishedAt": int((START + timedelta(days=row)).timestamp()),
            "category": ("food", "travel")[row % 2],
            "seconds": 60 + row,
            "viewCount": 100 * row,
        }
        for row in range(rows)
    ]
    table.write_text("".join(json.dumps(video) + "\n" for video in videos), encoding="utf-8")
    return table, write_pictures(folder / "thumbnails", [f"v{row}.png" for row in range(rows)])


def forum(folder: Path, rows: int = 60) -> tuple[Path, Path]:
    """posts.parquet and later.csv, whose posts have no score yet: texts alone, dates without a time of day."""
    posts = [
        {
            "thread": f"t{row}",
            "author": f"a{row % 7}",
            "subject": ("a leaking tap", "which drill?", "paint peels")[row % 3],
            "board": ("water", "tools", "walls")[row % 3],
            "day": (START + timedelta(days=row)).date().isoformat(),
            "upvotes": row,
        }
        for row in range(rows)
    ]
    pl.DataFrame(posts[:-10]).with_columns(pl.col("day").str.to_date()).write_parquet(folder / "posts.parquet")
    later = write_csv(folder / "later.csv", [{**post, "upvotes": ""} for post in posts[-10:]])
    return folder / "posts.parquet", later
