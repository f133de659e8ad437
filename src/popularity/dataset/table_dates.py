"""Dates as tables write them: the format is judged by the whole column, never by the cell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from popularity.core.errors import DataError
from popularity.dataset.parsing import integers, present

MIN_READ = 0.95  # share of the values that a format must read
MOST = 0.5  # above it the others are the culprits
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


def refuse_unknown_dates(texts: pl.Series, file: Path | None = None) -> DateFormat:
    """The format of a column of dates.

    Args:
        texts: the column, under its name.
        file: that it is in.

    Raises:
        DataError: no format, or two that differ in day and month. Where most values have a format, it names the first
            row of another.
    """
    found = _formats(texts)
    if len(found) == 1:
        return found[0]
    row, others = None, present(texts).drop_nulls()
    why = "may begin with the day or with the month" if found else "are in no known format"
    if not found and (most := _formats(texts, MOST)):
        unread = present(texts).is_not_null() & to_unix(texts, most[0]).is_null()
        row, others = int(unread.arg_true()[0]), texts.filter(unread)
        why = f"are not in the format of the others, such as {texts.filter(~unread).drop_nulls()[0]!r}"
    examples = ", ".join(repr(text) for text in others.head(SHOWN))
    raise DataError(
        f"the dates {examples} of {texts.name} {why}",
        file=file,
        row=row,
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


def _formats(texts: pl.Series, least: float = MIN_READ) -> list[DateFormat]:
    """The formats that read at least the share `least` of the values; of those, what reads most."""
    given = _plain(texts).drop_nulls()
    if not len(given):
        return []
    unix = integers(given)
    if share(unix.is_between(10**8, 10**14)) >= least:
        return [DateFormat(UNIX, timed=True)]
    for days in (DAYS, AMBIGUOUS):
        found = []
        for day in days:
            for time in (*TIMES, ""):
                for zone in ("", "%z") if time else ("",):
                    pattern = f"{day}{time}{zone}"
                    if share(_parsed(given.head(1000), pattern).is_not_null()) >= least:
                        found.append(DateFormat(pattern, timed=bool(time)))
        read = [each for each in found if share(_parsed(given, each.pattern).is_not_null()) >= least]
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
