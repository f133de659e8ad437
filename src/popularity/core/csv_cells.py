"""Cells of CSV files that people open: none is a formula."""

from __future__ import annotations

from typing import Any

import polars as pl

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a text that begins so is run by a table program


def plain_cell(value: Any) -> Any:
    """The value; a text that a table program would run as a formula gets a leading quote."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def plain_cells(frame: pl.DataFrame) -> pl.DataFrame:
    """As `plain_cell`, for all texts of a table."""
    return frame.with_columns(pl.col(pl.String).str.replace(r"^([=+\-@\t\r])", "'$1"))
