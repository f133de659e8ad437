"""The records of CSV files, with the lines that each was read from: a quote that nobody closed joins posts."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

SEPARATORS = (",", ";", "\t", "|")


@dataclass(frozen=True)
class Record:
    """A record of a CSV file: its first line (from 0), its lines as written, and its cells."""

    line: int
    lines: list[str]
    cells: list[str]

    def has_open_quote(self, columns: int, separator: str) -> bool:
        """True if its lines seem to be posts of their own, joined by a quote that nobody closed.

        That is so if a line within it, or both its first and its last, have a cell for each column.
        """
        whole = self._whole(columns, separator)
        return any(whole[1:-1]) or (len(whole) > 1 and whole[0] and whole[-1])

    def joins_rows(self, columns: int, separator: str) -> bool:
        """True if each of its lines has a cell for each column: a text of several lines rarely looks so."""
        whole = self._whole(columns, separator)
        return len(whole) > 1 and all(whole)

    def _whole(self, columns: int, separator: str) -> list[bool]:
        """For each line of a record of several, whether it has a cell for each column."""
        if len(self.lines) < 2:
            return []
        return [
            len(next(csv.reader([line], delimiter=separator, quoting=csv.QUOTE_NONE), [])) == columns
            for line in self.lines
        ]


def records(lines: Iterable[str], separator: str, start: int = 0) -> Iterator[Record]:
    """The records of `lines`, which keep their ends; only the lines of one record are in memory.

    Args:
        lines: of the file.
        separator: of the cells.
        start: number of the first line.

    Raises:
        csv.Error: no CSV.
    """
    taken: list[str] = []

    def watched() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line

    for cells in csv.reader(watched(), delimiter=separator):
        yield Record(start, list(taken), cells)
        start += len(taken)
        taken.clear()


def separator_of(header: str) -> str:
    """The separator that divides the first line into the most cells; a comma where none does.

    >>> separator_of("id;title, long;date")
    ';'
    """
    counts = [len(next(csv.reader([header], delimiter=each), [])) for each in SEPARATORS]
    return SEPARATORS[counts.index(max(counts))]
