"""Writes users and posts in the files of the official layout."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl

from popularity.core.arrays import Float64Array
from popularity.demo.posts import DemoClass
from popularity.demo.users import TIMEZONES, Users
from popularity.demo.vocabulary import CATEGORIES

DESCRIPTION_SIZE, LOCATION_SIZE = 399, 400  # floats, form A of the user file


def write_metadata(
    folder: Path, split: str, posts: pl.DataFrame, users: Users, classes: list[DemoClass], profiles: Profiles
) -> None:
    """Writes the row-aligned files of one split, without labels.

    Args:
        profiles: of every user, from `profiles_of`.
    """

    def rows() -> Iterator[dict[str, Any]]:
        return posts.iter_rows(named=True)

    def aligned(name: str, fields: Callable[[dict[str, Any]], dict[str, str]]) -> None:
        records = ({"Uid": users.uid[row["user"]], "Pid": row["pid"]} | fields(row) for row in rows())
        _write_list(folder / f"{split}_{name}.json", (_coded(record) for record in records))

    def classes_of(row: dict[str, Any]) -> dict[str, str]:
        used = classes[row["class_index"]]
        return {
            "Category": used.category.name,
            "Subcategory": used.subcategory.name,
            "Concept": used.subcategory.concepts[row["concept"]],
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
    path = folder / f"{split}_user_data.json"
    if profiles.form == "A":
        _write_list(path, map(profiles.record, posts["user"]))
    else:
        # Uids and pids of the rows, then the fields of their users: column by column.
        columns = {"Uid": ([_coded(uid) for uid in users.uid], posts["user"]), "Pid": (None, posts["pid"])}
        columns |= {name: (values, posts["user"]) for name, values in profiles.columns().items()}
        _write_columns(path, columns)
    _write_lines(folder / f"{split}_img_filepath.txt", image_names(split, posts, users))


def write_labels(folder: Path, split: str, labels: Iterable[float]) -> None:
    _write_lines(folder / f"{split}_label.txt", [f"{label:.2f}" for label in labels])


def image_names(split: str, posts: pl.DataFrame, users: Users) -> list[str]:
    """split/Uid/Pid.jpg of every post."""
    return [f"{split}/{users.uid[user]}/{pid}.jpg" for user, pid in posts.select("user", "pid").iter_rows()]


def write_images(shard: Path, images: Iterable[tuple[str, bytes]]) -> None:
    """Writes a tar file of (member name, content); its headers depend on nothing else."""
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in images:
            member = tarfile.TarInfo(name)  # time, owner and group are 0
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


class Profiles:
    """The entries of the user file, in form A or B, as JSON on disk.

    A user's entry is in each of his rows, and has 5 KB in form A: memory holds its offset alone.
    """

    def __init__(self, form: str, stream: BinaryIO) -> None:
        self.form, self.stream, self.ends = form, stream, [0]

    def append(self, profile: dict[str, Any]) -> None:
        self.ends.append(self.ends[-1] + self.stream.write(_coded(profile).encode()))

    def record(self, user: int) -> str:
        start, end = self.ends[user : user + 2]
        self.stream.flush()
        return os.pread(self.stream.fileno(), end - start, start).decode()

    def columns(self) -> dict[str, list[str]]:
        """Every field of all users as JSON."""
        records = [json.loads(self.record(user)) for user in range(len(self.ends) - 1)]
        return {name: [_coded(record[name]) for record in records] for name in records[0]}


def profiles_of(
    users: Users, form: str, classes: list[DemoClass], rng: np.random.Generator, stream: BinaryIO
) -> Profiles:
    """The entry of each user in the user file, in form A or B; `stream`, an open file, holds them."""
    categories = [category.name for category in CATEGORIES]
    interests = rng.normal(0, 0.1, (len(categories), DESCRIPTION_SIZE))
    homes = rng.normal(0, 0.1, (len(TIMEZONES), LOCATION_SIZE))
    profiles = Profiles(form, stream)
    for user in range(len(users.uid)):
        minutes, zone = TIMEZONES[users.zone[user]][:2]
        offset = f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
        used = classes[users.favourites[user, 0]]
        taken = datetime.fromtimestamp(int(users.first_taken_at[user]), UTC).strftime("%Y-%m-%d %H:%M:%S")
        numbers = (users.photo_count[user], users.is_pro[user], users.can_buy_pro[user], users.first_photo_at[user])
        photo_count, is_pro, can_buy_pro, first_photo_at = (int(number) for number in numbers)
        public, described = bool(users.zone_public[user]), bool(users.described[user])
        if form == "A":
            interest = interests[categories.index(used.category.name)] + rng.normal(0, 0.03, DESCRIPTION_SIZE)
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
            topic = used.subcategory.name.lower()
            words = ", ".join(used.subcategory.words[:3])
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


def _floats(values: Float64Array) -> str:
    if values.any():
        return ",".join(["%.3f"] * len(values)) % tuple(values.tolist())
    return ",".join(["0"] * len(values))


def _coded(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write_list(path: Path, records: Iterable[str]) -> None:
    """Writes a JSON list of records that are JSON already, with the spaces of `json.dumps`."""
    with path.open("w", encoding="utf-8") as stream:
        for row, record in enumerate(records):
            stream.write(f"{', ' if row else '['}{record}")
        stream.write("]")


def _write_columns(path: Path, columns: Mapping[str, tuple[list[str] | None, pl.Series]]) -> None:
    """{column: {"0": value, ...}}. A column is (values as JSON, index of each row's value) or (None, texts)."""
    with path.open("w", encoding="utf-8") as stream:
        for index, (name, (values, rows)) in enumerate(columns.items()):
            stream.write(f"{', ' if index else '{'}{_coded(name)}: {{")
            for row, value in enumerate(rows):
                coded = _coded(value) if values is None else values[value]
                stream.write(f'{", " if row else ""}"{row}": {coded}')
            stream.write("}")
        stream.write("}")


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
