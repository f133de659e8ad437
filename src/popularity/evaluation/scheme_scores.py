"""The stack's scores in every labelled scheme: what its manifest says of it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from popularity.core.arrays import rounded
from popularity.core.contracts import PREDICTIONS, TIME_SCHEMES
from popularity.core.metrics import score

TOLD = ("mae", "src")
DIGITS = 6


def scheme_scores(posts: pl.DataFrame, predictions: pl.DataFrame) -> dict[str, dict[str, float | None]]:
    """MAE and SRC of the model `stack` by scheme, as `evaluate` has them: mean over seeds and cuts.

    Args:
        posts: contract POSTS.
        predictions: contract PREDICTIONS; `final`, whose posts have no label, is left out.
    """
    means = (
        predictions.filter((pl.col("model") == "stack") & (pl.col("scheme") != "refit"))
        .sort(PREDICTIONS.key)
        .group_by("scheme", "pid", maintain_order=True)
        .agg(pl.mean("prediction"), pl.first("fold"))
        .join(posts.select("pid", "label"), on="pid", how="left", validate="m:1", maintain_order="left")
    )
    scores: dict[str, dict[str, float | None]] = {}
    for (scheme,), rows in means.group_by("scheme", maintain_order=True):
        cuts = cuts_of(str(scheme), rows["fold"])
        found = score(rows["label"].to_numpy(), rows["prediction"].to_numpy(), cuts)
        scores[str(scheme)] = {name: rounded(found[name], DIGITS) for name in TOLD}
    return scores


def cuts_of(scheme: str, folds: pl.Series) -> npt.NDArray[np.int64] | None:
    """(n,) the cut of each row by its fold, for `score`; None for a scheme whose folds are parts of one score."""
    return folds.to_numpy().astype(np.int64) if scheme in TIME_SCHEMES else None
