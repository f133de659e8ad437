"""A user's own table to the tables posts, users, columns and quarantine, and a summary of what was found."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from popularity.core.contracts import (
    COLUMNS,
    FURTHER,
    LEVELS,
    POSTS,
    QUARANTINE,
    UNCLASSIFIED,
    USERS,
    check_table,
    class_key,
    empty_table,
)
from popularity.core.errors import DataError
from popularity.dataset.dates import DateColumn, post_dates
from popularity.dataset.parsing import Parser, Quarantine, Rows, from_seconds, numbers, present
from popularity.dataset.summary import Notes, Source, summarise
from popularity.dataset.table_columns import TableColumns, plain_name, refuse_too_little
from popularity.dataset.table_dates import DateFormat, refuse_unknown_dates, to_unix
from popularity.dataset.table_file import TableFile

MAX_LABEL = 40.0  # log2(count + 1)
URL = r"(?i)^(https?|ftp)://"
SUFFIX = r"\.[A-Za-z]{3,4}"
SEVERAL = rf"{SUFFIX}\s*[;|\n]|{SUFFIX}\s*[,\s]\s*\S+{SUFFIX}"  # paths of several pictures of a post
FINEST = 16  # geo_accuracy of coordinates
CONSTANT = {"media_type": "photo", "media_status": "ready", "has_path_alias": False}  # of every post of a table


@dataclass(frozen=True)
class OwnTable:
    """A table with what its columns are and which of its posts are the test part.

    Args:
        table: of the training posts.
        test: of the test posts; the same file: they are rows of it.
        columns: what each column is.
        test_from: posts from this date on are the test part; None: those without a count.
        pictures: whether there is a folder of pictures.
    """

    table: TableFile
    test: TableFile
    columns: TableColumns
    test_from: datetime | None
    pictures: bool


@dataclass(frozen=True)
class IngestedTable:
    """A table as tables that keep the contracts POSTS, USERS, COLUMNS and QUARANTINE, and a summary."""

    posts: pl.DataFrame
    users: pl.DataFrame
    columns: pl.DataFrame
    quarantine: pl.DataFrame
    summary: dict[str, Any]


def ingest_table(own: OwnTable, collected_at: datetime | None = None) -> IngestedTable:
    """The posts of a table, checked.

    A value that is only implausible becomes null (a date becomes the median) and gets a row in `quarantine`. A row
    before `test_from` that has no count is left out, and has one too.

    Args:
        own: the table.
        collected_at: when the counts were read, UTC; None: not known.

    Raises:
        DataError: a file, a column, a row or a value that cannot be used.
    """
    refuse_too_little(own.columns, own.table, with_pictures=own.pictures)
    quarantine, notes = Quarantine(), _Notes()
    files = [own.table] if own.test.path == own.table.path else [own.table, own.test]
    read = [_Reader(own, file, quarantine, notes).posts() for file in files]
    table = pl.concat(read)
    _refuse_twice(table, own)
    if own.test_from is None and len(files) == 1 and not own.columns.label and table["label"].null_count() == 0:
        notes.lines.append("every row has a count: there is no test part (TEST_FROM=date makes one)")
    table = _split(table, own, quarantine, notes)
    table = _with_classes(table, own, notes).sort("pid")
    posts = table.with_columns(collected_at=pl.lit(collected_at).cast(POSTS.columns["collected_at"].dtype))
    posts = posts.select(list(POSTS.columns))
    further = table.select("pid", pl.col(f"^{FURTHER}.*$"))
    users = empty_table(USERS).vstack(
        pl.DataFrame({"uid": posts["uid"].unique().sort()}).with_columns(
            pl.lit(None).cast(column.dtype).alias(name) for name, column in USERS.columns.items() if name != "uid"
        )
    )
    entries = quarantine.table()
    for frame, contract in ((posts, POSTS), (users, USERS), (further, COLUMNS), (entries, QUARANTINE)):
        check_table(frame, contract)
    sources = [Source(split, own.table.path.parent, ()) for split in ("train", "test") if split in set(posts["split"])]
    summary = summarise(own.table.path.parent, sources, posts, entries, Notes(files=notes.files))
    summary["table"] = {
        "file": own.table.path.name,
        "test_file": own.test.path.name,
        "columns": own.columns.as_values(),
        "unclassified": bool((posts["concept"] == UNCLASSIFIED["concept"]).all()),
        "notes": list(dict.fromkeys(notes.lines)),
    }
    return IngestedTable(posts, users, further, entries, summary)


@dataclass
class _Notes:
    """What was done with a table, in sentences; filled while it is read."""

    lines: list[str] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)


class _Reader:
    """Reads the posts of one file, in its order."""

    def __init__(self, own: OwnTable, file: TableFile, quarantine: Quarantine, notes: _Notes) -> None:
        self.own, self.columns, self.file, self.notes = own, own.columns, file, notes
        self.only_test = file.path == own.test.path != own.table.path
        wanted = own.columns.used()
        if self.only_test:
            unseen = (own.columns.count, own.columns.label)
            wanted = [name for name in wanted if name not in unseen or name in file.names]
        self.frame = file.read(wanted)
        self.rows = len(self.frame)
        self.pids = self._ids()
        self.parser = Parser(Rows(file.path.name, 0, self.pids), quarantine)
        notes.files[str(file.path)] = {
            "role": "test table" if self.only_test else "table",
            "layout": file.kind,
            "stored_as": "",
            "rows": self.rows,
        }

    def posts(self) -> pl.DataFrame:
        """The columns of POSTS but the classes' keys, the names of classes, and the further columns."""
        latitude, longitude = self._place()
        columns = {
            "pid": self.pids,
            "row": pl.Series(range(self.rows), dtype=pl.Int64),
            "only_test": pl.repeat(self.only_test, self.rows, dtype=pl.Boolean, eager=True),
            "uid": self._users(),
            "label": self._labels(),
            "title": self._text(self.columns.text),
            "tags": self._tags(),
            "posted_at": self._dates(),
            "latitude": latitude,
            "longitude": longitude,
            "image_path": self._pictures(),
            **{level: self._text(getattr(self.columns, level)) for level in LEVELS},
            **self._further(),
        }
        frame = pl.DataFrame(columns).with_columns(
            geo_accuracy=pl.when(pl.col("latitude").is_null()).then(0).otherwise(FINEST).cast(pl.Int8),
            **{name: pl.lit(value) for name, value in CONSTANT.items()},
        )
        absent = [name for name in POSTS.columns if name not in frame.columns and name not in ("split", "source_index")]
        return frame.with_columns(pl.lit(None).cast(POSTS.columns[name].dtype).alias(name) for name in absent)

    def _texts(self, name: str) -> pl.Series:
        if not name or name not in self.frame.columns:
            return pl.Series([None] * self.rows, dtype=pl.String)
        return self.frame[name]

    def _text(self, name: str) -> pl.Series:
        return self.parser.text(name, self._texts(name))

    def _ids(self) -> pl.Series:
        if not self.columns.id:
            return pl.Series([f"{self.file.path.stem}-{row}" for row in range(self.rows)], dtype=pl.String)
        ids = present(self.frame[self.columns.id])
        unusable = (ids.is_null() | ids.str.contains(r"[\x00\r\n]").fill_null(value=False)).arg_true()
        if len(unusable):
            row = int(unusable[0])
            raise DataError(
                f"{self.columns.id} is {self.frame[self.columns.id][row]!r}",
                file=self.file.path,
                row=row,
                expected="an id of at least one character, without line breaks",
                fix="repair the row; MAP=id= makes ids of the numbers of the rows",
            )
        return ids

    def _users(self) -> pl.Series:
        if not self.columns.user:
            return self.pids
        users = present(self.frame[self.columns.user])
        return pl.select(pl.when(users.is_null()).then(pl.format("user of {}", self.pids)).otherwise(users)).to_series()

    def _tags(self) -> pl.Series:
        """Words: commas and # between tags become spaces where no tag has a space within it, else underscores."""
        tags = self._text(self.columns.tags)
        listed = tags.str.contains(",", literal=True)
        joined = tags.str.replace_all(r"\s*,\s*", ",").str.replace_all(r"\s+", "_").str.replace_all(",", " ")
        plain = pl.select(pl.when(listed).then(joined).otherwise(tags)).to_series()
        return plain.str.replace_all(r"(^|\s)#", "$1")

    def _dates(self) -> pl.Series:
        name = self.columns.date
        texts = self.frame[name]
        written: DateFormat = refuse_unknown_dates(texts, self.file.path)
        if not written.timed:
            self.notes.lines.append(f"{name} has no time of day: all posts count as of 0:00 UTC, and hours say nothing")
        column = DateColumn(self.file.path, name, f"the posts of {self.file.path.name}", "a date as the others")
        return from_seconds(post_dates(texts, self.parser, column, to_unix(texts, written)))

    def _place(self) -> tuple[pl.Series, pl.Series]:
        latitude = self.parser.number(self.columns.latitude, self._texts(self.columns.latitude), -90, 90)
        longitude = self.parser.number(self.columns.longitude, self._texts(self.columns.longitude), -180, 180)
        nowhere = latitude.is_null() | longitude.is_null() | ((latitude == 0) & (longitude == 0)).fill_null(value=False)
        return latitude.set(nowhere, None), longitude.set(nowhere, None)

    def _labels(self) -> pl.Series:
        """log2(count + 1); null where the row has no count."""
        name = self.columns.count or self.columns.label
        texts = self._texts(name).str.replace_all(r"(\d)[,\s\u00a0](\d{3})\b", "$1$2")
        given, values = present(texts), numbers(texts)
        missing = given.is_null() | given.str.to_lowercase().is_in(["nan", "null", "na", "n/a", "-"]).fill_null(
            value=False
        )
        high = 2.0**MAX_LABEL if self.columns.count else MAX_LABEL
        wrong = (~missing & ~values.is_between(0, high, closed="left").fill_null(value=False)).arg_true()
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"{name} is {self._texts(name)[row]!r}",
                file=self.file.path,
                row=row,
                expected=(
                    "a count, 0 or more, or nothing for a test post"
                    if self.columns.count
                    else f"log2(count + 1), from 0 to {MAX_LABEL:.0f}; MAP=label=,count={name} takes the logarithm"
                ),
            )
        values = values.set(missing, None)
        return (values + 1).log(2) if self.columns.count else values

    def _pictures(self) -> pl.Series:
        """Paths below the folder of pictures; "" for a post that names none."""
        if not self.own.pictures:
            return pl.repeat("", self.rows, dtype=pl.String, eager=True)
        name = self.columns.picture
        if not name:
            return pl.select(pl.format("{}.jpg", self.pids)).to_series()
        paths = self.parser.text(name, self.frame[name]).str.strip_chars()
        urls = paths.str.contains(URL)
        if urls.any():
            row = int(urls.arg_true()[0])
            raise DataError(
                f"{name} is {paths[row][:80]!r}, an address: {int(urls.sum())} of {self.rows} rows have one",
                file=self.file.path,
                row=row,
                expected="paths of files: nothing is downloaded",
                fix="download the pictures into a folder and name the files in a column",
            )
        several = paths.str.contains(SEVERAL)
        if several.any():
            self.notes.lines.append(
                f"{int(several.sum())} posts have several pictures in {name}: the first is taken, or the mean of all "
                "where dataset.several_pictures is mean"
            )
            listed = paths.filter(several).map_elements(lambda path: "\n".join(pictures_in(path)), pl.String)
            paths = paths.scatter(several.arg_true(), listed)
        return paths.str.replace_all("\\", "/", literal=True).str.replace_all(r"(?m)^(\./)+", "")

    def _further(self) -> dict[str, pl.Series]:
        """Further columns under their names in the features."""
        found: dict[str, pl.Series] = {}
        for name in self.columns.numbers:
            texts = self.frame[name]
            parser = self.parser
            found[further_name(name)] = parser.number(name, texts, -1e30, 1e30)
        for name in self.columns.categories:
            found[further_name(name)] = self.parser.optional_text(name, self.frame[name].str.strip_chars())
        return found


def pictures_in(text: str) -> list[str]:
    """The paths of several pictures: separated by ; or | or lines, or by commas or spaces after a suffix.

    >>> pictures_in("a.jpg; my b.png|c.jpg, d.jpg e.webp")
    ['a.jpg', 'my b.png', 'c.jpg', 'd.jpg', 'e.webp']
    """
    lines = re.sub(rf"({SUFFIX})\s*[,\s]\s*(?=\S+{SUFFIX})", r"\1\n", text)
    return [path.strip() for path in re.split(r"[;|\n]", lines) if path.strip()]


def further_name(name: str) -> str:
    """The name of a further column in the features.

    >>> further_name("Price (EUR)")
    'table_price_eur'
    """
    return FURTHER + (plain_name(name) or "column")


def _refuse_twice(table: pl.DataFrame, own: OwnTable) -> None:
    again = (~table["pid"].is_first_distinct()).arg_true()
    if len(again):
        second = table.row(int(again[0]), named=True)
        first = table.row(int((table["pid"] == second["pid"]).arg_true()[0]), named=True)
        raise DataError(
            f"id {second['pid']!r} again, first in row {first['row']}",
            file=(own.test if second["only_test"] else own.table).path,
            row=second["row"],
            expected="each id once",
            fix="remove one of the rows; MAP=id= makes ids of the numbers of the rows",
        )


def _split(table: pl.DataFrame, own: OwnTable, quarantine: Quarantine, notes: _Notes) -> pl.DataFrame:
    """`table` with split and source_index; test posts have no label."""
    if own.test_from is not None:
        table = table.with_columns(test=pl.col("only_test") | (pl.col("posted_at") >= own.test_from))
        hidden = int(table.filter("test")["label"].is_not_null().sum())
        if hidden:
            notes.lines.append(f"the counts of {hidden} test posts are not used")
    else:
        second = own.test.path != own.table.path
        table = table.with_columns(test=pl.col("only_test") if second else pl.col("label").is_null())
    unknown = ~table["test"] & table["label"].is_null()
    if unknown.any():
        rows = table.filter(unknown)
        for row, pid in rows.select("row", "pid").iter_rows():
            parser = Rows(own.table.path.name, row, pl.Series([pid]))
            name = own.columns.count or own.columns.label
            quarantine.add(parser, name, pl.Series([""]), pl.Series([True]), "no count", "post left out")
        table = table.filter(~unknown)
        notes.lines.append(f"{len(rows)} training posts without a count are left out")
    if table["test"].all():
        raise DataError(
            "no row is a training post" + (f" before {own.test_from}" if own.test_from else " with a count"),
            file=own.table.path,
            expected="posts with a count, from which to learn",
            fix="check TEST_FROM and the column of the counts",
        )
    return table.with_columns(
        split=pl.when("test").then(pl.lit("test")).otherwise(pl.lit("train")),
        label=pl.when("test").then(None).otherwise(pl.col("label")),
        source_index=pl.int_range(pl.len(), dtype=pl.Int64).over("test"),
    )


def _with_classes(table: pl.DataFrame, own: OwnTable, notes: _Notes) -> pl.DataFrame:
    """`table` with the keys of the classes; deeper levels that the table lacks repeat the one above."""
    given = [level for level in LEVELS if getattr(own.columns, level)]
    names = table.select(given).with_columns(pl.all().str.strip_chars()) if given else pl.DataFrame()
    train = table["split"] == "train"
    if not given or names.filter(train)[given[min(1, len(given) - 1)]].n_unique() < 2:
        why = "no column of classes" if not given else "the training posts have one class"
        notes.lines.append(f"{why}: the network learns clusters of posts, and features by class are left out")
        return table.with_columns(pl.lit(key).alias(level) for level, key in UNCLASSIFIED.items())
    of_level = {level: given[min(depth, len(given) - 1)] for depth, level in enumerate(LEVELS)}
    keys: Mapping[str, list[str]] = {level: [] for level in LEVELS}
    distinct = names.unique(maintain_order=True)
    for row in distinct.iter_rows(named=True):
        path = [row[of_level[level]] for level in LEVELS]
        for depth, level in enumerate(LEVELS):
            keys[level].append(class_key(*path[: depth + 1]))
    joined = names.join(
        distinct.with_columns(pl.Series(f"key_{level}", values) for level, values in keys.items()),
        on=given,
        how="left",
        maintain_order="left",
        validate="m:1",
    )
    return table.with_columns(joined[f"key_{level}"].alias(level) for level in LEVELS)


def date_of_test_part(text: str) -> datetime | None:
    """The date of `dataset.test_from`, UTC; None for "".

    Raises:
        DataError: no date.
    """
    if not text:
        return None
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        raise DataError(
            f"dataset.test_from is {text!r}", expected="a date such as 2024-06-01 (UTC)", fix="TEST_FROM=2024-06-01"
        ) from None
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)


def own_table(root: Path, table: str, test_table: str, columns: TableColumns, from_date: str) -> OwnTable:
    """The table that section `dataset` describes.

    Args:
        root: folder of the pictures; an empty one where there are none.
        table: path of the table, from `root` on.
        test_table: of the table of test posts; the same for rows of one file.
        columns: what each column is.
        from_date: `dataset.test_from`.
    """
    files = [TableFile(Path(root, name).resolve()) for name in (table, test_table or table)]
    pictures = any(root.iterdir()) if root.is_dir() else False
    return OwnTable(files[0], files[1], columns, date_of_test_part(from_date), pictures)
