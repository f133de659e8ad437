"""The feature group `user_target`: target statistics of a user beyond those of the user's classes."""

from __future__ import annotations

import polars as pl

from popularity.features.past_labels import HALF_LIVES, total


def user_target_columns(past: pl.DataFrame, rows: pl.DataFrame, prior: float) -> pl.DataFrame:
    """Returns (rows, columns): the user's mean residual, in all and beyond the classes; last one, trend, spread, days.

    Without a past post a mean is the value that it is shrunk to; last and days are null.

    Args:
        past: of `past_of`.
        rows: (uid, theme) of the posts whose past it is.
        prior: posts' worth of the value that a mean is shrunk to.
    """
    weight = 0.5 ** (pl.col("age") / HALF_LIVES[1])
    posts, rest, beyond = pl.len(), pl.col("rest"), pl.col("beyond")
    variance = past["rest"].var() or 0.0
    level = total(rest) / (posts + prior)
    users = past.group_by("uid", maintain_order=True).agg(
        **{
            "user_target.level": level,
            "user_target.beyond_class": total(beyond) / (posts + prior),
            "user_target.last": beyond.last(),
            "user_target.trend": (total(weight * rest) + prior * level) / (total(weight) + prior) - level,
            "user_target.spread": (total((rest - rest.mean()) ** 2) + prior * variance) / (posts + prior),
            "user_target.days": pl.col("age").max() - pl.col("age").min(),
        }
    )
    own_class = past.group_by("uid", "theme", maintain_order=True).agg(own=total(beyond), posts=posts)
    table = rows.select("uid", "theme").join(users, on="uid", how="left", validate="m:1", maintain_order="left")
    table = table.join(own_class, on=["uid", "theme"], how="left", validate="m:1", maintain_order="left")
    table = table.with_columns(
        *(pl.col(f"user_target.{name}").fill_null(0.0) for name in ("level", "beyond_class", "trend")),
        pl.col("user_target.spread").fill_null(variance).sqrt(),
        pl.col("own", "posts").fill_null(0),
    )
    of_class = (pl.col("own") + prior * pl.col("user_target.beyond_class")) / (pl.col("posts") + prior)
    return table.select(pl.col("^user_target\\..*$"), of_class.alias("user_target.own_class"))
