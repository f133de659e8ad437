"""Post dates: converted, or set to the median of their split and noted; too many unusable ones stop the run."""

from __future__ import annotations

import polars as pl

from popularity.core.errors import DataError
from popularity.dataset.layout import SplitFiles
from popularity.dataset.parsing import CONVERTED, EARLIEST, LATEST, Parser, integers, present, to_seconds

MAX_UNUSABLE = 0.05  # share of a split's dates; above it the column is not understood
YEAR = 365.25 * 86_400  # seconds
FAR = (10.0, 10.0)  # years, and interquartile ranges, from the quartiles: farther dates are not of this data set


def post_dates(texts: pl.Series, parser: Parser, source: SplitFiles) -> pl.Series:
    """Int64 unix seconds of all posts of a split.

    A date that is missing, 0 or less, no integer, outside 1970 to 2100 or far from all others becomes the median date
    of the split. Milliseconds are converted.

    Raises:
        DataError: more than MAX_UNUSABLE of the dates cannot be used.
    """
    seconds, converted = to_seconds(integers(texts))
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
            f"{unusable.sum()} of {len(texts)} values of Postdate cannot be used; the first is {texts[row]!r}",
            file=source.files["temporalspatial"],
            row=row,
            expected=f"unix time in seconds (or milliseconds) in all but {MAX_UNUSABLE:.0%} of the rows",
            fix="repair the column; a row whose date is not known may be empty",
        )
    usable = seconds.filter(~unusable).sort()
    median = int(usable[len(usable) // 2])
    action = f"set to the median date of the {source.split} split"
    for bad, reason in (
        (missing, "missing"),
        (unknown, "not an integer"),
        (beyond, f"outside {EARLIEST.year} to {LATEST.year}"),
        (far, "far from all other dates"),
    ):
        parser.quarantine.add(parser.rows, "Postdate", texts, bad, reason, action)
    parser.quarantine.add(parser.rows, "Postdate", texts, converted & ~unusable, *CONVERTED)
    return pl.select(pl.when(unusable).then(median).otherwise(seconds)).to_series()


def _near(seconds: pl.Series, plausible: pl.Series) -> pl.Series:
    """Where a time lies within FAR of the quartiles of the plausible ones; null counts as near."""
    if plausible.is_empty():
        return seconds.is_null() | True
    first, third = float(plausible.quantile(0.25)), float(plausible.quantile(0.75))  # type: ignore[arg-type]
    margin = FAR[0] * YEAR + FAR[1] * (third - first)
    return seconds.is_between(first - margin, third + margin).fill_null(True)
