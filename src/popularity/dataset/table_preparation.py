"""What `make dataset TABLE=...` does: find the columns of a table, check its posts, and write section dataset."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from popularity.core.atomic import atomic_path
from popularity.core.errors import DataError
from popularity.core.params_text import edited
from popularity.dataset.parsing import present
from popularity.dataset.preparation import refuse_unquotable, summary_text
from popularity.dataset.table import IngestedTable, OwnTable, date_of_test_part, further_name, ingest_table
from popularity.dataset.table_columns import TableColumns, find_columns, mapping_text, parse_map
from popularity.dataset.table_file import TableFile
from popularity.images import IndexImagesParams, index_images


@dataclass(frozen=True)
class TableRequest:
    """What a user says of a table.

    Args:
        table: its file.
        images: folder of the pictures, or None.
        mapping: of MAP, for `parse_map`; "" if all is to be found.
        test: file of the test posts, or None.
        test_from: posts from this date on are the test part; "" for none.
        follow_links: True to take pictures that are links to files outside of `images`.
        several: dataset.several_pictures, for the counts.
    """

    table: Path
    images: Path | None
    mapping: str
    test: Path | None
    test_from: str
    follow_links: bool = False
    several: Literal["first", "mean"] = "first"


@dataclass(frozen=True)
class PreparedTable:
    """The values of section dataset, and what people read.

    Args:
        values: key path of params.yaml -> value.
        text: mapping, counts, and what was done.
    """

    values: Mapping[tuple[str, ...], Any]
    text: str


def prepare_table(request: TableRequest, images: IndexImagesParams, packed: Path) -> PreparedTable:
    """The section dataset of a table, and its mapping, counts and first rows as text.

    All that the stages `ingest` and `index_images` would refuse is refused here.

    Args:
        request: of the user.
        images: section index_images.
        packed: folder in which a table without pictures gets an empty folder of its own.

    Raises:
        DataError: a file, a column, a row, a value or too many pictures that cannot be used.
    """
    table = TableFile(request.table.resolve())
    test = table if request.test is None else TableFile(request.test.resolve())
    root = _root(request, packed)
    for path in (root, table.path, test.path):
        refuse_unquotable(path)
    found = find_columns(table, parse_map(request.mapping), with_pictures=request.images is not None)
    own = OwnTable(table, test, found.columns, date_of_test_part(request.test_from), request.images is not None)
    ingested = ingest_table(own)
    if late := _only_in_training(ingested, found.columns):
        reason = "only training posts have it: it may have come after the count"
        numbers, categories = (
            tuple(name for name in names if name not in late)
            for names in (found.columns.numbers, found.columns.categories)
        )
        found = replace(
            found,
            columns=replace(found.columns, numbers=numbers, categories=categories),
            left_out={**found.left_out, **dict.fromkeys(late, reason)},
        )
        ingested = ingest_table(replace(own, columns=found.columns))
    _, pictures = index_images(ingested.posts, root, images, follow_links=request.follow_links, several=request.several)
    values: dict[tuple[str, ...], Any] = {
        ("dataset", "root"): str(root),
        ("dataset", "table"): os.path.relpath(table.path, root),
        ("dataset", "test_table"): os.path.relpath(test.path, root),
        ("dataset", "test_from"): request.test_from,
        ("dataset", "follow_links"): request.follow_links,
    }
    values |= {("dataset", "columns", name): value for name, value in found.columns.as_values().items()}
    counts = _counts(table, found.columns)
    summary = {**ingested.summary, "images": pictures}
    lines = [mapping_text(found, counts), *ingested.summary["table"]["notes"], summary_text(summary)]
    if found.columns.count:
        lines.append(f"popularity is log2({found.columns.count} + 1); predictions say the count, too")
    return PreparedTable(values, "\n".join(lines))


def write_section(params: Path, prepared: PreparedTable) -> None:
    """Writes section dataset into params.yaml; comments and order stay."""
    text = edited(params.read_text(encoding="utf-8"), prepared.values, "make dataset", str(params))
    with atomic_path(params) as partial:
        partial.write_text(text, encoding="utf-8")


def _root(request: TableRequest, packed: Path) -> Path:
    """The folder of the pictures; for a table without any an empty folder."""
    if request.images is None:
        root = packed.resolve() / request.table.name.partition(".")[0]
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            raise DataError(
                "is not empty", file=root, expected="an empty folder", fix="give IMAGES=, or rename the table"
            )
        return root
    if not request.images.is_dir():
        raise DataError("no such folder", file=request.images, expected="the folder of the pictures: IMAGES=folder")
    return request.images.resolve()


def _only_in_training(ingested: IngestedTable, columns: TableColumns) -> list[str]:
    """Further columns that no test post has, and most training posts have."""
    joined = ingested.columns.join(ingested.posts.select("pid", "split"), on="pid", validate="1:1")
    train, test = (joined.filter(split=split) for split in ("train", "test"))
    if test.is_empty():
        return []
    return [
        name
        for name in (*columns.numbers, *columns.categories)
        if test[further_name(name)].null_count() == len(test)
        and train[further_name(name)].null_count() * 2 < len(train)
    ]


def _counts(table: TableFile, columns: TableColumns) -> dict[str, int]:
    """Column -> rows with a value."""
    counts = dict.fromkeys(columns.used(), 0)
    for frame in table.frames(columns.used()):
        for column in frame:
            counts[column.name] += len(column) - present(column).null_count()
    return counts
