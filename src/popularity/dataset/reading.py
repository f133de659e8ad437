"""Metadata files as columns of text, in bounded memory and without inferring any type.

Every JSON value becomes text first (1.5 and "1.5" are the same), and `popularity.dataset.parsing` gives each
column its one declared type. A reader that infers types from the first rows silently turns 1.5 into 1.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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

    def read(self) -> pl.DataFrame:
        """All rows: one String column a field; null where a row lacks it."""
        return pl.concat(list(self.frames()), rechunk=True)

    def frames(self) -> Iterator[pl.DataFrame]:
        """The rows in file order, a bounded number at a time.

        Raises:
            DataError: broken JSON, another layout, or a required field that no row has.
        """
        with self.path.open("rb") as stream:
            first = stream.read(4096).removeprefix(BOM).lstrip()[:1]
        if first == b"{":
            self.layout = "columnar"
            yield self._columnar()
        else:
            self.layout = "list"
            waiting: list[Any] = []
            for records in _iterate_records(self.path, CHUNK_BYTES):
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
            columns[field] = _texts(field, values)
        return pl.DataFrame(columns)

    def _columnar(self) -> pl.DataFrame:
        content = _decode(self.path.read_bytes().removeprefix(BOM), self.path)
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
                columns[wanted[name]] = _texts(wanted[name], list(values.values()))
        empty = pl.Series([None] * self.rows, dtype=pl.String)
        return pl.DataFrame({field: columns.get(field, empty) for field in self.fields})


def read_lines(path: Path) -> pl.Series:
    """The lines of a text file, stripped; empty lines at its end do not count.

    Raises:
        DataError: the file is not UTF-8 or is empty.
    """
    try:
        lines = path.read_bytes().removeprefix(BOM).decode("utf-8").replace("\r\n", "\n").rstrip("\n \t\r").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}", file=path, expected="a text file in UTF-8") from error
    if lines == [""]:
        raise DataError("holds no lines", file=path, expected="one line per post")
    return pl.Series([line.strip() for line in lines], dtype=pl.String)


def _iterate_records(path: Path, chunk_bytes: int) -> Iterator[list[Any]]:
    """The records of a JSON list, a chunk of the file at a time.

    The content is divided between two records only where all before is valid JSON. That is never so inside a string or
    a nested value: every file gives the records that parsing it as a whole would give.
    """
    opening, pending, done = b"", b"", 0
    with path.open("rb") as stream:
        if stream.read(len(BOM)) != BOM:
            stream.seek(0)
        while len(chunk := stream.read(chunk_bytes)) == chunk_bytes:
            pending += chunk
            for end, following in itertools.islice(_record_ends(pending), MAX_ENDS_TRIED):
                try:
                    records = _loads(opening + pending[:end] + b"]")
                except orjson.JSONDecodeError:
                    continue
                yield records
                opening, pending, done = b"[", pending[following:], done + len(records)
                break
        pending += chunk
    try:
        records = _loads(opening + pending)
    except orjson.JSONDecodeError:
        records = None
    if records is None or (done and not records):  # the latter: a comma before the closing bracket
        # Line and column are known only in the whole file.
        records = _decode(path.read_bytes().removeprefix(BOM), path)[done:]
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


def _texts(name: str, values: list[Any]) -> pl.Series:
    try:
        return pl.Series(name, values, dtype=pl.String, strict=True)
    except TypeError:
        return pl.Series(name, [_text(value) for value in values], dtype=pl.String, strict=True)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))  # a column with gaps comes out of pandas as 2.0
    return repr(value) if isinstance(value, float) else orjson.dumps(value).decode()


def _shortened(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 60 else text[:60] + "..."
