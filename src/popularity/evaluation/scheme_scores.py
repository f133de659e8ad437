"""The stack's scores in every labelled scheme, as its manifest holds them."""

from __future__ import annotations

import polars as pl

from popularity.core.arrays import Int64Array, rounded
from popularity.core.contracts import MAIN_MODEL, PREDICTIONS, REFIT, TIME_SCHEMES
from popularity.core.metrics import score

MANIFEST_METRICS = ("mae", "src")
DIGITS = 6


def scheme_scores(posts: pl.DataFrame, predictions: pl.DataFrame) -> dict[str, dict[str, float | None]]:
    """Returns MAE and SRC of the model `stack` by scheme, as `evaluate` computes them: means over seeds and folds.

    Args:
        posts: contract POSTS.
        predictions: contract PREDICTIONS; `refit`, whose posts have no label, is left out.
    """
    means = (
        predictions.filter((pl.col("model") == MAIN_MODEL) & (pl.col("scheme") != REFIT))
        .sort(PREDICTIONS.key)
        .group_by("scheme", "pid", "fold", maintain_order=True)
        .agg(pl.mean("prediction"))
        .join(posts.select("pid", "label"), on="pid", how="left", validate="m:1", maintain_order="left")
    )
    scores: dict[str, dict[str, float | None]] = {}
    for (scheme,), rows in means.group_by("scheme", maintain_order=True):
        folds = scored_folds(str(scheme), rows["fold"])
        values = score(rows["label"].to_numpy(), rows["prediction"].to_numpy(), folds)
        scores[str(scheme)] = {name: rounded(values[name], DIGITS) for name in MANIFEST_METRICS}
    return scores


def scored_folds(scheme: str, folds: pl.Series) -> Int64Array | None:
    """Returns the fold (n,) of each row, for `score`; None for a scheme whose folds are scored together."""
    return folds.to_numpy().astype("int64") if scheme in TIME_SCHEMES else None
