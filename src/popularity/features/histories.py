"""The feature group `history`: what a user's past labels are beyond those of the classes that he posts in."""

from __future__ import annotations

import polars as pl

from popularity.features.past_labels import HALF_LIVES, total


def history_columns(past: pl.DataFrame, rows: pl.DataFrame, prior: float) -> pl.DataFrame:
    """(rows, columns): the user's level, what it is beyond his classes, the last label, trend, spread and days.

    Without a past post a level is what it is shrunk to; last and days are null.

    Args:
        past: of `past_of`.
        rows: (uid, theme), those whose past it is.
        prior: posts' worth of what a mean is shrunk to.
    """
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
    table = rows.select("uid", "theme").join(users, on="uid", how="left", validate="m:1", maintain_order="left")
    table = table.join(own_class, on=["uid", "theme"], how="left", validate="m:1", maintain_order="left")
    table = table.with_columns(
        *(pl.col(f"history.{name}").fill_null(0.0) for name in ("level", "beyond_class", "trend")),
        pl.col("history.spread").fill_null(variance).sqrt(),
        pl.col("own", "posts").fill_null(0),
    )
    of_class = (pl.col("own") + prior * pl.col("history.beyond_class")) / (pl.col("posts") + prior)
    return table.select(pl.col("^history\\..*$"), of_class.alias("history.own_class"))
