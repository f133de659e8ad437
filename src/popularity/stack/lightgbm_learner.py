"""LightGBM: rounds from the inner cuts, boosters, contributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np

from popularity.files import reading, write_text
from popularity.stack.inner import Array, Cut, Learned, Sample
from popularity.stack.matrix import Matrix
from popularity.stack.params import StackParams

SUFFIX = "txt"


def learn(sample: Sample, cuts: Sequence[Cut], params: StackParams) -> Learned:
    """Rounds and out-of-fold predictions from the inner cuts; all `max_rounds` where there is none."""
    if not cuts:
        return Learned(params.max_rounds, np.empty(0))
    history: dict[str, Any] = lgb.cv(
        lightgbm_params(params, params.seed),
        dataset(sample, params),
        num_boost_round=params.max_rounds,
        folds=cuts,
        callbacks=[lgb.early_stopping(params.patience, verbose=False)],
        return_cvbooster=True,
    )
    boosters = history.pop("cvbooster").boosters
    (errors,) = (values for name, values in history.items() if name.endswith("-mean"))
    rounds = len(errors)
    parts = [
        booster.predict(sample.matrix.values[scored], num_iteration=rounds)
        for booster, (_, scored) in zip(boosters, cuts, strict=True)
    ]
    return Learned(rounds, np.concatenate(parts))


def fit(sample: Sample, chosen: int, params: StackParams, seed: int) -> lgb.Booster:
    """A booster of all rows, of `chosen` rounds."""
    return lgb.train(lightgbm_params(params, seed), dataset(sample, params), num_boost_round=chosen)


def predict(booster: lgb.Booster, matrix: Matrix) -> Array:
    """(n,) in the scale that was fitted."""
    return np.asarray(booster.predict(matrix.values))


def contributions(booster: lgb.Booster, matrix: Matrix) -> Array:
    """(n, columns + 1) what each column adds to a prediction, and last what all posts share (TreeSHAP)."""
    return np.asarray(booster.predict(matrix.values, pred_contrib=True))


def save(booster: lgb.Booster, path: Path) -> None:
    """Writes LightGBM's own text."""
    write_text(path, booster.model_to_string())


def load(path: Path) -> lgb.Booster:
    """The booster that `save` wrote."""
    with reading(path, lgb.basic.LightGBMError):
        return lgb.Booster(model_str=path.read_text(encoding="utf-8"))


def dataset(sample: Sample, params: StackParams) -> lgb.Dataset:
    """The sample as LightGBM bins it."""
    return lgb.Dataset(
        sample.matrix.values,
        sample.target,
        weight=sample.weight,
        feature_name=list(sample.matrix.names),
        categorical_feature=list(sample.matrix.categorical),
        params={"max_bin": params.trees.max_bin, "num_threads": params.threads, "verbosity": -1, "seed": params.seed},
    )


def lightgbm_params(params: StackParams, seed: int) -> dict[str, Any]:
    """LightGBM's parameters: the tunable ones and those that make the bytes repeatable."""
    return {
        **asdict(params.trees),
        "bagging_freq": 1,
        "seed": seed,
        "num_threads": params.threads,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
