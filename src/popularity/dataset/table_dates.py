"""Dates as tables write them: the format is judged by the whole column, never by the cell."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from popularity.core.errors import DataError
from popularity.dataset.parsing import integers, present

MIN_READ = 0.95  # share of the values that a format must read
SHOWN = 3
UNIX = "unix"
# Formats without a zone, a time of day first; %z is tried after each.
DAYS = ("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y%m%d", "%d.%m.%Y", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y")
AMBIGUOUS = ("%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y")
TIMES = ("T%H:%M:%S%.f", " %H:%M:%S%.f", "T%H:%M", " %H:%M", ", %H:%M", " %I:%M %p", " %I:%M:%S %p")


@dataclass(frozen=True)
class DateFormat:
    """How a column writes its dates.

    Args:
        pattern: of polars; UNIX for seconds or milliseconds.
        timed: False for dates without a time of day.
    """

    pattern: str
    timed: bool


def date_format(texts: pl.Series) -> DateFormat | None:
    """The format that reads nearly all values; None if none does, or if day and month cannot be told apart."""
    found = _formats(texts)
    return found[0] if len(found) == 1 else None


def refuse_unknown_dates(texts: pl.Series) -> DateFormat:
    """The format of a column of dates.

    Raises:
        DataError: no format, or two that differ in day and month.
    """
    found = _formats(texts)
    if len(found) == 1:
        return found[0]
    examples = ", ".join(repr(text) for text in present(texts).drop_nulls().head(SHOWN))
    raise DataError(
        f"the dates {examples} " + ("may begin with the day or with the month" if found else "are in no known format"),
        expected="dates such as 2016-05-01, 2016-05-01T12:00 or 2016-05-01T14:00+02:00, or unix seconds",
        fix="write the column so, or name another: MAP=date=COLUMN",
    )


def to_unix(texts: pl.Series, written: DateFormat) -> pl.Series:
    """(n,) Int64 unix seconds (or milliseconds of a column of numbers); null where a value is not in the format."""
    given = _plain(texts)
    if written.pattern == UNIX:
        return integers(given)
    return _parsed(given, written.pattern).dt.epoch("s")


def share(condition: pl.Series) -> float:
    """The share of values where a condition holds; null counts as not."""
    return float(condition.fill_null(value=False).cast(pl.Float64).mean() or 0.0)  # type: ignore[arg-type]


def _formats(texts: pl.Series) -> list[DateFormat]:
    given = _plain(texts).drop_nulls()
    if not len(given):
        return []
    unix = integers(given)
    if share(unix.is_between(10**8, 10**14)) >= MIN_READ:
        return [DateFormat(UNIX, timed=True)]
    for days in (DAYS, AMBIGUOUS):
        found = []
        for day in days:
            for time in (*TIMES, ""):
                for zone in ("", "%z") if time else ("",):
                    pattern = f"{day}{time}{zone}"
                    if share(_parsed(given.head(1000), pattern).is_not_null()) >= MIN_READ:
                        found.append(DateFormat(pattern, timed=bool(time)))
        read = [each for each in found if share(_parsed(given, each.pattern).is_not_null()) >= MIN_READ]
        if read:
            best = max(_parsed(given, each.pattern).is_not_null().sum() for each in read)
            read = [each for each in read if _parsed(given, each.pattern).is_not_null().sum() == best]
            return read[:1] if days is DAYS else read
    return []


def _plain(texts: pl.Series) -> pl.Series:
    """Without white space; Z and UTC as a zone that a format reads."""
    return present(texts).str.replace(r"(?i)\s*(z|utc|gmt)$", "+00:00").str.replace(r"\s+([+-]\d\d:?\d\d)$", "$1")


def _parsed(texts: pl.Series, pattern: str) -> pl.Series:
    """UTC times."""
    if "%H" not in pattern and "%I" not in pattern:
        return texts.str.to_date(pattern, strict=False).cast(pl.Datetime("us"))
    if pattern.endswith("%z"):
        return texts.str.to_datetime(pattern, time_unit="us", strict=False).dt.replace_time_zone(None)
    return texts.str.to_datetime(pattern, time_unit="us", strict=False)
