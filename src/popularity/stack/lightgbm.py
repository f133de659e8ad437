"""LightGBM: rounds from the inner cuts, boosters, contributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np

from popularity.core.arrays import Float64Array, Int64Array
from popularity.core.atomic import reading, write_text
from popularity.stack.lightgbm_dask import Options, on_workers, shares
from popularity.stack.matrix import Matrix
from popularity.stack.params import StackParams
from popularity.stack.sample import Learned, Sample
from popularity.validation.inner_cv import InnerSplit, valid_rows

SUFFIX = "txt"
LEAST_SHARE = 20  # rows of a worker: of none, or in an empty bag, LightGBM makes an error


def learn(sample: Sample, cuts: Sequence[InnerSplit], params: StackParams) -> Learned:
    """Rounds and out-of-fold predictions from the inner cuts; all `num_boost_round` where there is none."""
    if not cuts:
        return Learned(params.num_boost_round, np.empty(0))
    options = lightgbm_params(params, params.seed)
    task = partial(
        _cross_validate,
        options=options,
        rounds=params.num_boost_round,
        early_stopping_rounds=params.early_stopping_rounds,
    )
    whole = dataset(sample, options)
    if params.cluster.workers:
        rows, folds = _shares_of_cuts(len(sample.target), cuts, params.cluster.workers)
        rounds, boosters = on_workers(params.cluster, whole, rows, [partial(task, folds=own) for own in folds])
    else:
        rounds, boosters = task(whole, {}, folds=cuts)
    parts = [
        booster.predict(sample.matrix.values[scored], num_iteration=rounds)
        for booster, (_, scored) in zip(boosters, cuts, strict=True)
    ]
    return Learned(rounds, np.concatenate(parts))


def fit(sample: Sample, chosen: int, params: StackParams, seed: int) -> lgb.Booster:
    """A booster of all rows, of `chosen` rounds."""
    options = lightgbm_params(params, seed)
    task = partial(_train, options=options, rounds=chosen)
    whole = dataset(sample, options)
    if params.cluster.workers:
        workers = min(params.cluster.workers, len(sample.target) // LEAST_SHARE)
        rows = shares(len(sample.target), max(1, workers))
        return on_workers(params.cluster, whole, rows, [task] * len(rows))
    return task(whole, {})


def _train(data: lgb.Dataset, network: Options, options: Options, rounds: int) -> lgb.Booster:
    return lgb.train({**options, **network}, data, num_boost_round=rounds)


def _cross_validate(
    data: lgb.Dataset, network: Options, options: Options, rounds: int, early_stopping_rounds: int, folds: Sequence[InnerSplit]
) -> tuple[int, list[lgb.Booster]]:
    """The number of rounds with the least mean error, and a booster a fold that has them."""
    history: dict[str, Any] = lgb.cv(
        {**options, **network},
        data,
        num_boost_round=rounds,
        folds=folds,
        callbacks=[lgb.early_stopping(early_stopping_rounds, verbose=False)],
        return_cvbooster=True,
    )
    boosters = history.pop("cvbooster").boosters
    (errors,) = (values for name, values in history.items() if name.endswith("-mean"))
    return len(errors), boosters


def _shares_of_cuts(rows: int, cuts: Sequence[InnerSplit], workers: int) -> tuple[list[Int64Array], list[list[InnerSplit]]]:
    """The rows that each worker holds, and the cuts by their positions among them.

    A worker fits on its share of a cut's fit rows and scores all of the cut's scored rows: so all find the same error,
    and stop at the same round. Where one would have fewer than `LEAST_SHARE` rows to fit on, fewer workers have
    them.
    """
    everywhere = valid_rows(cuts)
    held, folds = [], []
    for own in shares(rows, workers):
        mine = np.union1d(own, everywhere)
        held.append(mine)
        folds.append(
            [(np.searchsorted(mine, np.intersect1d(own, fit)), np.searchsorted(mine, out)) for fit, out in cuts]
        )
    if workers == 1 or min(len(fit) for own in folds for fit, _ in own) >= LEAST_SHARE:
        return held, folds
    return _shares_of_cuts(rows, cuts, workers - 1)


def predict(booster: lgb.Booster, matrix: Matrix) -> Float64Array:
    """(n,) in the scale that was fitted."""
    return np.asarray(booster.predict(matrix.values))


def contributions(booster: lgb.Booster, matrix: Matrix) -> Float64Array:
    """(n, columns + 1) what each column adds to a prediction, and last what all posts share (TreeSHAP)."""
    return np.asarray(booster.predict(matrix.values, pred_contrib=True))


def save(booster: lgb.Booster, path: Path) -> None:
    """Writes LightGBM's own text."""
    write_text(path, booster.model_to_string())


def load(path: Path) -> lgb.Booster:
    """The booster that `save` wrote."""
    with reading(path, lgb.basic.LightGBMError):
        return lgb.Booster(model_str=path.read_text(encoding="utf-8"))


def dataset(sample: Sample, options: Options) -> lgb.Dataset:
    """The sample as LightGBM bins it under its parameters."""
    return lgb.Dataset(
        sample.matrix.values,
        sample.target,
        weight=sample.weight,
        feature_name=list(sample.matrix.names),
        categorical_feature=list(sample.matrix.categorical),
        params=options,
    )


def lightgbm_params(params: StackParams, seed: int) -> Options:
    """LightGBM's parameters: the tunable ones and those that make the bytes repeatable."""
    return {
        **asdict(params.lightgbm),
        "bagging_freq": 1,
        "seed": seed,
        "num_threads": params.num_threads,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
