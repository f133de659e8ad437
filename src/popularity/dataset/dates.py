"""Post dates: converted, or set to the median of their split and noted; too many unusable ones stop the run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from popularity.core.errors import DataError
from popularity.dataset.parsing import CONVERTED, EARLIEST, LATEST, Parser, integers, present, to_seconds

MAX_UNUSABLE = 0.05  # share of a split's dates; above it the column is not understood
YEAR = 365.25 * 86_400  # seconds
FAR = (10.0, 10.0)  # years, and interquartile ranges, from the quartiles: farther dates are not of this data set


@dataclass(frozen=True)
class DateColumn:
    """The column that holds the dates of posts.

    Args:
        file: that it is in.
        field: its name there.
        posts: whose dates these are: "the train split".
        kind: of its values, for messages.
    """

    file: Path
    field: str
    posts: str
    kind: str = "an integer"


def post_dates(texts: pl.Series, parser: Parser, column: DateColumn, written: pl.Series | None = None) -> pl.Series:
    """Int64 unix seconds of all posts of a split, or of a table.

    A date that is missing, 0 or less, unreadable, outside 1970 to 2100 or far from all others becomes the median of
    the others. Milliseconds are converted.

    Args:
        texts: (n,) as in the file.
        parser: of the file's rows.
        column: where the texts are.
        written: (n,) unix times that the texts say; None: the texts are integers.

    Raises:
        DataError: more than MAX_UNUSABLE of the dates cannot be used.
    """
    seconds, converted = to_seconds(integers(texts) if written is None else written)
    low, high = int(EARLIEST.timestamp()), int(LATEST.timestamp())
    missing = present(texts).is_null() | (seconds <= 0).fill_null(False)
    unknown = seconds.is_null() & ~missing
    beyond = ~(missing | unknown) & ~seconds.is_between(low, high)
    far = ~(missing | unknown | beyond)
    far &= ~_near(seconds, seconds.filter(far))
    unusable = missing | unknown | beyond | far
    if unusable.sum() > max(1, MAX_UNUSABLE * len(texts)) or unusable.all():
        row = int(unusable.arg_true()[0])
        raise DataError(
            f"{unusable.sum()} of {len(texts)} values of {column.field} cannot be used; the first is {texts[row]!r}",
            file=column.file,
            row=row,
            expected=(
                f"{'unix time in seconds (or milliseconds)' if written is None else column.kind} "
                f"in all but {MAX_UNUSABLE:.0%} of the rows"
            ),
            fix="repair the column; a row whose date is not known may be empty",
        )
    usable = seconds.filter(~unusable).sort()
    median = int(usable[len(usable) // 2])
    action = f"set to the median date of {column.posts}"
    for bad, reason in (
        (missing, "missing"),
        (unknown, f"not {column.kind}"),
        (beyond, f"outside {EARLIEST.year} to {LATEST.year}"),
        (far, "far from all other dates"),
    ):
        parser.quarantine.add(parser.rows, column.field, texts, bad, reason, action)
    parser.quarantine.add(parser.rows, column.field, texts, converted & ~unusable, *CONVERTED)
    return pl.select(pl.when(unusable).then(median).otherwise(seconds)).to_series()


def _near(seconds: pl.Series, plausible: pl.Series) -> pl.Series:
    """Where a time lies within FAR of the quartiles of the plausible ones; null counts as near."""
    if plausible.is_empty():
        return seconds.is_null() | True
    first, third = float(plausible.quantile(0.25)), float(plausible.quantile(0.75))  # type: ignore[arg-type]
    margin = FAR[0] * YEAR + FAR[1] * (third - first)
    return seconds.is_between(first - margin, third + margin).fill_null(True)
