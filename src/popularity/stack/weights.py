"""How much a fit row counts: by its age, by how much it looks like the rows to be scored, or by both."""

from __future__ import annotations

from typing import Literal

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from popularity.stack.inner import Array
from popularity.stack.matrix import Matrix

WeightKind = Literal["recency", "adversarial", "both"]

FOLDS = 5  # by user, or knowing the user would pass for knowing the part
LEAST, MOST = 0.25, 4.0  # of a row's weight, in units of the mean: where the parts are easily told apart, odds explode
ROUNDS = 100
SETTINGS = {
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 20,
    "max_bin": 63,
    "feature_fraction": 0.2,
}


def row_weights(
    kind: WeightKind,
    recency: Array | None,
    matrix: Matrix,
    scored: Matrix,
    users: npt.NDArray[np.object_],
    scored_users: npt.NDArray[np.object_],
    *,
    seed: int,
    threads: int,
) -> Array | None:
    """(n,) weights of the fit rows, of mean 1; None: all alike.

    Args:
        kind: recency, adversarial or both, their product.
        recency: (n,) by age, or None.
        matrix: of the fit rows; its columns that were fitted on labels are left out.
        scored: of the rows to be scored; without any, only recency is left.
        users: (n,).
        scored_users: of the rows to be scored.
        seed: of the classifier and its folds.
        threads: part of the result, as in the learners.
    """
    if kind == "recency" or not len(scored.values):
        return recency
    alike = likeness(matrix, scored, users, scored_users, seed=seed, threads=threads)
    weights = alike if kind == "adversarial" or recency is None else alike * recency
    normalised: Array = weights / weights.mean()
    return normalised


def likeness(
    matrix: Matrix,
    scored: Matrix,
    users: npt.NDArray[np.object_],
    scored_users: npt.NDArray[np.object_],
    *,
    seed: int,
    threads: int,
) -> Array:
    """(n,) odds that a fit row is a scored one, by a classifier that saw no row of its user; clipped, about 1.

    Where such odds are the ratio of the two parts' densities, a mean over fit rows weighted by them is one over scored
    rows (importance weighting under covariate shift).
    """
    columns = label_free(matrix)
    values = np.vstack([part.values[:, columns] for part in (matrix, scored)])
    is_scored = np.repeat([0.0, 1.0], [len(matrix.values), len(scored.values)])
    groups = np.unique(np.concatenate([users, scored_users]).astype(np.str_), return_inverse=True)[1]
    settings = {
        **SETTINGS, "seed": seed, "num_threads": threads, "deterministic": True, "force_row_wise": True,
        "verbosity": -1,
    }  # fmt: skip
    chance = np.full(len(values), is_scored.mean())
    folds = min(FOLDS, len(np.unique(groups)))
    if folds > 1:
        split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(values, is_scored, groups)
        for rows, own in split:
            booster = lgb.train(settings, lgb.Dataset(values[rows], is_scored[rows]), ROUNDS)
            chance[own] = np.asarray(booster.predict(values[own]))
    odds = (chance / (1 - chance))[: len(matrix.values)]
    clipped: Array = np.clip(odds / odds.mean(), LEAST, MOST)
    return clipped


def label_free(matrix: Matrix) -> list[int]:
    """Positions of the columns that no label went into: no history, no head, no neighbours, no signals."""
    return [
        place
        for place, (name, block) in enumerate(zip(matrix.names, matrix.blocks, strict=True))
        if "_history_" not in name
        and not name.endswith("_head")
        and "_neighbours." not in name
        and not (block == "metadata" and "." in name)
    ]
