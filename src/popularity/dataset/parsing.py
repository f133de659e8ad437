"""Turns columns of text into columns of their declared type; unusable values are kept apart, counted and named."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import polars as pl

from popularity.core.contracts import QUARANTINE

MISSING = ("", "None")  # and null; the publishers' tools write the second
SET_TO_NULL = "set to null"
CONVERTED = ("milliseconds", "converted to seconds")  # reason, action
VALUE_SHOWN = 80  # characters of a bad value kept for the summary

EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)

_INLINE_TAGS = "a|abbr|b|big|code|em|font|i|q|s|small|span|strike|strong|sub|sup|tt|u"
MAX_OFFSET = 14 * 60  # minutes: no time zone is farther than UTC+14
MILLISECONDS = (10**11, int(LATEST.timestamp()) * 1000)  # unix times in milliseconds, 1973 to 2100; no time in seconds


@dataclass
class Quarantine:
    """Collects values that could not be used as they are."""

    frames: list[pl.DataFrame] = field(default_factory=list)

    def add(self, rows: Rows, name: str, texts: pl.Series, bad: pl.Series, reason: str, action: str) -> None:
        """Adds a row for each value of `texts` where `bad` is true."""
        if not bad.any():
            return
        listed = pl.DataFrame({"row": rows.start + bad.arg_true().cast(pl.Int64)}).with_columns(
            pl.lit(rows.file).alias("file"),
            rows.pids.filter(bad).alias("pid"),
            pl.lit(name).alias("field"),
            texts.filter(bad).str.slice(0, VALUE_SHOWN).alias("value"),
            pl.lit(reason).alias("reason"),
            pl.lit(action).alias("action"),
        )
        self.frames.append(listed.select(list(QUARANTINE.columns)))

    def table(self) -> pl.DataFrame:
        """All entries, in the form of the contract QUARANTINE."""
        schema: dict[str, Any] = {name: column.dtype for name, column in QUARANTINE.columns.items()}
        return pl.concat([pl.DataFrame(schema=schema), *self.frames]).sort(QUARANTINE.key)


@dataclass(frozen=True)
class Rows:
    """Source of a slice of values: file name, row of the first value, and the pid of each."""

    file: str
    start: int
    pids: pl.Series


@dataclass(frozen=True)
class _Bounds:
    """The values that are accepted, both ends included.

    Args:
        kind: of the value, for messages: "a number".
        low: least accepted value.
        high: greatest accepted value.
        shown: both ends for messages, if they are to read otherwise.
    """

    kind: str
    low: float
    high: float
    shown: tuple[Any, Any] | None = None

    def __str__(self) -> str:
        low, high = self.shown or (self.low, self.high)
        return f"{low} to {high}"


@dataclass(frozen=True)
class Parser:
    """Turns columns of text from one slice of rows into typed columns; unusable values go to `quarantine`."""

    rows: Rows
    quarantine: Quarantine

    def text(self, name: str, texts: pl.Series) -> pl.Series:
        """The text as published; null becomes "", NUL (also what a lone surrogate was read as) U+FFFD."""
        bad = texts.str.contains("\x00", literal=True).fill_null(False)
        self.quarantine.add(self.rows, name, texts, bad, "NUL or lone surrogate", "replaced by U+FFFD")
        return texts.fill_null("").str.replace_all("\x00", "\ufffd", literal=True)

    def optional_text(self, name: str, texts: pl.Series) -> pl.Series:
        """As `text`, but null where the value is missing."""
        return _blank_to_null(self.text(name, texts))

    def plain_text(self, name: str, texts: pl.Series) -> pl.Series:
        """HTML as text: without tags, comments, scripts and entities; null where nothing remains."""
        return strip_html(self.text(name, texts))

    def number(self, name: str, texts: pl.Series, low: float, high: float) -> pl.Series:
        """Float64 within [low, high], else null."""
        return self._limited(name, texts, numbers(texts), _Bounds("a number", low, high))

    def integer(self, name: str, texts: pl.Series, low: int, high: int, action: str = SET_TO_NULL) -> pl.Series:
        """Int64 within [low, high], else null; `action` says what the caller puts in place of the null."""
        return self._limited(name, texts, integers(texts), _Bounds("an integer", low, high), action)

    def flag(self, name: str, texts: pl.Series) -> pl.Series:
        """Boolean from 0, 1, true or false, else null."""
        words = {"0": False, "1": True, "false": False, "true": True}
        values = present(texts).str.to_lowercase().replace_strict(words, default=None, return_dtype=pl.Boolean)
        return self._known(name, texts, values, "neither 0 nor 1")

    def moment(self, name: str, texts: pl.Series, earliest: datetime, latest: datetime) -> pl.Series:
        """UTC time from unix seconds or "YYYY-MM-DD HH:MM:SS", else null."""
        seconds = self.seconds(name, texts)
        written = present(texts).str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us", strict=False).dt.epoch("s")
        seconds = seconds.fill_null(written) if seconds.null_count() else seconds
        years = (earliest.year, latest.year)
        bounds = _Bounds("a time", int(earliest.timestamp()), int(latest.timestamp()), years)
        return from_seconds(self._limited(name, texts, seconds, bounds))

    def seconds(self, name: str, texts: pl.Series) -> pl.Series:
        """Int64 unix seconds where the text is an integer, else null; milliseconds are converted and noted."""
        seconds, fine = to_seconds(integers(texts))
        self.quarantine.add(self.rows, name, texts, fine, *CONVERTED)
        return seconds

    def offset(self, name: str, texts: pl.Series) -> pl.Series:
        """Int32 minutes east of UTC from "-08:00", "-0800", minutes or (where too large for these) seconds, else null.

        A sign and four digits are hours and minutes if such a zone can exist, else a number.
        """
        given = present(texts)
        hours, minutes = (
            given.str.extract(rf"^(?:{pattern})$", 1).fill_null(given.str.extract(rf"^(?:{signed})$", 1)).cast(pl.Int64)
            for pattern, signed in (
                (r"[+-]?(\d{1,2}):\d{2}", r"[+-](0\d|1[0-4])[0-5]\d"),
                (r"[+-]?\d{1,2}:(\d{2})", r"[+-](?:0\d|1[0-4])([0-5]\d)"),
            )
        )
        clock = (hours * 60 + minutes) * (1 - 2 * given.str.starts_with("-").cast(pl.Int64))
        counted = integers(texts)
        values = pl.select(
            pl.when(clock.is_not_null())
            .then(clock)
            .when(counted.abs() <= MAX_OFFSET)
            .then(counted)
            .when(counted % 60 == 0)
            .then(counted // 60)
        ).to_series()
        bounds = _Bounds("an offset in minutes", -MAX_OFFSET, MAX_OFFSET)
        return self._limited(name, texts, values, bounds).cast(pl.Int32)

    def vector(self, name: str, texts: pl.Series, length: int) -> pl.Series:
        """List(Float32) of `length` finite numbers separated by commas, else null."""
        values = present(texts).str.split(",").list.eval(pl.element().str.strip_chars().cast(pl.Float32, strict=False))
        finite = values.list.eval(pl.element().is_finite().fill_null(False)).list.all()
        usable = finite & (values.list.len() == length)
        values = pl.select(pl.when(usable).then(values)).to_series()
        return self._known(name, texts, values, f"not {length} finite numbers separated by commas")

    def _limited(
        self, name: str, texts: pl.Series, values: pl.Series, bounds: _Bounds, action: str = SET_TO_NULL
    ) -> pl.Series:
        """`values` within `bounds`, else null; values of another kind and values outside go to `quarantine`."""
        self._known(name, texts, values, f"not {bounds.kind}", action)
        beyond = values.is_not_null() & ~values.is_between(bounds.low, bounds.high).fill_null(False)
        self.quarantine.add(self.rows, name, texts, beyond, f"outside {bounds}", action)
        return values.set(beyond, None)

    def _known(
        self, name: str, texts: pl.Series, values: pl.Series, reason: str, action: str = SET_TO_NULL
    ) -> pl.Series:
        bad = values.is_null() & present(texts).is_not_null()
        self.quarantine.add(self.rows, name, texts, bad, reason, action)
        return values


def integers(texts: pl.Series) -> pl.Series:
    """Int64 where the text is an integer, else null; "2.0" is one: numbers in a column with gaps are written so."""
    given = present(texts)
    values = given.cast(pl.Int64, strict=False)
    if values.null_count() == given.null_count():
        return values
    given = numbers(texts)
    whole = (given == given.floor()) & (given.abs() < 2.0**53)
    return values.fill_null(pl.select(pl.when(whole).then(given)).to_series().cast(pl.Int64))


def to_seconds(times: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Unix times in seconds, and where they were in milliseconds."""
    fine = times.is_between(*MILLISECONDS).fill_null(False)
    return pl.select(pl.when(fine).then(times // 1000).otherwise(times)).to_series(), fine


def from_seconds(seconds: pl.Series) -> pl.Series:
    """Unix seconds as the schema's UTC time."""
    return pl.from_epoch(seconds, "s").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def strip_html(texts: pl.Series) -> pl.Series:
    """The readable text of HTML fragments, white space collapsed; null where none remains."""
    plain = (
        texts.str.replace_all(r"(?is)<script\b.*?</script\s*>|<style\b.*?</style\s*>|<!--.*?-->", " ")
        .str.replace_all(rf"(?i)</?(?:{_INLINE_TAGS})(?:\s[^>]*)?/?>", "")
        .str.replace_all(r"(?i)</?[a-z][^>]*>", " ")
    )
    coded = plain.str.contains("&", literal=True).fill_null(False)
    if coded.any():
        # A user's description is in each of his rows: it is decoded once.
        decoded = {text: html.unescape(text) for text in plain.filter(coded).unique()}
        plain = plain.replace(list(decoded), list(decoded.values()))
    return _blank_to_null(plain.str.replace_all(r"\s+", " ").str.strip_chars())


def present(texts: pl.Series) -> pl.Series:
    """The stripped texts, null where the value is missing."""
    return _blank_to_null(texts.str.strip_chars())


def _blank_to_null(texts: pl.Series) -> pl.Series:
    return texts.set(texts.is_in(MISSING).fill_null(False), None)


def numbers(texts: pl.Series) -> pl.Series:
    """Float64 where the text is a finite number, else null."""
    values = present(texts).cast(pl.Float64, strict=False)
    return values.set(~values.is_finite().fill_null(False), None)
