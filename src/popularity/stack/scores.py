"""The stack's scores in every labelled scheme: what its manifest says of it."""

from __future__ import annotations

import polars as pl

from popularity.arrays import rounded
from popularity.evaluation.metrics import cuts_of, score
from popularity.schema import PREDICTIONS

TOLD = ("mae", "src")
DIGITS = 6


def scheme_scores(posts: pl.DataFrame, predictions: pl.DataFrame) -> dict[str, dict[str, float | None]]:
    """MAE and SRC of the model `stack` by scheme, as `evaluate` has them: mean over seeds and cuts, repeats pooled.

    Args:
        posts: contract POSTS.
        predictions: contract PREDICTIONS; `final`, whose posts have no label, is left out.
    """
    means = (
        predictions.filter((pl.col("model") == "stack") & (pl.col("scheme") != "final"))
        .sort(PREDICTIONS.key)
        .group_by("scheme", "repeat", "pid", maintain_order=True)
        .agg(pl.mean("prediction"), pl.first("fold"))
        .join(posts.select("pid", "label"), on="pid", how="left", validate="m:1", maintain_order="left")
    )
    scores: dict[str, dict[str, float | None]] = {}
    for (scheme,), rows in means.group_by("scheme", maintain_order=True):
        cuts = cuts_of(str(scheme), rows["fold"])
        found = score(rows["label"].to_numpy(), rows["prediction"].to_numpy(), cuts)
        scores[str(scheme)] = {name: rounded(found[name], DIGITS) for name in TOLD}
    return scores
