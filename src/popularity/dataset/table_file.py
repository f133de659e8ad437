"""A table of posts as a file - CSV, JSON, JSON lines or Parquet - read as columns of text, some rows at a time.

Nothing is guessed from the first rows: a value is the text that the file holds, and `popularity.dataset.parsing` gives
it its type. A CSV or JSON file may be compressed with gzip and be in UTF-16.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from popularity.core.errors import DataError
from popularity.dataset.csv_records import records, separator_of
from popularity.dataset.reading import CHUNK_BYTES, FRAME_ROWS, JsonTable, open_utf8

KINDS = {
    **dict.fromkeys((".csv", ".tsv", ".txt"), "CSV"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "JSON"),
    **dict.fromkeys((".parquet", ".pq"), "Parquet"),
}
EXPECTED = "a table of posts: .csv, .tsv, .jsonl, .json or .parquet (.gz too, but for the last)"
MAX_CELL = 1 << 24  # characters of a cell of CSV; a longer one is a quote that nobody closed


@dataclass(frozen=True)
class TableFile:
    """A table, one row a post.

    Args:
        path: of the file.
    """

    path: Path

    @property
    def kind(self) -> str:
        """CSV, JSON or Parquet, by the suffix.

        Raises:
            DataError: none of them.
        """
        name = self.path.name.lower().removesuffix(".gz")
        kind = KINDS.get(Path(name).suffix)
        if kind is None or (kind == "Parquet" and name != self.path.name.lower()):
            raise DataError("is of no kind that is read", file=self.path, expected=EXPECTED)
        if not self.path.is_file():
            raise DataError("no such file", file=self.path, expected=EXPECTED)
        return kind

    @cached_property
    def names(self) -> list[str]:
        """The names of the columns.

        Raises:
            DataError: none, or one twice; or the file cannot be read.
        """
        if self.kind == "CSV":
            return self._header[0]
        if self.kind == "Parquet":
            with _parquet_errors(self.path):
                return pl.scan_parquet(self.path, glob=False).collect_schema().names()
        table = JsonTable(self.path, {}, required=())
        next(table.frames(), None)
        return sorted(table.names)

    def frames(self, names: Sequence[str]) -> Iterator[pl.DataFrame]:
        """The columns `names` as text, some thousand rows at a time; null where a row has no value.

        Raises:
            DataError: a column or a row that cannot be read, no rows, or a damaged file.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            raise DataError(
                f"has no column {', '.join(missing)}: found {', '.join(self.names)}",
                file=self.path,
                expected="the columns of dataset.columns in params.yaml",
                fix="make dataset TABLE=... IMAGES=... finds the columns anew; MAP=... says what each is",
            )
        rows = 0
        for frame in {"CSV": self._of_csv, "Parquet": self._of_parquet, "JSON": self._of_json}[self.kind](list(names)):
            rows += len(frame)
            yield frame
        if not rows:
            raise DataError("holds no rows", file=self.path, expected="one row per post")

    def read(self, names: Sequence[str]) -> pl.DataFrame:
        """All rows of the columns `names`."""
        return pl.concat(list(self.frames(names)), rechunk=True)

    def head(self, names: Sequence[str], rows: int) -> pl.DataFrame:
        """The first rows of the columns `names`."""
        found: list[pl.DataFrame] = []
        for frame in self.frames(names):
            found.append(frame)
            if sum(map(len, found)) >= rows:
                break
        return pl.concat(found).head(rows)

    @cached_property
    def _header(self) -> tuple[list[str], str, int]:
        """The names of a CSV file, its separator, and the number of lines before the first row."""
        lines = self._lines()
        first, before = next(lines, ""), 1
        separator = separator_of(first)
        if first.strip().lower().startswith("sep=") and len(first.strip()) <= len("sep=,"):
            separator, first, before = first.strip()[4:] or "\t", next(lines, ""), 2
        names = [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]
        again = [name for name in names if names.count(name) > 1]
        if not names or again or "" in names:
            raise DataError(
                f"the first line is {first.strip()[:80]!r}"
                + (f": {again[0]} twice" if again and again[0] else "; a column has no name" if names else ""),
                file=self.path,
                expected="the names of the columns, each once",
            )
        return names, separator, before

    def _lines(self) -> Iterator[str]:
        """The lines of the file with their ends."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        pending = ""
        try:
            with open_utf8(self.path) as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    *lines, pending = (pending + decoder.decode(chunk)).split("\n")
                    yield from (f"{line}\n" for line in lines)
                pending += decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise DataError(
                f"not UTF-8: byte {error.object[error.start]:#x}",
                file=self.path,
                expected="text in UTF-8, or in UTF-16 with its mark",
                fix="save the table as UTF-8 (in Excel: CSV UTF-8)",
            ) from error
        if pending:
            yield pending

    def _of_csv(self, names: list[str]) -> Iterator[pl.DataFrame]:
        header, separator, before = self._header
        wanted = [header.index(name) for name in names]
        lines = self._lines()
        for _ in range(before):
            next(lines, None)
        csv.field_size_limit(MAX_CELL)
        cells: list[list[str]] = [[] for _ in names]
        row = 0
        try:
            for record in records(lines, separator, before):
                if not record.cells:
                    continue  # an empty line
                if record.joins_rows(len(header), separator):
                    raise DataError(
                        f"the quote opened in line {record.line + 1} is closed in a later line",
                        file=self.path,
                        row=row,
                        expected="a quote within a text written twice, and a text with quotes within quotes",
                    )
                if len(record.cells) != len(header):
                    raise DataError(
                        f"line {record.line + 1} has {len(record.cells)} cells",
                        file=self.path,
                        row=row,
                        expected=f"{len(header)}, one for each column of the first line",
                    )
                for column, index in zip(cells, wanted, strict=True):
                    column.append(record.cells[index])
                row += 1
                if row % FRAME_ROWS == 0:
                    yield _frame(names, cells)
                    cells = [[] for _ in names]
        except csv.Error as error:
            raise DataError(f"no CSV after row {row}: {error}", file=self.path, row=row, expected="CSV") from error
        if row % FRAME_ROWS:
            yield _frame(names, cells)

    def _of_json(self, names: list[str]) -> Iterator[pl.DataFrame]:
        yield from JsonTable(self.path, {name: (name,) for name in names}, required=()).frames()

    def _of_parquet(self, names: list[str]) -> Iterator[pl.DataFrame]:
        with _parquet_errors(self.path):
            scan = pl.scan_parquet(self.path, glob=False)
            schema = scan.collect_schema()
            for name in names:
                if schema[name] == pl.Binary or (schema[name].is_nested() and not isinstance(schema[name], pl.List)):
                    raise DataError(
                        f"column {name} holds {schema[name]}", file=self.path, expected="texts, numbers or dates"
                    )
            texts = scan.select(_as_text(name, schema[name]) for name in names)
            rows = int(scan.select(pl.len()).collect().item())
            for start in range(0, rows, FRAME_ROWS * 8):
                yield texts.slice(start, FRAME_ROWS * 8).collect()


def _frame(names: list[str], cells: list[list[str]]) -> pl.DataFrame:
    return pl.DataFrame(dict(zip(names, cells, strict=True)), schema=dict.fromkeys(names, pl.String))


def _as_text(name: str, dtype: Any) -> pl.Expr:
    column = pl.col(name)
    if isinstance(dtype, pl.List):
        return column.cast(pl.List(pl.String)).list.join(" ")
    if isinstance(dtype, pl.Datetime):
        zoned = column if dtype.time_zone is None else column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        return zoned.dt.strftime("%Y-%m-%dT%H:%M:%S")
    return column.cast(pl.String)


class _parquet_errors:  # noqa: N801 - a context manager
    """Names the file where it cannot be read as Parquet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, pl.exceptions.PolarsError):
            raise DataError(
                f"cannot be read: {str(error).splitlines()[0]}", file=self.path, expected="a whole Parquet file"
            ) from error
