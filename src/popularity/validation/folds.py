"""The folds of the schemes: which posts are fitted on and scored, with their features and dates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from popularity.core.contracts import FoldKey
from popularity.features import read_features


@dataclass(frozen=True)
class Fold:
    """Features of a fold's fit and score rows, and labels of its fit rows.

    Args:
        key: scheme and fold.
        fit: (pid, features) of the fit rows, sorted by pid.
        score: (pid, features) of the score rows, sorted by pid.
        label: (fit rows,).
        posted_at: (fit rows,) microseconds.
        scored_at: (score rows,) microseconds.
    """

    key: FoldKey
    fit: pl.DataFrame
    score: pl.DataFrame
    label: npt.NDArray[np.float64]
    posted_at: npt.NDArray[np.int64]
    scored_at: npt.NDArray[np.int64]


def load_fold(key: FoldKey, rows: pl.DataFrame, posts: pl.DataFrame, folder: Path) -> Fold:
    """The fold `key`, with the features that stage `featurize` wrote.

    Args:
        key: scheme and fold.
        rows: (pid, role) of the fold, without dropped rows.
        posts: contract POSTS.
        folder: that `featurize` wrote.
    """
    dates = posts.select("pid", "posted_at")
    features = read_features(folder, key, rows).join(dates, on="pid", how="left", validate="1:1", maintain_order="left")
    roles = dict(rows.iter_rows())
    is_fit = pl.Series([roles[pid] == "train" for pid in features["pid"]])
    fit = features.filter(is_fit)
    score = features.filter(~is_fit)
    known = posts.select("pid", "label", "posted_at")
    facts, scored = (
        part.select("pid").join(known, on="pid", how="left", validate="1:1", maintain_order="left")
        for part in (fit, score)
    )
    return Fold(
        key,
        fit=fit,
        score=score,
        label=facts["label"].to_numpy(),
        posted_at=facts["posted_at"].to_physical().to_numpy(),
        scored_at=scored["posted_at"].to_physical().to_numpy(),
    )
