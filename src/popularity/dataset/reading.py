"""Metadata files as columns of text, in bounded memory and without inferring any type.

Every JSON value becomes text first (1.5 and "1.5" are the same), and `popularity.dataset.parsing` gives each
column its one declared type. A reader that infers types from the first rows silently turns 1.5 into 1.

A file may be compressed with gzip, be in UTF-16 with its mark, and hold JSON lines: its first bytes show it.
"""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import orjson
import polars as pl

from popularity.core.errors import DataError

CHUNK_BYTES = 1 << 20  # read at a time; larger blocks of memory take longer to allocate than to fill
FRAME_ROWS = 8192  # rows that become columns at a time
BOM = b"\xef\xbb\xbf"

# Escapes of a JSON string from left to right; group 1 is a surrogate without its partner.
_ESCAPES = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)
_COMMA = re.compile(rb"\s*,")
_NOT_A_NUMBER = re.compile(r"-?(NaN|Infinity)")
MAX_ENDS_TRIED = 8
MAX_LINE = 1 << 24  # bytes of the first line; a longer one is no line of JSON lines
GZIP = b"\x1f\x8b"
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int = -1, /) -> bytes: ...


@contextmanager
def open_utf8(path: Path) -> Iterator[Readable]:
    """The file as a stream of UTF-8 without a mark, whatever it is stored as: gzip, UTF-16 with its mark, or neither.

    Raises:
        DataError: it cannot be read, or is damaged, within the block.
    """
    try:
        with path.open("rb") as raw:
            stream: Any = gzip.GzipFile(fileobj=raw) if raw.peek(len(GZIP)).startswith(GZIP) else raw
            buffered = io.BufferedReader(stream) if stream is not raw else raw
            mark = buffered.peek(len(BOM))[: len(BOM)]
            if mark[:2] in UTF16:
                yield _Utf8(io.TextIOWrapper(buffered, "utf-16", newline=""))
                return
            if mark == BOM:
                buffered.read(len(BOM))
            yield buffered
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"damaged gzip: {error}", file=path, expected="the whole file", fix="download the file again"
        ) from error
    except UnicodeDecodeError as error:
        if error.encoding not in ("utf-16", "utf-16-le", "utf-16-be"):
            raise
        raise DataError(f"not UTF-16: {error.reason}", file=path, expected="UTF-8, or UTF-16 with its mark") from error


class _Utf8:
    """The characters of a text as bytes in UTF-8; `read` may return a few more bytes than asked for."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self.text = text

    def read(self, size: int = -1, /) -> bytes:
        return self.text.read(size).encode()


def stored_as(path: Path) -> str:
    """How a file is stored, for the summary: "gzip", "UTF-16", both, or "" for plain UTF-8."""
    with path.open("rb") as raw:
        packed = raw.peek(len(GZIP)).startswith(GZIP)
        stream: Any = gzip.GzipFile(fileobj=raw) if packed else raw
        names = ["gzip"] if packed else []
        return ", ".join([*names, "UTF-16"] if stream.read(2) in UTF16 else names)


class JsonTable:
    """A metadata file: a list of records (`list`), or {column: {"0": value, ...}} (`columnar`).

    Args:
        path: the file.
        fields: field to the names it may have in the file.
        required: fields that the file must have.

    Read `frames` to its end first; then these are set: `layout`, `rows`, `absent` (fields that no row has) and
    `unknown` (names in the file that are no field).
    """

    def __init__(self, path: Path, fields: Mapping[str, tuple[str, ...]], required: Sequence[str]) -> None:
        self.path, self.fields, self.required = path, fields, required
        self.layout, self.rows = "", 0
        self.absent: list[str] = []
        self.unknown: list[str] = []
        self._names: set[str] = set()

    @property
    def names(self) -> set[str]:
        """The names in the rows that were read so far."""
        return self._names

    def read(self) -> pl.DataFrame:
        """All rows: one String column a field; null where a row lacks it."""
        return pl.concat(list(self.frames()), rechunk=True)

    def frames(self) -> Iterator[pl.DataFrame]:
        """The rows in file order, a bounded number at a time.

        Raises:
            DataError: broken JSON, another layout, or a required field that no row has.
        """
        self.layout = _layout(self.path)
        if self.layout == "columnar":
            yield self._columnar()
        else:
            iterate = _iterate_records if self.layout == "list" else _iterate_lines
            waiting: list[Any] = []
            for records in iterate(self.path, CHUNK_BYTES):
                waiting += records
                if len(waiting) >= FRAME_ROWS:
                    yield self._listed(waiting)
                    waiting = []
            if waiting:
                yield self._listed(waiting)
        known = {name for names in self.fields.values() for name in names}
        self.unknown = sorted(self._names - known)
        self.absent = [field for field, names in self.fields.items() if self._names.isdisjoint(names)]
        missing = [self.fields[field][0] for field in self.required if field in self.absent]
        if not self.rows:
            raise DataError("holds no rows", file=self.path, expected="one record per post")
        if missing:
            raise DataError(
                f"no row has the field {', '.join(missing)}: found {', '.join(sorted(self._names)) or 'none'}",
                file=self.path,
                expected=f"the fields {', '.join(' or '.join(names) for names in self.fields.values())}",
                fix="use the published file, or rename the fields",
            )

    def _listed(self, records: list[Any]) -> pl.DataFrame:
        for row, record in enumerate(records, start=self.rows):
            if not isinstance(record, dict):
                raise DataError(
                    f"found {_shortened(record)}",
                    file=self.path,
                    row=row,
                    expected=f"a record {{{', '.join(names[0] for names in self.fields.values())}}}",
                )
        names = set().union(*records)
        self._names |= names
        self.rows += len(records)
        columns = {}
        for field, accepted in self.fields.items():
            present = [name for name in accepted if name in names]
            if len(present) == 1:
                values = [record.get(present[0]) for record in records]
            else:
                values = [next((record[name] for name in present if name in record), None) for record in records]
            columns[field] = self._texts(field, values, self.rows - len(records))
        return pl.DataFrame(columns)

    def _texts(self, name: str, values: list[Any], start: int = 0) -> pl.Series:
        """The values of a field as text; `start` is the row of the first.

        Raises:
            DataError: a value that is nested and no plain list.
        """
        try:
            return pl.Series(name, values, dtype=pl.String, strict=True)
        except TypeError:
            pass
        texts: list[str | None] = []
        for row, value in enumerate(values, start):
            try:
                texts.append(_text(value))
            except ValueError:
                raise DataError(
                    f"{self.fields[name][0]} is {_shortened(value)}",
                    file=self.path,
                    row=row,
                    expected="a text, a number, a list of texts or a list of numbers",
                ) from None
        return pl.Series(name, texts, dtype=pl.String, strict=True)

    def _columnar(self) -> pl.DataFrame:
        content = _decode(_content(self.path), self.path)
        self._names = set(content)
        expected = 'columns {"0": value, "1": value, ...} with the same row numbers in each'
        row_keys: list[str] | None = None
        columns: dict[str, pl.Series] = {}
        wanted = {name: field for field, accepted in self.fields.items() for name in reversed(accepted)}
        for name in list(content):
            values = content.pop(name)  # each column is released before the next is converted
            if not isinstance(values, dict):
                raise DataError(f"column {name!r} is {_shortened(values)}", file=self.path, expected=expected)
            keys = list(values)
            if row_keys is None:
                self.rows, row_keys = len(keys), [str(row) for row in range(len(keys))]
            if keys != row_keys:
                if len(keys) != len(row_keys) or set(keys) != set(row_keys):
                    odd = next(iter(sorted(set(keys) ^ set(row_keys), key=lambda key: (len(key), key))))
                    raise DataError(
                        f"column {name!r} has {len(keys)} rows, and row {odd!r} is not in all columns",
                        file=self.path,
                        row=odd,
                        expected=expected,
                    )
                values = {key: values[key] for key in row_keys}
            if name in wanted and wanted[name] not in columns:
                columns[wanted[name]] = self._texts(wanted[name], list(values.values()))
        empty = pl.Series([None] * self.rows, dtype=pl.String)
        return pl.DataFrame({field: columns.get(field, empty) for field in self.fields})


def read_lines(path: Path, rows: int = 0) -> pl.Series:
    """The lines of a text file, stripped.

    Args:
        path: the file.
        rows: empty lines at the end of the file count as far as so many lines are expected, and no further.

    Raises:
        DataError: the file is neither UTF-8 nor UTF-16, or is empty.
    """
    lines = [line.strip() for line in read_text(path).replace("\r\n", "\n").removesuffix("\n").split("\n")]
    if not any(lines):
        raise DataError("holds no lines", file=path, expected="one line per post")
    while len(lines) > rows and not lines[-1]:
        lines.pop()
    return pl.Series(lines, dtype=pl.String)


def read_text(path: Path) -> str:
    """The text of a file as `open_utf8` reads it.

    Raises:
        DataError: the file is neither UTF-8 nor UTF-16.
    """
    try:
        return _content(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}", file=path, expected="a text file in UTF-8") from error


def _content(path: Path) -> bytes:
    with open_utf8(path) as stream:
        return stream.read()


def _layout(path: Path) -> str:
    """`columnar`, `list` or `lines of JSON`: JSON lines, whose first line is an object while others follow.

    A file of one line is JSON lines by its name alone.
    """
    named = path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson"))
    with open_utf8(path) as stream:
        first = stream.read(4096).lstrip()
        if first[:1] != b"{":
            return "list"
        while b"\n" not in first and len(first) < MAX_LINE and (more := stream.read(1 << 16)):
            first += more
        line, _, rest = first.partition(b"\n")
        while not rest.strip() and (more := stream.read(1 << 16)):
            rest += more
    if not rest.strip() and not named:
        return "columnar"
    try:
        return "lines of JSON" if isinstance(_loads(line), dict) else "columnar"
    except orjson.JSONDecodeError:
        return "columnar"


def _iterate_lines(path: Path, chunk_bytes: int) -> Iterator[list[Any]]:
    """The records of JSON lines, a chunk of the file at a time; blank lines do not count."""
    pending, row = b"", 0
    with open_utf8(path) as stream:
        while True:
            chunk = stream.read(chunk_bytes)
            *lines, pending = (pending + chunk).split(b"\n") if chunk else (pending, b"")
            records: list[Any] = []
            for line in lines:
                if line.strip():
                    try:
                        records.append(_loads(line))
                    except orjson.JSONDecodeError as error:
                        raise DataError(
                            f"not JSON: {error.msg}",
                            file=path,
                            row=row + len(records),
                            expected="JSON lines: one record in each line, as in the first",
                            fix="repair the line, or write the file as one JSON list",
                        ) from error
            row += len(records)
            if records:
                yield records
            if not chunk:
                return


def _iterate_records(path: Path, chunk_bytes: int) -> Iterator[list[Any]]:
    """The records of a JSON list, a chunk of the file at a time.

    The content is divided between two records only where all before is valid JSON. That is never so inside a string or
    a nested value: every file gives the records that parsing it as a whole would give.
    """
    opening, pending, done = b"", b"", 0
    with open_utf8(path) as stream:
        while chunk := stream.read(chunk_bytes):
            pending += chunk
            for end, following in itertools.islice(_record_ends(pending), MAX_ENDS_TRIED):
                try:
                    records = _loads(opening + pending[:end] + b"]")
                except orjson.JSONDecodeError:
                    continue
                yield records
                opening, pending, done = b"[", pending[following:], done + len(records)
                break
    try:
        records = _loads(opening + pending)
    except orjson.JSONDecodeError:
        records = None
    if records is None or (done and not records):  # the latter: a comma before the closing bracket
        # Line and column are known only in the whole file.
        records = _decode(_content(path), path)[done:]
    if not isinstance(records, list):
        expected = "a list of records, or columns {column: {row: value}}"
        raise DataError(f"the file holds {_shortened(records)}", file=path, expected=expected)
    yield records


def _record_ends(content: bytes) -> Iterator[tuple[int, int]]:
    """From the last to the first: the end of what may be a record, and the end of the comma behind it."""
    brace = content.rfind(b"}")
    while brace >= 0:
        if comma := _COMMA.match(content, brace + 1):
            yield brace + 1, comma.end()
        brace = content.rfind(b"}", 0, brace)


def _loads(content: bytes) -> Any:
    """The JSON document `content`; a lone surrogate, which is no character, is read as NUL."""
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        if "surrogate in string" not in error.msg:
            raise
    return orjson.loads(_ESCAPES.sub(lambda match: b"\\u0000" if match[1] else match[0], content))


def _decode(content: bytes, path: Path) -> Any:
    """As `_loads`.

    Raises:
        DataError: broken JSON, with record, line, column and surroundings.
    """
    try:
        return _loads(content)
    except orjson.JSONDecodeError as error:
        problem = error
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"not UTF-8 at line {line}, byte {error.start}", file=path, expected="JSON in UTF-8") from error
    position = problem.pos
    token = _NOT_A_NUMBER.search(text, max(0, position - 1), position + 10)
    what = f"{token[0]} is not JSON" if token else problem.msg
    near = text[max(0, position - 30) : position + 30]
    raise DataError(
        f"broken JSON at line {problem.lineno}, column {problem.colno}: {what}, near {near!r}",
        file=path,
        row=_record_at(content[: len(text[:position].encode())]),
        expected='a finite number, text or null; a missing value is null or ""' if token else "valid JSON",
        fix="repair the file or download it again",
    ) from problem


def _record_at(before: bytes) -> int | None:
    """The index of the list record that starts or continues at the end of `before`; None if the file is no list."""
    if not before.lstrip().startswith(b"["):
        return None
    for end, _ in itertools.islice(_record_ends(before), MAX_ENDS_TRIED):
        try:
            return len(_loads(before[:end] + b"]"))
        except orjson.JSONDecodeError:
            continue
    return 0


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))  # a column with gaps comes out of pandas as 2.0
    if isinstance(value, list):
        return _joined(value)
    if isinstance(value, dict):
        raise ValueError(value)
    return repr(value) if isinstance(value, float) else orjson.dumps(value).decode()


def _joined(values: list[Any]) -> str:
    """A list of texts as words, a list of numbers with commas, as the publishers write both.

    Raises:
        ValueError: a list of other values.
    """
    if all(isinstance(value, str) for value in values):
        return " ".join(values)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return ",".join(str(_text(value)) for value in values)
    raise ValueError(values)


def _shortened(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 60 else text[:60] + "..."
