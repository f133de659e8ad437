"""Signals that published winners found: further columns, in groups that `stack.columns.signals` switches on.

A signal's column is named <group>.<what>; columns without a dot are always seen. `rhythm` and the activity of classes
in `class_time` are label-free counts over shown posts. `history`, `words` and the levels of classes in `class_time`
come from labels older than a row's as-of date (see `popularity.features.label`).

Labels enter as what is left of them over the level of their own PERIOD: a level that drifts belongs to no user, class
or word. Every mean is shrunk: that of a user to his classes', of a class to the class above, of the first level to 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

import numpy as np
import polars as pl

from popularity.features.row import days
from popularity.schema import LEVELS, class_key, class_names

PERIOD = timedelta(days=30)
HALF_LIVES = (30, 90, 270)  # days, of the recent levels of a class; a user's trend has the second
SPANS = {"day": 1, "week": 7, "month": 30}  # days, of the counts of a user's last posts
ACTIVITY = (30, 180)  # days, of the recent and of the usual share of a class
# A class by its own names from the second level on, whatever it is filed under: a collection that starts to file alike
# posts under another first level takes no past from them. The third is the whole path.
CLASSES = ("theme", "variant", "concept")
TIMED = ("theme", "variant")
TEXTS = ("title", "tags")
WORD = r"[\p{L}\p{N}']+"
FACTS = ("uid", *LEVELS, *TEXTS)  # columns of POSTS that `label_signals` reads


def with_themes(posts: pl.DataFrame) -> pl.DataFrame:
    """`posts` with `theme` and `variant`: the keys of their classes of the second and third level by own names."""
    columns = {}
    for name, level in (("theme", "subcategory"), ("variant", "concept")):
        published = posts[level].unique().to_list()
        own = [class_key(*class_names(key)[1:]) for key in published]
        columns[name] = pl.col(level).replace_strict(published, own, return_dtype=pl.String)
    return posts.with_columns(**columns)


def count_signals(posts: pl.DataFrame) -> pl.DataFrame:
    """(pid, signals without labels) of the shown posts, sorted by pid; counts look back from each post.

    rhythm: posts of the user in each of SPANS; the hour of the week (0 to 167, the user's clock) and its posts.
    class_time: days since the first post of the class, at most ACTIVITY[1] (more would tell the date), its share of the
    posts of ACTIVITY[0] days, and how far that is above its share of ACTIVITY[1] days (a difference of logarithms).
    """
    posts = with_themes(posts.sort("pid"))
    local = pl.col("posted_at") + pl.duration(minutes=pl.col("timezone_offset").fill_null(0))
    hour = (local.dt.weekday().cast(pl.Int32) - 1) * 24 + local.dt.hour().cast(pl.Int32)
    own = _before(posts, "uid", SPANS.values())
    columns: dict[str, pl.Expr | pl.Series] = {
        **{f"rhythm.user_{name}": counts for name, counts in zip(SPANS, own, strict=True)},
        "rhythm.week_hour": hour,
        "rhythm.week_hour_posts": pl.len().over(hour).cast(pl.Int32),
    }
    age = days(pl.col("posted_at") - pl.col("posted_at").min())
    every = _before(posts, None, ACTIVITY)
    for level in TIMED:
        classes = posts[level].n_unique()
        # One post more in every class: the share of a class without a recent post is small and not nothing.
        both = zip(_before(posts, level, ACTIVITY), every, strict=True)
        recent, usual = ((alike + 1) / (all_posts + classes) for alike, all_posts in both)
        columns |= {
            f"class_time.{level}_age": age.over(level).clip(upper_bound=ACTIVITY[1]),
            f"class_time.{level}_share": recent,
            f"class_time.{level}_rise": (recent / usual).log(),
        }
    return posts.select("pid", **columns)


def _before(posts: pl.DataFrame, key: str | None, spans: Iterable[int]) -> list[pl.Series]:
    """For each of `spans` (n,) posts of the same `key` (None: all) in as many days before each post, its own second
    left out."""
    seconds = posts["posted_at"].dt.epoch("s").to_numpy()
    seconds = seconds - seconds.min(initial=seconds[0] if len(seconds) else 0)
    group = np.zeros(len(seconds), np.int64) if key is None else posts[key].rank("dense").to_numpy().astype(np.int64)
    widths = [span * 86_400 for span in spans]
    # Every group on its own stretch of one axis.
    place = group * (int(seconds.max(initial=0)) + max(widths) + 1) + seconds
    order = np.argsort(place)
    ordered = place[order]
    until = np.searchsorted(ordered, ordered)  # asked in order, as below, each answer is near the last
    counts = []
    for width in widths:
        found = np.empty(len(place), np.int32)
        found[order] = until - np.searchsorted(ordered, ordered - width)
        counts.append(pl.Series(found))
    return counts


def coded(posts: pl.DataFrame) -> pl.DataFrame:
    """`posts` with `theme` and `variant`, all keys of users and classes as numbers, and texts as lists of their words.

    What only compares names is several times faster on numbers. The different words of a text (List(UInt32)) are in
    the order of their spelling. Numbers are alike exactly where names are, within one call.
    """
    posts = with_themes(posts)
    keys = [_numbers(pl.col(name)).alias(name) for name in ("uid", *LEVELS, *TIMED)]
    words = (pl.col(text).str.to_lowercase().str.extract_all(WORD).list.unique().list.sort() for text in TEXTS)
    return posts.with_columns(*keys, *(found.list.eval(_numbers(pl.element())) for found in words))


def _numbers(names: pl.Expr) -> pl.Expr:
    return names.cast(pl.Categorical).to_physical()


def label_signals(rows: pl.DataFrame, prior: float) -> pl.DataFrame:
    """(pid, signals from labels) for fit and score rows of one fold, sorted by pid.

    history: of the user's past labels the level, the level beyond what his classes give (in all and in the post's own
    theme), the last one beyond its class, the trend (the level of late over the level), the spread, and the days that
    the past spans. class_time: the level of each of CLASSES, and as HALF_LIVES show it. words: mean, least and greatest
    level of the words of title and tags beyond their classes, and the share of those words that the past knows.

    Without a past post a level is what it is shrunk to; last and days are null.

    Args:
        rows: (pid, role, posted_at, as_of, label, FACTS); labels of score rows are not read.
        prior: posts' worth of what a mean is shrunk to.
    """
    return coded_label_signals(coded(rows), prior)


def coded_label_signals(rows: pl.DataFrame, prior: float) -> pl.DataFrame:
    """As `label_signals`, of rows whose FACTS are `coded`."""
    labelled = rows.filter((pl.col("role") == "fit") & pl.col("label").is_not_null()).sort("posted_at", "pid")
    labelled = labelled.select("posted_at", "label", "uid", *CLASSES, *TEXTS)
    parts = []
    for (date,), asked in rows.sort("as_of", "pid").group_by("as_of", maintain_order=True):
        assert isinstance(date, datetime)
        before = labelled["posted_at"].search_sorted(date, side="left")
        past = _over_classes(_over_periods(labelled.head(before), prior), prior)
        signals = (compute(past, asked, prior) for compute in (_history, _class_levels, _words))
        parts.append(pl.concat([asked.select("pid"), *signals], how="horizontal"))
    return pl.concat(parts).sort("pid")


def _over_periods(past: pl.DataFrame, prior: float) -> pl.DataFrame:
    """`past` with its `age`, days before the last of it, and `rest`: the label over the shrunk mean of its period."""
    age = days(pl.col("posted_at").max() - pl.col("posted_at"))
    period = (age / (PERIOD / timedelta(days=1))).floor()
    mean = past["label"].mean()
    level = (pl.col("label").sum().over(period) + prior * pl.lit(mean)) / (pl.len().over(period) + prior)
    return past.with_columns(age=age, rest=pl.col("label") - level)


def _over_classes(past: pl.DataFrame, prior: float) -> pl.DataFrame:
    """`past` with the shrunk level of each class and `beyond`: the rest over that of the third level."""
    above: pl.Expr = pl.lit(0.0)
    for level in CLASSES:
        shrunk = (pl.col("rest").sum().over(level) + prior * above) / (pl.len().over(level) + prior)
        past = past.with_columns(shrunk.alias(f"{level}_level"))
        above = pl.col(f"{level}_level")
    return past.with_columns(beyond=pl.col("rest") - above)


def _class_levels(past: pl.DataFrame, asked: pl.DataFrame, prior: float) -> pl.DataFrame:
    """class_time.* of the rows `asked`; a class without a past post has the level of the class above."""
    table = asked.select(CLASSES)
    columns: list[str] = []
    above: pl.Expr = pl.lit(0.0)
    for level in CLASSES:
        name = f"class_time.{level}_level"
        found = {name: pl.col(f"{level}_level").first()}
        if level in TIMED:
            for half_life in HALF_LIVES:
                weight = 0.5 ** (pl.col("age") / half_life)
                shrunk = total(weight * pl.col("rest")) + prior * pl.col(f"{level}_level").first()
                found[f"class_time.{level}_level_{half_life}"] = shrunk / (total(weight) + prior)
        levels = past.group_by(level, maintain_order=True).agg(**found)
        table = table.join(levels, on=level, how="left", validate="m:1", maintain_order="left")
        table = table.with_columns(pl.col(name).fill_null(above))
        table = table.with_columns(pl.col(column).fill_null(pl.col(name)) for column in found)
        above = pl.col(name)
        columns += found
    return table.select(columns)


def _history(past: pl.DataFrame, asked: pl.DataFrame, prior: float) -> pl.DataFrame:
    """history.* of the rows `asked`."""
    weight = 0.5 ** (pl.col("age") / HALF_LIVES[1])
    posts, rest, beyond = pl.len(), pl.col("rest"), pl.col("beyond")
    variance = past["rest"].var() or 0.0
    level = total(rest) / (posts + prior)
    users = past.group_by("uid", maintain_order=True).agg(
        **{
            "history.level": level,
            "history.beyond_class": total(beyond) / (posts + prior),
            "history.last": beyond.last(),
            "history.trend": (total(weight * rest) + prior * level) / (total(weight) + prior) - level,
            "history.spread": (total((rest - rest.mean()) ** 2) + prior * variance) / (posts + prior),
            "history.days": pl.col("age").max() - pl.col("age").min(),
        }
    )
    own_class = past.group_by("uid", "theme", maintain_order=True).agg(own=total(beyond), posts=posts)
    table = asked.select("uid", "theme").join(users, on="uid", how="left", validate="m:1", maintain_order="left")
    table = table.join(own_class, on=["uid", "theme"], how="left", validate="m:1", maintain_order="left")
    table = table.with_columns(
        *(pl.col(f"history.{name}").fill_null(0.0) for name in ("level", "beyond_class", "trend")),
        pl.col("history.spread").fill_null(variance).sqrt(),
        pl.col("own", "posts").fill_null(0),
    )
    of_class = (pl.col("own") + prior * pl.col("history.beyond_class")) / (pl.col("posts") + prior)
    return table.select(pl.col("^history\\..*$"), of_class.alias("history.own_class"))


def total(values: pl.Expr) -> pl.Expr:
    """The sum of `values` in a group.

    Of plain values polars may add up parts of a group, one for each thread: the last bits then differ from run to run,
    and with the number of cores. A slice, be it of everything, is added up whole.
    """
    return values.slice(0).sum()


def _words(past: pl.DataFrame, asked: pl.DataFrame, prior: float) -> pl.DataFrame:
    """words.* of the rows `asked`."""
    # Numbers from numpy are not flagged as sorted: polars adds up sorted groups another way, to other last bits.
    asked = asked.select(pl.Series("row", np.arange(asked.height)), *TEXTS)
    table = asked.select("row")
    for text in TEXTS:
        levels = (
            _exploded(past, text, "beyond").group_by("word").agg(level=total(pl.col("beyond")) / (pl.len() + prior))
        )
        found = _exploded(asked, text, "row").join(levels, on="word", how="left", validate="m:1", maintain_order="left")
        level = pl.col("level").fill_null(0.0)
        found = found.group_by("row", maintain_order=True).agg(
            **{
                f"words.{text}_mean": level.slice(0).mean(),
                f"words.{text}_least": level.min(),
                f"words.{text}_greatest": level.max(),
                f"words.{text}_known": pl.col("level").is_not_null().mean(),
            }
        )
        table = table.join(found, on="row", how="left", validate="1:1", maintain_order="left")
    return table.drop("row")


def _exploded(posts: pl.DataFrame, text: str, value: str) -> pl.DataFrame:
    """(value, word): one row for each different word of a text, in the order of posts and words."""
    return posts.select(value, word=text).explode("word").drop_nulls("word")
