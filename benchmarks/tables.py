"""The output of every benchmark: a text table on the screen, and the same numbers in a CSV file.

    rows = [{"system": "ours", "mae": 1.19}, {"system": "constant", "mae": 1.40}]
    print(text_table(rows))
    write_csv(rows, args.csv)                  # the flag of add_csv_flag; without it no file is written

Standard library alone: `benchmarks.speed network` runs where only torch is installed.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from popularity.core.atomic import atomic_path

Row = Mapping[str, Any]


def add_csv_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --csv FILE."""
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the numbers of the table to this file")


def write_csv(rows: Sequence[Row], file: Path | None) -> None:
    """Writes the rows in full precision; a key that a row lacks is an empty cell. Without a file nothing is written."""
    if file is None:
        return
    with atomic_path(file) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, _columns(rows), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def text_table(rows: Sequence[Row], digits: int = 4) -> str:
    """Lines of the rows under the names of their columns; fractions have `digits` decimal places.

    >>> print(text_table([{"system": "ours", "mae": 1.194}, {"system": "constant", "mae": None}], digits=2))
    system     mae
    ours      1.19
    constant
    """
    names = _columns(rows)
    lines = [names, *([_cell(row.get(name), digits) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    right = [any(isinstance(row.get(name), int | float) for row in rows) for name in names]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def signed_interval(value: float | None, low: float | None, high: float | None, digits: int = 4) -> str:
    """A difference and its interval as text.

    >>> signed_interval(0.004, -0.001, 0.009, digits=3)
    '+0.004 [-0.001, +0.009]'
    """
    shown = ["-" if one is None else f"{one:+.{digits}f}" for one in (value, low, high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def verdict(metric: str, low: float | None, high: float | None) -> str:
    """`better` or `worse` if the interval of a difference excludes 0; higher is better for `src` alone."""
    if low is None or high is None or low <= 0 <= high:
        return ""
    return "better" if (low > 0) == (metric == "src") else "worse"


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _cell(value: object, digits: int) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
