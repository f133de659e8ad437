"""The feature group `words`: the past residuals of a text's words, beyond the classes of their posts."""

from __future__ import annotations

import numpy as np
import polars as pl

from popularity.features.past_labels import TEXTS, total


def word_columns(past: pl.DataFrame, rows: pl.DataFrame, prior: float) -> pl.DataFrame:
    """Returns (rows, columns): mean, least and greatest residual of the words of a text, and the share with a past.

    Args:
        past: of `past_of`.
        rows: (TEXTS) as lists of words, of `code_names`.
        prior: posts' worth of the value that a mean is shrunk to.
    """
    # Numbers from numpy are not flagged as sorted: polars sums sorted groups in another order, with other last bits.
    rows = rows.select(pl.Series("row", np.arange(rows.height)), *TEXTS)
    table = rows.select("row")
    for text in TEXTS:
        levels = (
            _exploded(past, text, "beyond").group_by("word").agg(level=total(pl.col("beyond")) / (pl.len() + prior))
        )
        found = _exploded(rows, text, "row").join(levels, on="word", how="left", validate="m:1", maintain_order="left")
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
