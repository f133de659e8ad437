"""How many posts lie in the days before each post."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import polars as pl


def count_before(posts: pl.DataFrame, key: str | None, spans: Iterable[int]) -> list[pl.Series]:
    """Returns, for each of `spans`, (n,) posts in as many days before each post, without those of its own second.

    Args:
        posts: (n rows) with `posted_at` and the column `key`.
        key: a column: posts of the same value count; None: all posts count.
        spans: days.
    """
    seconds = posts["posted_at"].dt.epoch("s").to_numpy()
    seconds = seconds - seconds.min(initial=seconds[0] if len(seconds) else 0)
    group = np.zeros(len(seconds), np.int64) if key is None else posts[key].rank("dense").to_numpy().astype(np.int64)
    widths = [span * 86_400 for span in spans]
    # Every group has its own stretch of one axis.
    position = group * (int(seconds.max(initial=0)) + max(widths) + 1) + seconds
    order = np.argsort(position)
    ordered = position[order]
    until = np.searchsorted(ordered, ordered)  # sorted queries, as below, are faster: each is near the last one
    counts = []
    for width in widths:
        found = np.empty(len(position), np.int32)
        found[order] = until - np.searchsorted(ordered, ordered - width)
        counts.append(pl.Series(found))
    return counts
