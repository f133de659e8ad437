"""Requests for predictions, from flags or a file, become rows of contract POSTS; unusable fields get notes."""

from __future__ import annotations

import csv
import difflib
import io
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from popularity.core.config import load_params
from popularity.core.contracts import COLUMNS, POSTS, check_table, class_key
from popularity.core.errors import DataError
from popularity.dataset import DatasetParams
from popularity.dataset.csv_records import SEPARATORS, Record, records
from popularity.dataset.parsing import EARLIEST, LATEST, MISSING, numbers
from popularity.dataset.reading import read_text
from popularity.dataset.table import further_name
from popularity.dataset.table_columns import TableColumns

logger = logging.getLogger(__name__)

FIELDS = (
    *("pid", "image", "title", "tags", "user", "date"),
    *("category", "subcategory", "concept", "latitude", "longitude", "days_after"),
)
MAX_DAYS_AFTER = 36_500.0
# Of a known user these are taken from the latest stored post; of an unknown user they are empty.
USER_FIELDS = (
    *("has_path_alias", "photo_count", "is_pro", "can_buy_pro", "first_photo_at", "first_taken_at"),
    *("timezone_offset", "timezone_id", "user_description", "location_description"),
)
# Columns of POSTS that no request has: filled with the mode over the stored posts.
MODE_FIELDS = ("media_type", "media_status", "is_public", "has_path_alias")
PLACED, UNPLACED = 16, 0  # geo_accuracy of coordinates that were given, and of none
_UNIX_SECONDS = re.compile(r"\d{9,10}")
_UNPRINTABLE = re.compile("[\x00\ud800-\udfff]")  # NUL and lone surrogates, as in a data set


@dataclass
class Request:
    """A post to predict; `make_posts` adds its pid, its notes, or its problem.

    Args:
        row: zero-based index among the requests.
        fields: texts by name of the field; one that was not given is absent or empty.
        problem: why there is no prediction; "" if there is one.
        pid: the given one, or a new one.
        notes: missing or unusable fields and their replacements, each as "kind: text".
    """

    row: int
    fields: Mapping[str, str]
    problem: str = ""
    pid: str = ""
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.fields = {name: _UNPRINTABLE.sub("\ufffd", text) for name, text in self.fields.items()}

    def get(self, name: str) -> str:
        """The field without white space around it; "" if it was not given."""
        return self.fields.get(name, "").strip()


@dataclass(frozen=True)
class FurtherColumns:
    """Further columns of the user's own table, by their names there: the column of the features.

    Args:
        numbers: columns of numbers.
        categories: columns of few different texts.
        repeated: a level of classes that the table lacks: the level above, which it repeats.
    """

    numbers: Mapping[str, str] = field(default_factory=dict)
    categories: Mapping[str, str] = field(default_factory=dict)
    repeated: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, columns: TableColumns) -> FurtherColumns:
        """Those of section dataset.columns. One that is named like a field goes by its name in the features."""
        numbers, categories = (
            {found if name in FIELDS else name: found for name in names for found in [further_name(name)]}
            for names in (columns.numbers, columns.categories)
        )
        above = {"subcategory": "category", "concept": "subcategory"} if columns.category else {}
        return cls(numbers, categories, {level: up for level, up in above.items() if not getattr(columns, level)})

    @property
    def names(self) -> tuple[str, ...]:
        """What a request calls them."""
        return (*self.numbers, *self.categories)


def table_columns(params: Path) -> TableColumns:
    """What the columns of the user's own table are; none of the official layout, or without a file of parameters."""
    return load_params("dataset", DatasetParams, params).columns if params.is_file() else TableColumns()


def counted(columns: TableColumns) -> str:
    """What people read for 2^popularity - 1: the name of the column of counts, else views."""
    return columns.count or "views"


def refuse_unknown_columns(names: Iterable[str], further: FurtherColumns, form: str) -> None:
    """Raises DataError for a name that is no further column.

    Args:
        names: that were given.
        further: the columns that the models know.
        form: how a value is given, for the message.
    """
    if wrong := [name for name in names if name not in further.names]:
        known = ", ".join(further.names)
        raise DataError(
            f"column {wrong[0]}",
            expected=f"{form}; known are {known}" if known else "no further column: the run had none",
        )


@dataclass(frozen=True)
class NewPosts:
    """Posts to predict.

    Args:
        table: contract POSTS, those that can be predicted.
        requests: all of them, in their order.
        root: folder that the paths of images are relative to.
        columns: contract COLUMNS, of the same posts.
    """

    table: pl.DataFrame
    requests: Sequence[Request]
    root: Path
    columns: pl.DataFrame


def read_requests(path: Path, further: Sequence[str] = ()) -> list[Request]:
    """The requests of a .csv or .jsonl file, one a row or line, with FIELDS and `further` as columns or keys.

    A row that cannot be read keeps its index and holds its problem. Other columns are left out, with a warning.

    Args:
        path: of the file.
        further: names of further columns.

    Raises:
        DataError: no such file, of another kind, neither UTF-8 nor UTF-16, without a column `date`, with a column
            whose name is nearly one of these, or without a post.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl}
    fields = (*FIELDS, *further)
    if path.suffix not in readers:
        raise DataError("neither .csv nor .jsonl", file=path, expected=f"a file of posts with {', '.join(FIELDS)}")
    try:
        requests = list(readers[path.suffix](path, fields))
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror}", file=path, expected=f"a file of posts with {', '.join(FIELDS)}"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: byte {error.start}", file=path, expected="text in UTF-8") from error
    except csv.Error as error:
        raise DataError(f"not CSV: {error}", file=path) from error
    if not requests:
        raise DataError("no posts", file=path, expected="a post in each row after the names of the columns")
    return requests


def _refuse_misspelt(names: Iterable[str], file: Path, fields: Sequence[str]) -> None:
    """A column that is none of `fields` is left out with a warning, unless it is a misspelt one of them."""
    others = [name for name in names if name not in fields]
    by_lower = {name.lower(): name for name in fields}
    for name in others:
        if alike := difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.75):
            expected = f"{by_lower[alike[0]]}; known are {', '.join(fields)}"
            raise DataError(f"column {name}", file=file, expected=expected)
    if others:
        logger.warning("%s: left out %s; known are %s", file, ", ".join(others), ", ".join(fields))


def _read_csv(path: Path, fields: Sequence[str]) -> Iterator[Request]:
    lines, separator = _lines_of_csv(path)
    csv.field_size_limit(max(csv.field_size_limit(), sum(map(len, lines)) + 1))
    found = (record for record in records(lines, separator) if record.cells)
    first = next(found, Record(0, [], []))
    names = [name.strip() for name in first.cells]
    if len(set(names)) < len(names) or "date" not in names:
        raise DataError(
            f"columns {', '.join(names) or '(none)'}",
            file=path,
            expected=f"each name once, `date` among them; known are {', '.join(fields)}",
        )
    _refuse_misspelt(names, path, fields)
    index = 0
    for record in found:
        if record.has_open_quote(len(names), separator):
            reason = (
                f"quote opened in line {record.line + 1} is closed in a later line: write a quote within a text twice"
            )
            for line in record.lines:
                cells = next(csv.reader([line], delimiter=separator, quoting=csv.QUOTE_NONE), [])
                known = dict(zip(names, cells, strict=True)) if len(cells) == len(names) else {}
                yield Request(index, {name: text for name, text in known.items() if name in fields}, problem=reason)
                index += 1
            continue
        if len(record.cells) != len(names):
            problem = f"{len(record.cells)} fields where the file has {len(names)} columns"
            yield Request(index, {}, problem=problem)
        else:
            yield Request(index, {name: text for name, text in zip(names, record.cells, strict=True) if name in fields})
        index += 1


def _lines_of_csv(path: Path) -> tuple[list[str], str]:
    """The lines of a CSV file with their ends, and its separator.

    The separator is a comma, unless the first line says `sep=;` or has a column `date` only with another one.
    """
    lines = list(io.StringIO(read_text(path), newline=""))
    head = lines[0].rstrip("\r\n") if lines else ""
    if len(head) == len("sep=,") and head.startswith("sep="):
        return lines[1:], head[-1]
    found = [
        separator
        for separator in SEPARATORS
        if "date" in [name.strip() for name in next(csv.reader([head], delimiter=separator), [])]
    ]
    if found and found[0] != SEPARATORS[0]:
        logger.warning("%s: separated by %r, not by commas", path, found[0])
    return lines, found[0] if found else SEPARATORS[0]


def _read_jsonl(path: Path, fields: Sequence[str]) -> Iterator[Request]:
    seen: dict[str, None] = {}
    for index, line in enumerate(line for line in io.StringIO(read_text(path)) if line.strip()):
        try:
            content = json.loads(line)
        except ValueError as error:
            yield Request(index, {}, problem=f"not JSON: {error}")
            continue
        if not isinstance(content, dict):
            yield Request(index, {}, problem=f"expected an object, found {type(content).__name__}")
            continue
        seen |= dict.fromkeys(content)
        texts = {name: _as_text(content.get(name)) for name in fields}
        wrong = [name for name, text in texts.items() if text is None]
        problem = f"{', '.join(wrong)}: expected a text or a number" if wrong else ""
        yield Request(index, {name: text for name, text in texts.items() if text is not None}, problem)
    _refuse_misspelt(seen, path, fields)


def _as_text(value: Any) -> str | None:
    """A JSON value as text, a list of tags as words; None if it is neither text nor number."""
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return " ".join(value)
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None


def make_posts(
    requests: Sequence[Request], known: pl.DataFrame, root: Path, further: FurtherColumns | None = None
) -> NewPosts:
    """Rows of contract POSTS and COLUMNS; an unusable post gets its problem in its request.

    Args:
        requests: all of them.
        known: the stored posts, contract POSTS.
        root: folder that the paths of images are relative to.
        further: columns of the user's own table that the models know.
    """
    maker = _Maker(known, root, {request.get("user") for request in requests})
    rows, columns = [], []
    further = further or FurtherColumns()
    for request in requests:
        for level, above in further.repeated.items():
            request.fields = {**request.fields, level: request.get(level) or request.get(above)}
        if not request.problem:
            try:
                rows.append(maker.row(request))
                columns.append({"pid": request.pid, **_further(request, further)})
            except _UnusableError as error:
                request.problem = str(error)
    schema = {name: rule.dtype for name, rule in POSTS.columns.items()}
    table = pl.DataFrame(rows, schema=schema, orient="row").sort(POSTS.key)
    check_table(table, POSTS)
    types = {"pid": pl.String()} | dict.fromkeys(further.numbers.values(), pl.Float64())
    types |= dict.fromkeys(further.categories.values(), pl.String())
    extra = pl.DataFrame(columns, schema=types, orient="row").sort(COLUMNS.key)
    check_table(extra, COLUMNS)
    return NewPosts(table, requests, root, extra)


def _further(request: Request, further: FurtherColumns) -> dict[str, float | str | None]:
    """The further columns of a request, under their names in the features; unusable and missing ones get notes."""
    found: dict[str, float | str | None] = {column: request.get(name) for name, column in further.categories.items()}
    for name, column in further.numbers.items():
        text = request.get(name)
        found[column] = numbers(pl.Series([text]))[0]
        if text and found[column] is None:
            request.notes.append(f"unusable value: {name} {text} is no number; left out")
    if missing := [name for name in further.names if not request.get(name)]:
        request.notes.append(f"missing columns: {', '.join(missing)}; predicted from the rest")
    return {column: None if value in MISSING else value for column, value in found.items()}


def why_unreadable(path: Path) -> str:
    """Why a file cannot be opened; "" if it can."""
    try:
        with path.open("rb"):
            return ""
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", "") or str(error)


class _UnusableError(ValueError):
    """Why a post cannot be predicted."""


class _Maker:
    def __init__(self, known: pl.DataFrame, root: Path, users: set[str]) -> None:
        self.root = root
        self.taken: dict[str, int | None] = dict.fromkeys(known["pid"])
        self.index = known.filter(split="test")["source_index"].len()
        self.modes = {name: known[name].drop_nulls().mode().sort().first() for name in MODE_FIELDS}
        latest = known.filter(pl.col("uid").is_in(list(users))).sort("posted_at", "pid").unique("uid", keep="last")
        self.users = {row["uid"]: row for row in latest.select("uid", *USER_FIELDS).iter_rows(named=True)}

    def row(self, request: Request) -> dict[str, Any]:
        """The post in the form of POSTS; its pid and notes go to `request`."""
        date = _date(request.get("date"))
        request.pid = self._pid(request)
        latitude, longitude = (
            _degrees(request, name, limit) for name, limit in (("latitude", 90.0), ("longitude", 180.0))
        )
        if (latitude is None) != (longitude is None):
            request.notes.append("unusable value: a latitude or a longitude alone is no position")
            latitude = longitude = None
        if latitude == 0 == longitude:
            request.notes.append("no place: latitude 0 and longitude 0 stand for none, as in a data set")
            latitude = longitude = None
        names = [request.get(name) for name in ("category", "subcategory", "concept")]
        levels = {
            level: class_key(*names[: depth + 1]) for depth, level in enumerate(("category", "subcategory", "concept"))
        }
        return {
            **dict.fromkeys(POSTS.columns),
            **self.modes,
            **self._user(request),
            **levels,
            "pid": request.pid,
            "split": "test",
            "source_index": self.index + request.row,
            "title": request.fields.get("title", ""),
            "tags": request.fields.get("tags", ""),
            "posted_at": date,
            "collected_at": _read_at(request, date),
            "latitude": latitude,
            "longitude": longitude,
            "geo_accuracy": UNPLACED if latitude is None else PLACED,
            "image_path": self._image(request),
        }

    def _pid(self, request: Request) -> str:
        given = request.get("pid")
        if given in self.taken:
            row = self.taken[given]
            stored = "is that of a stored post, whose prediction is in data/ensemble/predictions.parquet"
            raise _UnusableError(f"pid {given} {stored if row is None else f'occurs again: it is that of row {row}'}")
        pid = given or f"new-{request.row}"
        while pid in self.taken:
            pid += "_"
        self.taken[pid] = request.row
        return pid

    def _user(self, request: Request) -> dict[str, Any]:
        user = request.get("user")
        if user in self.users:
            return self.users[user]
        request.notes.append(
            f"unknown user: {user} has no stored post; user fields are empty"
            if user
            else "unknown user: none given; user fields are empty"
        )
        # Each gets a user of its own: posts without a user must not count as those of one user.
        return {"uid": user or f"user of {request.pid}"}

    def _image(self, request: Request) -> str:
        """The path as given; "" where there is nothing to read."""
        path = request.get("image")
        if not path:
            request.notes.append("no image: predicted from the rest")
            return ""
        if reason := why_unreadable(self.root / path):
            request.notes.append(f"no image: {path} cannot be read ({reason}); predicted from the rest")
            return ""
        return path


def _date(text: str) -> datetime:
    try:
        date = datetime.fromtimestamp(int(text), UTC) if _UNIX_SECONDS.fullmatch(text) else datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        found = f"date {text!r} is no date" if text else "no date"
        raise _UnusableError(
            f"{found}; expected 2016-05-01T12:00 (UTC), 2016-05-01T14:00+02:00 or unix seconds"
        ) from None
    date = date.replace(tzinfo=UTC) if date.tzinfo is None else date
    if not EARLIEST <= date <= LATEST:
        raise _UnusableError(f"date {text} lies outside {EARLIEST.year} to {LATEST.year}")
    return date.astimezone(UTC)


def _read_at(request: Request, posted_at: datetime) -> datetime | None:
    """When the count is read, `days_after` the post; None where it is not said."""
    text = request.get("days_after")
    try:
        days = float(text) if text else None
    except ValueError:
        days = -1.0
    if days is None or 0 <= days <= MAX_DAYS_AFTER:
        return None if days is None else posted_at + timedelta(days=days)
    request.notes.append(
        f"unusable value: days_after {text} is no number of days from 0 to {MAX_DAYS_AFTER:.0f}; left out"
    )
    return None


def _degrees(request: Request, name: str, limit: float) -> float | None:
    text = request.get(name)
    try:
        value = float(text) if text else None
    except ValueError:
        value = limit + 1
    if value is None or -limit <= value <= limit:
        return value
    request.notes.append(f"unusable value: {name} {text} is no number from {-limit:g} to {limit:g}; left out")
    return None
