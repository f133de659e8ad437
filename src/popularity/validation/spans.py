"""Where the splits in time start: each looks as far ahead, for the span of its train rows, as the test part does.

    |--------- training span ---------|---- test span ----|      wanted: test span / training span
    |---- train ----|- valid (holdout) |
    |-- train --|---|  forward
    |- train -|--|     forward

So the origin of a split that ends at `end` is first + (end - first) / (1 + wanted). Forward splits end before the
holdout starts; where they have no room one after another, their valid spans overlap, and a post is valid in several. A
ratio is lowered where too few posts would lie before an origin (`least_train_posts`), and raised where too few posts
would be valid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Literal

import numpy as np
import polars as pl
from pydantic import Field

from popularity.core.arrays import Int64Array
from popularity.core.as_of import ends, lies_among
from popularity.core.config import Section

Fraction = Annotated[float, Field(gt=0, lt=1)]
Ratio = Annotated[float, Field(gt=0)]

MIN_TRAIN_POSTS = 500  # before an origin, users that are excluded included; half of the posts where they are fewer
MIN_TRAIN_SHARE = 1 / 3  # of the training posts, before an origin
MIN_VALID_SHARE = 0.05  # of the posts before the end of a split
MIN_RATIO_SHARE = 0.75  # of the ratio with one forward split, which room for further ones may cost
MIN_STEP = 0.25  # of a valid span, in the logarithm of time, between two origins: nearer ones score the same posts


@dataclass(frozen=True)
class SplitParams(Section):
    """Section `split` of params.yaml.

    Args:
        seed: of the excluded users and of the folds of `group` and `random`.
        span: valid span / training span of `holdout` and of each forward split: a number, `auto` (that of the test
            part), or `fractions` (the next two keys).
        holdout_fraction: of the training part, valid in `holdout`; only where `span` gives no ratio.
        forward_fraction: of the posts before the next origin, valid in a forward split; likewise.
        n_origins: of the forward splits, at most.
        n_folds: of `group` and `random`.
        unseen_user_fraction: of the valid posts, by unseen users, where there is no test part.
        tolerance: by which the share of posts by unseen users may miss its target.
        match_collection_order: whether valid rows of splits in time are spread in the order of collection as the test
            posts.
    """

    seed: int
    span: Literal["auto", "fractions"] | Ratio
    holdout_fraction: Fraction
    forward_fraction: Fraction
    n_origins: Annotated[int, Field(ge=1)]
    n_folds: Annotated[int, Field(ge=2)]
    unseen_user_fraction: Fraction
    tolerance: Annotated[float, Field(gt=0, lt=0.5)]
    match_collection_order: bool


@dataclass(frozen=True)
class WantedSpan:
    """How far the splits in time should look ahead.

    Args:
        ratio: valid span / training span; None where the fractions of the posts decide.
        source: where it comes from.
    """

    ratio: float | None
    source: str


@dataclass(frozen=True)
class SplitSpan:
    """The valid span of a split in time.

    Args:
        start: its origin, the date of the first valid post.
        end: valid posts are earlier; None: there is no later post.
        ratio: valid span / training span.
        note: why the ratio is not the wanted one; empty as a rule.
    """

    start: datetime
    end: datetime | None
    ratio: float
    note: str = ""


@dataclass(frozen=True)
class _Timeline:
    """The training posts in order of time.

    Args:
        posts: (uid, posted_at), sorted by time.
        at: (n,) microseconds.
        first: of the training span, microseconds.
        last: of the training span, microseconds.
    """

    posts: pl.DataFrame
    at: Int64Array
    first: int
    last: int

    @classmethod
    def of(cls, posts: pl.DataFrame) -> _Timeline:
        at = posts["posted_at"].to_physical().to_numpy()
        first, last = (int(end.timestamp() * 1e6) for end in ends(posts["posted_at"]))
        return cls(posts, at, first, last)

    def end_of(self, stop: int) -> int:
        """The end of a slice that ends before row `stop`, microseconds."""
        return self.last if stop == len(self.at) else int(self.at[stop])

    def growth(self, row: int, stop: int) -> float:
        """How many times as long the span up to the end of a slice is as the span before `row`."""
        return (self.end_of(stop) - self.first) / max(int(self.at[row]) - self.first, 1)

    def origin(self, position: int, stop: int) -> int:
        """The row at which a slice that ends before row `stop` starts, near `position`.

        Posts of one second stay together. Where times differ, the first posts lie before the origin.
        """
        times = self.at[:stop]
        row = int(np.searchsorted(times, times[position], "left"))
        after_first = int(np.searchsorted(times, times[0], "right"))
        return row if row or after_first == stop else after_first

    def span(self, row: int, stop: int) -> SplitSpan:
        dates = self.posts["posted_at"]
        end = None if stop == len(self.at) else dates[stop]
        return SplitSpan(dates[row], end, max(self.growth(row, stop) - 1, 0.0))

    def has_room(self, stop: int, n_folds: int) -> bool:
        """Whether the posts before row `stop` can be split in time and by user."""
        return stop > 1 and self.at[stop - 1] > self.at[0] and self.posts["uid"][:stop].n_unique() >= n_folds


def wanted_span(train: pl.DataFrame, test: pl.DataFrame, span: float | str) -> WantedSpan:
    """Returns how far the splits in time should look ahead.

    Args:
        train: (posted_at) of the training part.
        test: (posted_at) of the test part.
        span: split.span.
    """
    if not isinstance(span, str):
        return WantedSpan(float(span), "split.span")
    by_fractions = "split.holdout_fraction and split.forward_fraction"
    if span == "fractions":
        return WantedSpan(None, by_fractions)
    ratio = whole_ratio(train, test)
    if ratio is not None:
        return WantedSpan(ratio, "test part")
    among = "the test posts lie among the training posts in time"
    return WantedSpan(None, f"{by_fractions} ({'no test part' if test.is_empty() else among})")


def whole_ratio(train: pl.DataFrame, test: pl.DataFrame) -> float | None:
    """Returns test span / training span; None if no test post is later, or the training posts have one date.

    Args:
        train: (posted_at) of the training part.
        test: (posted_at) of the test part.
    """
    first, last = ends(train["posted_at"])
    if test.is_empty() or last <= first or lies_among(test["posted_at"], train["posted_at"]):
        return None
    return (ends(test["posted_at"])[1] - last) / (last - first)


def split_spans(train: pl.DataFrame, wanted: WantedSpan, params: SplitParams) -> tuple[SplitSpan, list[SplitSpan]]:
    """Returns the span of `holdout` and those of the forward splits, in order of time.

    Forward splits may overlap one another, and none overlaps the holdout. The first forward split's note says so if
    there was no room for all `n_origins`.

    Args:
        train: (uid, posted_at) of the training part, sorted by time.
        wanted: how far they should look ahead.
        params: section split.
    """
    line = _Timeline.of(train)
    found = list(_by_fractions(line, params) if wanted.ratio is None else _by_ratio(line, wanted.ratio, params))
    holdout, forward = found[0], found[:0:-1]
    missing = params.n_origins - len(forward)
    if missing and forward:
        fewer = f"too few posts or users for {missing} more of split.n_origins = {params.n_origins}"
        forward[0] = replace(forward[0], note="; ".join(filter(None, (fewer, forward[0].note))))
    return holdout, forward


def least_train_posts(n_posts: int) -> int:
    """Returns how many posts lie before every origin: a third of the training posts and at least 500, at most half."""
    return min(max(MIN_TRAIN_POSTS, math.ceil(n_posts * MIN_TRAIN_SHARE)), n_posts // 2)


def _by_fractions(line: _Timeline, params: SplitParams) -> Iterator[SplitSpan]:
    """`holdout` and then the forward splits, the last in time first."""
    stop = len(line.at)
    for index in range(params.n_origins + 1):
        if index and not line.has_room(stop, params.n_folds):
            return
        row = line.origin(stop - _count(stop, params.forward_fraction if index else params.holdout_fraction), stop)
        yield line.span(row, stop)
        stop = row


def _by_ratio(line: _Timeline, wanted: float, params: SplitParams) -> Iterator[SplitSpan]:
    """`holdout` and then the forward splits, the last in time first."""
    stop = len(line.at)
    least = least_train_posts(stop)
    earliest = line.origin(least, stop)
    if earliest < least:  # posts of one second stay together
        earliest = min(int(np.searchsorted(line.at, line.at[earliest], "right")), stop - 1)
    n_origins, ratio = _with_room(line.growth(earliest, stop), wanted, params.n_origins)
    goal = _Goal(wanted, ratio, least, earliest)
    row, span = _slice(line, goal, stop)
    yield span
    stop = row
    step = 1.0
    for index in range(n_origins):
        if not line.has_room(stop, params.n_folds):
            return
        previous, (row, span) = row, _slice(line, goal, stop)
        if row == previous:
            return
        yield span
        if not index and n_origins > 1:  # equal steps in the logarithm of time, as long as there is room for
            room = line.growth(earliest, row) if line.end_of(row) > line.first else 1.0
            step = min(1 + span.ratio, room ** (1 / (n_origins - 1)))
        end = line.first + (line.end_of(stop) - line.first) / step
        # Without an overlap a split ends where the next one starts.
        stop = row if step == 1 + span.ratio else int(np.searchsorted(line.at, end, "left"))


@dataclass(frozen=True)
class _Goal:
    """What a slice should be.

    Args:
        wanted: valid span / training span.
        possible: the ratio for which there is room, if it is lower.
        least: posts before an origin.
        earliest: row of an origin.
    """

    wanted: float
    possible: float
    least: int
    earliest: int


def _slice(line: _Timeline, goal: _Goal, stop: int) -> tuple[int, SplitSpan]:
    """The first row and the span of the slice that ends before row `stop`."""
    ratio = min(goal.wanted, goal.possible)
    origin = line.first + (line.end_of(stop) - line.first) / (1 + ratio)
    row = int(np.searchsorted(line.at[:stop], origin, "left"))
    latest = line.origin(stop - _count(stop, MIN_VALID_SHARE), stop)
    why = ""
    if ratio < goal.wanted or row < goal.earliest:
        why = f"at least {goal.least:,} posts lie before every origin"
    if row > latest:
        why = f"{100 * MIN_VALID_SHARE:.0f} % of the posts before the end of a split are valid"
    row = line.origin(min(max(row, goal.earliest), latest), stop)
    span = line.span(row, stop)
    if why:
        note = f"valid span / training span is {span.ratio:.2f}, not {goal.wanted:.2f}, so that {why}"
        span = replace(span, note=note)
    return row, span


def _with_room(growth: float, wanted: float, n_origins: int) -> tuple[int, float]:
    """How many forward splits there are, and the ratio of all splits in time.

    They look ahead equally far, and their origins are MIN_STEP apart. There are fewer where this would take more of
    the ratio than MIN_RATIO_SHARE leaves.

    Args:
        growth: how many times as long the training span is as the span before the earliest origin.
        wanted: valid span / training span.
        n_origins: how many there are at most.
    """

    def ratio(count: int) -> float:
        """With the valid spans of `holdout`, of a forward split, and of a part of it for each further one."""
        room = float(growth ** (1 / (2 + MIN_STEP * (count - 1)))) - 1
        return max(min(wanted, room), 0.0)

    enough = (count for count in range(n_origins, 1, -1) if ratio(count) >= MIN_RATIO_SHARE * ratio(1))
    count = next(enough, 1)
    return count, ratio(count)


def _count(posts: int, fraction: float) -> int:
    return max(1, round(fraction * posts))
