"""A small valid data set in the official layout, which a test mutates and then writes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tests.small_images import image_bytes, write_tar

Row = dict[str, Any]
NEW_NAMES = {
    "category": "_category.json",
    "text": "_text.json",
    "temporalspatial": "_temporalspatial_information.json",
    "additional": "_additional_information.json",
    "user": "_user_data.json",
    "images": "_img_filepath.txt",
}
OLD_NAMES = {
    **NEW_NAMES,
    "text": "_tags.json",
    "temporalspatial": "_temporalspatial.json",
    "additional": "_additional.json",
    "user": "_userdata.json",
    "images": "_img.txt",
}
ROLES = ("category", "text", "temporalspatial", "additional", "user")


@dataclass
class Part:
    """Row-aligned records per role; `user` records hold Uid and Pid, which form A leaves out when written."""

    split: str
    records: dict[str, list[Row]] = field(default_factory=dict)
    image_paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def reorder(self, order: Iterable[int]) -> None:
        """Reorders the rows of all files alike."""
        order = list(order)
        for role in self.records:
            self.records[role] = [self.records[role][row] for row in order]
        self.image_paths = [self.image_paths[row] for row in order]
        self.labels = [self.labels[row] for row in order] if self.labels else []


@dataclass
class Layout:
    """A data set: `train`, `test` (None: absent), and how to write it."""

    train: Part
    test: Part | None
    form: Literal["A", "B"] = "B"
    names: dict[str, str] = field(default_factory=lambda: dict(NEW_NAMES))
    bom: bool = False

    @property
    def parts(self) -> list[Part]:
        return [part for part in (self.train, self.test) if part is not None]

    def write(self, root: Path) -> Path:
        for part in self.parts:
            for role, records in part.records.items():
                if role != "user":
                    content: Any = records
                elif self.form == "A":
                    content = [
                        {key: value for key, value in row.items() if key not in ("Uid", "Pid")} for row in records
                    ]
                else:
                    columns = {key: None for row in records for key in row}
                    content = {key: {str(index): row.get(key) for index, row in enumerate(records)} for key in columns}
                self.write_text(root, part, role, json.dumps(content))
            self.write_text(root, part, "images", "\n".join(part.image_paths) + "\n")
            if part.labels:
                path = root / "train_allmetadata_json" / "train_label.txt"
                path.write_text("\n".join(part.labels) + "\n", encoding="utf-8")
        return root

    def write_text(self, root: Path, part: Part, role: str, text: str) -> None:
        path = self.path(root, part.split, role)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8-sig" if self.bom else "utf-8")

    def path(self, root: Path, split: str, role: str) -> Path:
        return root / f"{split}_allmetadata_json" / f"{split}{self.names[role]}"


def build(form: Literal["A", "B"] = "B", train: int = 12, test: int = 6, **options: Any) -> Layout:
    """A valid data set of `train` + `test` posts by five users, two of them in the test split alone."""
    return Layout(_part("train", 0, train, form), _part("test", train, test, form) if test else None, form, **options)


def vector(seed: int, length: int) -> str:
    return ",".join(f"{value:.4f}" for value in np.random.default_rng(seed).normal(size=length))


def _part(split: str, start: int, count: int, form: str) -> Part:
    part = Part(split, {role: [] for role in ROLES})
    for number in range(start, start + count):
        user = number % 3 + (2 if split == "test" else 0)
        ids = {"Uid": f"7{user}@N0{user}", "Pid": str(5000 + 7 * number)}
        add = {role: part.records[role].append for role in ROLES}
        category = ("Food", "Animal")[number % 2]
        add["category"](
            {**ids, "Category": category, "Subcategory": f"kind {number % 3}", "Concept": f"thing {number % 4}"}
        )
        add["text"]({**ids, "Title": f"Title {number}", "Mediatype": "photo", "Alltags": "red green"})
        add["temporalspatial"](
            {
                **ids,
                "Postdate": str(1_430_000_000 + 86_400 * number),
                "Latitude": "48.137",
                "Longitude": "11.575",
                "Geoaccuracy": "16",
            }
        )
        add["additional"]({**ids, "Pathalias": "None", "Ispublic": "1", "Mediastatus": "ready"})
        row = {**ids, "photo_count": str(10 + user), "ispro": "1", "canbuypro": "0", "photo_firstdate": "1400000000"}
        if form == "A":
            add["user"](
                {
                    **row,
                    "timezone_offset": "-08:00",
                    "timezone_id": "PST8PDT",
                    "photo_firstdatetaken": "1300000000",
                    "user_description": vector(user, 399),
                    "location_description": vector(100 + user, 400) if user else "",
                }
            )
        else:
            add["user"](
                {
                    **row,
                    "timezone_offset": None,
                    "timezone_timezone_id": "Europe/Berlin",
                    "photo_firstdatetaken": "2011-03-13 07:06:40",
                    "user_description": "I <b>love</b> tea &amp; cake<br>see <a href='x'>here</a>",
                    "location_description": "",
                }
            )
        part.image_paths.append(f"{split}/{ids['Uid']}/{ids['Pid']}.jpg")
        if split == "train":
            part.labels.append(f"{1.25 + number % 60 / 2:.2f}")
    return part


def write_folder(layout: Layout, root: Path) -> None:
    """Every image of the data set as a file."""
    for number, path in enumerate(path for part in layout.parts for path in part.image_paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(image_bytes(number))


def write_tars(layout: Layout, root: Path) -> None:
    """Every image of the data set, one tar per part."""
    for part in layout.parts:
        members = [(path, image_bytes(number)) for number, path in enumerate(part.image_paths)]
        write_tar(root / f"{part.split}_images.tar", members)
