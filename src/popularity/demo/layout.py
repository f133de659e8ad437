"""Writes users and posts as the files of the official layout."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from popularity.demo.posts import SubcategoryPlace
from popularity.demo.users import TIMEZONES, Users
from popularity.demo.vocabulary import CATEGORIES

DESCRIPTION_SIZE, LOCATION_SIZE = 399, 400  # floats, form A of the user file


def write_metadata(
    folder: Path, split: str, posts: pl.DataFrame, users: Users, classes: list[SubcategoryPlace], profiles: list[Any]
) -> None:
    """The row-aligned files of one part, without labels.

    Args:
        profiles: of every user, from `profiles_of`.
    """
    rows = posts.to_dicts()
    ids = [{"Uid": users.uid[row["user"]], "Pid": row["pid"]} for row in rows]

    def aligned(name: str, fields: Callable[[dict[str, Any]], dict[str, str]]) -> None:
        _write_json(folder / f"{split}_{name}.json", [own | fields(row) for own, row in zip(ids, rows, strict=True)])

    def classes_of(row: dict[str, Any]) -> dict[str, str]:
        place = classes[row["place"]]
        return {
            "Category": place.category.name,
            "Subcategory": place.subcategory.name,
            "Concept": place.subcategory.concepts[row["concept"]],
        }

    aligned("category", classes_of)
    aligned("text", lambda row: {"Title": row["title"], "Mediatype": row["media_type"], "Alltags": row["tags"]})
    aligned(
        "temporalspatial_information",
        lambda row: {
            "Postdate": str(row["posted_at"]),
            "Latitude": "" if row["latitude"] is None else f"{row['latitude']:.6f}",
            "Longitude": "" if row["longitude"] is None else f"{row['longitude']:.6f}",
            "Geoaccuracy": str(row["geo_accuracy"]),
        },
    )
    aligned(
        "additional_information",
        lambda row: {
            "Pathalias": f"alias{row['user']}" if row["user"] % 4 == 0 else "None",
            "Ispublic": "1",
            "Mediastatus": "ready",
        },
    )
    own = [profiles[row["user"]] for row in rows]
    if "timezone_timezone_id" in profiles[0]:
        table = [identity | profile for identity, profile in zip(ids, own, strict=True)]
        columns = {name: {str(i): row[name] for i, row in enumerate(table)} for name in table[0]}
        _write_json(folder / f"{split}_user_data.json", columns)
    else:
        _write_json(folder / f"{split}_user_data.json", own)
    _write_lines(folder / f"{split}_img_filepath.txt", picture_names(split, posts, users))


def write_labels(folder: Path, split: str, labels: Iterable[float]) -> None:
    _write_lines(folder / f"{split}_label.txt", [f"{label:.2f}" for label in labels])


def picture_names(split: str, posts: pl.DataFrame, users: Users) -> list[str]:
    """split/Uid/Pid.jpg of every post."""
    return [f"{split}/{users.uid[user]}/{pid}.jpg" for user, pid in posts.select("user", "pid").iter_rows()]


def write_pictures(shard: Path, pictures: Iterable[tuple[str, bytes]]) -> None:
    """A tar file of (member name, content) with headers that depend on nothing else."""
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in pictures:
            member = tarfile.TarInfo(name)  # time, owner and group are 0
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def profiles_of(users: Users, form: str, classes: list[SubcategoryPlace], rng: np.random.Generator) -> list[Any]:
    """What the user file tells about each user, in form A or B."""
    categories = [category.name for category in CATEGORIES]
    interests = rng.normal(0, 0.1, (len(categories), DESCRIPTION_SIZE))
    homes = rng.normal(0, 0.1, (len(TIMEZONES), LOCATION_SIZE))
    profiles: list[Any] = []
    for user in range(len(users.uid)):
        minutes, zone = TIMEZONES[users.zone[user]][:2]
        offset = f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
        place = classes[users.favourites[user, 0]]
        taken = datetime.fromtimestamp(int(users.first_taken_at[user]), UTC).strftime("%Y-%m-%d %H:%M:%S")
        numbers = (users.photo_count[user], users.is_pro[user], users.can_buy_pro[user], users.first_photo_at[user])
        photo_count, is_pro, can_buy_pro, first_photo_at = (int(number) for number in numbers)
        public, described = bool(users.zone_public[user]), bool(users.described[user])
        if form == "A":
            interest = interests[categories.index(place.category.name)] + rng.normal(0, 0.03, DESCRIPTION_SIZE)
            home = homes[users.zone[user]] + rng.normal(0, 0.03, LOCATION_SIZE)
            profiles.append(
                {
                    "photo_firstdate": str(first_photo_at),
                    "photo_count": str(photo_count),
                    "ispro": str(is_pro),
                    "canbuypro": str(can_buy_pro),
                    "timezone_offset": offset if public else "",
                    "timezone_id": zone if public else "",
                    "photo_firstdatetaken": taken,
                    "user_description": _floats(interest if described else np.zeros(DESCRIPTION_SIZE)),
                    "location_description": _floats(home) if described and public else "",
                }
            )
        else:
            topic = place.subcategory.name.lower()
            words = ", ".join(place.subcategory.words[:3])
            profiles.append(
                {
                    "photo_count": photo_count,
                    "ispro": is_pro,
                    "canbuypro": can_buy_pro,
                    "photo_firstdate": first_photo_at,
                    "photo_firstdatetaken": taken,
                    "timezone_offset": offset if public else None,
                    "timezone_timezone_id": zone if public else None,
                    "user_description": f"I love <b>{topic}</b>: {words} &amp; more." if described else "",
                    "location_description": f"somewhere in {zone}" if described and public else "",
                }
            )
    return profiles


def _floats(values: Iterable[float]) -> str:
    return ",".join(f"{value:.3f}" if value else "0" for value in values)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
