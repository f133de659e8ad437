"""LightGBM: early stopping on the inner CV, boosters, SHAP values."""

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
from popularity.stack.lightgbm_dask import Options, on_workers, rows_of_workers
from popularity.stack.matrix import Matrix
from popularity.stack.params import StackParams
from popularity.stack.sample import Learned, Sample
from popularity.validation.inner_cv import InnerSplit, valid_rows

SUFFIX = "txt"
MIN_WORKER_ROWS = 20  # with no row, or none in its bag, LightGBM fails


def learn(sample: Sample, splits: Sequence[InnerSplit], params: StackParams) -> Learned:
    """Early stopping on the inner CV: the number of rounds, and out-of-fold predictions.

    Without a split: `num_boost_round`, and no prediction.
    """
    if not splits:
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
        rows, worker_splits = _splits_of_workers(len(sample.target), splits, params.cluster.workers)
        tasks = [partial(task, splits=own) for own in worker_splits]
        rounds, boosters = on_workers(params.cluster, whole, rows, tasks)
    else:
        rounds, boosters = task(whole, {}, splits=splits)
    predictions = [
        booster.predict(sample.matrix.values[valid], num_iteration=rounds)
        for booster, (_, valid) in zip(boosters, splits, strict=True)
    ]
    return Learned(rounds, np.concatenate(predictions))


def fit(sample: Sample, chosen: int, params: StackParams, seed: int) -> lgb.Booster:
    """A booster of `chosen` rounds, fitted on all rows."""
    options = lightgbm_params(params, seed)
    task = partial(_train, options=options, rounds=chosen)
    whole = dataset(sample, options)
    if params.cluster.workers:
        workers = min(params.cluster.workers, len(sample.target) // MIN_WORKER_ROWS)
        rows = rows_of_workers(len(sample.target), max(1, workers))
        return on_workers(params.cluster, whole, rows, [task] * len(rows))
    return task(whole, {})


def _train(data: lgb.Dataset, network: Options, options: Options, rounds: int) -> lgb.Booster:
    return lgb.train({**options, **network}, data, num_boost_round=rounds)


def _cross_validate(
    data: lgb.Dataset,
    network: Options,
    options: Options,
    rounds: int,
    early_stopping_rounds: int,
    splits: Sequence[InnerSplit],
) -> tuple[int, list[lgb.Booster]]:
    """The number of rounds of least mean error, and a booster of so many rounds for each split."""
    history: dict[str, Any] = lgb.cv(
        {**options, **network},
        data,
        num_boost_round=rounds,
        folds=splits,
        callbacks=[lgb.early_stopping(early_stopping_rounds, verbose=False)],
        return_cvbooster=True,
    )
    boosters = history.pop("cvbooster").boosters
    (errors,) = (values for name, values in history.items() if name.endswith("-mean"))
    return len(errors), boosters


def _splits_of_workers(
    n_rows: int, splits: Sequence[InnerSplit], workers: int
) -> tuple[list[Int64Array], list[list[InnerSplit]]]:
    """The rows of each worker, and the splits as positions among these rows.

    A worker trains on its own part of the train rows and predicts all valid rows, so all workers find the same error
    and stop at the same round. If a worker would have fewer than `MIN_WORKER_ROWS` train rows, fewer workers are used.
    """
    every_valid = valid_rows(splits)
    rows, worker_splits = [], []
    for own in rows_of_workers(n_rows, workers):
        held = np.union1d(own, every_valid)
        rows.append(held)
        worker_splits.append(
            [
                (np.searchsorted(held, np.intersect1d(own, train)), np.searchsorted(held, valid))
                for train, valid in splits
            ]
        )
    if workers == 1 or min(len(train) for own in worker_splits for train, _ in own) >= MIN_WORKER_ROWS:
        return rows, worker_splits
    return _splits_of_workers(n_rows, splits, workers - 1)


def predict(booster: lgb.Booster, matrix: Matrix) -> Float64Array:
    """(n,) predictions in the unit of the fitted target."""
    return np.asarray(booster.predict(matrix.values))


def describe(booster: lgb.Booster) -> str:
    """The number of rounds, for the log."""
    return f" at {booster.num_trees()}"


def shap_values(booster: lgb.Booster, matrix: Matrix) -> Float64Array:
    """(n, columns + 1) SHAP values of the columns (TreeSHAP), and the expected value last."""
    return np.asarray(booster.predict(matrix.values, pred_contrib=True))


def save(booster: lgb.Booster, path: Path) -> None:
    """Writes LightGBM's own text."""
    write_text(path, booster.model_to_string())


def load(path: Path) -> lgb.Booster:
    """The booster that `save` wrote.

    Raises:
        ContractError: the file is damaged.
    """
    with reading(path, lgb.basic.LightGBMError):
        return lgb.Booster(model_str=path.read_text(encoding="utf-8"))


def dataset(sample: Sample, options: Options) -> lgb.Dataset:
    """The sample as a data set, which LightGBM bins by its parameters `options`."""
    return lgb.Dataset(
        sample.matrix.values,
        sample.target,
        weight=sample.weight,
        feature_name=list(sample.matrix.names),
        categorical_feature=list(sample.matrix.categorical),
        params=options,
    )


def lightgbm_params(params: StackParams, seed: int) -> Options:
    """LightGBM's parameters: those of section stack.lightgbm and those that make the bytes repeatable."""
    return {
        **asdict(params.lightgbm),
        "bagging_freq": 1,
        "seed": seed,
        "num_threads": params.num_threads,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
