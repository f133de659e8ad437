"""Fits the stack and the baselines beside it in every fold, and predicts the scored rows.

Every number that a fit needs (rounds, encoders, components) comes from the fold's fit rows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from popularity.config import Section
from popularity.features import read_features
from popularity.schema import PREDICTIONS, check_table, write_table
from popularity.splits import rows_of
from popularity.stack.blocks import Blocks
from popularity.stack.matrix import EncoderParams, Matrix, MatrixEncoder
from popularity.stack.model import StackModel
from popularity.stack.selection import KeepParams, kept_rows

logger = logging.getLogger(__name__)

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class TreeParams(Section):
    """Passed to LightGBM under these names."""

    objective: Literal["regression", "regression_l1", "huber"]
    learning_rate: Annotated[float, Field(gt=0)]
    num_leaves: Annotated[int, Field(ge=2)]
    min_data_in_leaf: Positive
    feature_fraction: Share
    bagging_fraction: Share
    lambda_l2: Annotated[float, Field(ge=0)]
    cat_smooth: Annotated[float, Field(ge=0)]
    cat_l2: Annotated[float, Field(ge=0)]
    min_data_per_group: Positive
    max_bin: Annotated[int, Field(ge=2, le=255)]


@dataclass(frozen=True)
class StackParams(Section):
    seed: int
    seeds: Positive
    columns: EncoderParams
    keep: KeepParams
    max_rounds: Positive
    patience: Positive
    half_life_days: Annotated[float, Field(ge=0)]
    inner_cuts: Positive
    inner_share: Annotated[float, Field(gt=0, lt=1)]
    schemes: tuple[Literal["report", "matched", "user", "random"], ...]
    threads: Positive
    trees: TreeParams


@dataclass(frozen=True)
class Fold:
    """One (scheme, repeat, fold): features of its fit and score rows, and labels of its fit rows."""

    scheme: str
    repeat: int
    fold: int
    fit: pl.DataFrame  # pid, features
    score: pl.DataFrame  # pid, features
    label: npt.NDArray[np.float64]  # (fit rows,)
    posted_at: npt.NDArray[np.int64]  # (fit rows,) microseconds


def fit_schemes(
    posts: pl.DataFrame,
    splits: pl.DataFrame,
    features: Path,
    blocks: Blocks,
    params: StackParams,
    *,
    state: Path,
    model_folder: Path,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Predictions (contract PREDICTIONS) of every model in every scheme, and importance (block, feature, gain).

    Models: `stack` (all blocks, on the kept fit rows), `metadata` (that block alone), `user_mean`, `constant`. The
    models of `final` are saved into `model_folder`. Finished folds are kept in `state` and not fitted again.
    """
    parts: list[pl.DataFrame] = []
    for (scheme, repeat, fold), rows in rows_of(splits, [*params.schemes, "final"]):
        finished = state / f"{scheme}-{repeat}-{fold}.parquet"
        if scheme != "final" and finished.exists():
            parts.append(pl.read_parquet(finished))
            continue
        data = load_fold((scheme, repeat, fold), rows, posts, features)
        models = {
            name: _fit_trees(fitted_on, blocks, columns, params, name)
            for name, (fitted_on, columns) in _systems(data, blocks, params).items()
        }
        predictions = pl.concat(
            [_predict_trees(data, blocks, model, params, name) for name, model in models.items()]
            + [_predict_simple(data, params, name) for name in ("user_mean", "constant")]
        )
        if scheme == "final":
            for name, model in models.items():
                model.save(model_folder / name)
            importance = _importance(models["stack"], data, blocks)
        else:
            write_table(predictions, finished, PREDICTIONS)
        parts.append(predictions)
    result = pl.concat(parts).sort(PREDICTIONS.key)
    check_table(result, PREDICTIONS)
    return result, importance


def _systems(data: Fold, blocks: Blocks, params: StackParams) -> dict[str, tuple[Fold, EncoderParams]]:
    """The fit rows and the columns that each tree model sees; the baseline knows nothing of stage 1."""
    return {
        "stack": (_keep(data, blocks, params), params.columns),
        "metadata": (data, replace(params.columns, blocks=("metadata",))),
    }


def load_fold(key: tuple[str, int, int], rows: pl.DataFrame, posts: pl.DataFrame, folder: Path) -> Fold:
    features = read_features(folder, *key, rows)
    roles = dict(rows.iter_rows())
    is_fit = pl.Series([roles[pid] == "fit" for pid in features["pid"]])
    fit = features.filter(is_fit)
    known = posts.select("pid", "label", "posted_at")
    facts = fit.select("pid").join(known, on="pid", how="left", validate="1:1", maintain_order="left")
    return Fold(
        *key,
        fit=fit,
        score=features.filter(~is_fit),
        label=facts["label"].to_numpy(),
        posted_at=facts["posted_at"].to_physical().to_numpy(),
    )


def fit_and_predict(data: Fold, blocks: Blocks, params: StackParams) -> pl.DataFrame:
    """Predictions (contract PREDICTIONS) of the model `stack` for the scored rows of one fold."""
    model = _fit_trees(_keep(data, blocks, params), blocks, params.columns, params, "stack")
    return _predict_trees(data, blocks, model, params, "stack")


def _keep(data: Fold, blocks: Blocks, params: StackParams) -> Fold:
    """The fold with the fit rows that `stack.keep` leaves; its scored rows are as they were."""
    kept = kept_rows(data.fit["pid"].to_list(), blocks.scalars, params.keep, params.seed)
    return replace(data, fit=data.fit.filter(kept), label=data.label[kept], posted_at=data.posted_at[kept])


def _fit_trees(data: Fold, blocks: Blocks, columns: EncoderParams, params: StackParams, model: str) -> StackModel:
    """Encoders and one booster a seed; the number of rounds comes from cuts in time inside the fit rows."""
    started = time.perf_counter()
    encoder, matrix = MatrixEncoder.fit(data.fit, data.label, blocks, columns)
    rounds = _learn_rounds(matrix, data, params)
    boosters = [
        lgb.train(_lightgbm(params, seed), _dataset(matrix, data, params), num_boost_round=rounds)
        for seed in _seeds(params)
    ]
    logger.info(
        "%-8s repeat %d fold %d  %-8s  %5d fit rows  %4d columns  %4d trees  %5.1f s",
        data.scheme, data.repeat, data.fold, model,
        len(data.label), len(matrix.names), rounds * len(boosters), time.perf_counter() - started,
    )  # fmt: skip
    return StackModel(encoder, boosters)


def _learn_rounds(matrix: Matrix, data: Fold, params: StackParams) -> int:
    """Rounds at which the mean error over the inner cuts of the fit rows is least.

    Each inner cut fits on the rows before a slice of time and scores that slice; the slices are the last
    `inner_cuts` of length `inner_share`. A single cut is too noisy a judge of when to stop.
    """
    order = np.argsort(data.posted_at, kind="stable")
    length = max(1, round(len(order) * params.inner_share))
    starts = [len(order) - length * cut for cut in range(1, params.inner_cuts + 1)]
    cuts = [(np.sort(order[:start]), np.sort(order[start : start + length])) for start in starts if start >= length]
    if not cuts:
        return params.max_rounds
    history: Mapping[str, Any] = lgb.cv(
        _lightgbm(params, params.seed),
        _dataset(matrix, data, params),
        num_boost_round=params.max_rounds,
        folds=cuts,
        callbacks=[lgb.early_stopping(params.patience, verbose=False)],
    )
    (errors,) = (values for name, values in history.items() if name.endswith("-mean"))
    return len(errors)


def recency_weights(posted_at: npt.NDArray[np.int64], half_life_days: float) -> npt.NDArray[np.float64] | None:
    """(n,) weights of mean 1 that halve with every `half_life_days` before the end; None (all alike) for 0.

    The label's level drifts and trees do not extrapolate, so the present counts for more. The end is the 99 %
    quantile of the dates: one post dated far ahead must not make all others weightless.
    """
    if half_life_days == 0:
        return None
    end = np.quantile(posted_at, 0.99)
    age_days = np.maximum(end - posted_at, 0.0) / MICROSECONDS_A_DAY
    weights = 0.5 ** (age_days / half_life_days)
    normalised: npt.NDArray[np.float64] = weights / weights.mean()
    return normalised


MICROSECONDS_A_DAY = 86_400e6


def _dataset(matrix: Matrix, data: Fold, params: StackParams) -> lgb.Dataset:
    return lgb.Dataset(
        matrix.values,
        data.label,
        weight=recency_weights(data.posted_at, params.half_life_days),
        feature_name=list(matrix.names),
        categorical_feature=list(matrix.categorical),
        params={"max_bin": params.trees.max_bin, "num_threads": params.threads, "verbosity": -1, "seed": params.seed},
    )


def _lightgbm(params: StackParams, seed: int) -> dict[str, Any]:
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


def _seeds(params: StackParams) -> list[int]:
    return [params.seed + offset for offset in range(params.seeds)]


def _predict_trees(data: Fold, blocks: Blocks, model: StackModel, params: StackParams, name: str) -> pl.DataFrame:
    if data.score.is_empty():
        return _predictions(data, name, {})
    each = model.predict_each(model.encoder.apply(data.score, blocks))
    return _predictions(data, name, dict(zip(_seeds(params), each, strict=True)))


def _predict_simple(data: Fold, params: StackParams, name: str) -> pl.DataFrame:
    """`constant`: the median label of the fit rows. `user_mean`: the user's mean, shrunk to the overall mean."""
    if name == "constant":
        values = np.full(data.score.height, np.median(data.label))
    else:
        overall = float(data.label.mean())
        users = (
            data.fit.select("uid", label=pl.Series(data.label))
            .group_by("uid")
            .agg(mean=(pl.col("label").sum() + USER_PRIOR * overall) / (pl.len() + USER_PRIOR))
        )
        joined = data.score.select("uid").join(users, on="uid", how="left", validate="m:1", maintain_order="left")
        values = joined["mean"].fill_null(overall).to_numpy()
    return _predictions(data, name, {params.seed: values} if data.score.height else {})


USER_PRIOR = 1.0  # posts' worth of the overall mean in `user_mean`


def _predictions(data: Fold, model: str, by_seed: dict[int, npt.NDArray[np.float64]]) -> pl.DataFrame:
    schema = {name: column.dtype for name, column in PREDICTIONS.columns.items()}
    frames = [
        pl.DataFrame(
            {
                "pid": data.score["pid"],
                "scheme": data.scheme,
                "repeat": data.repeat,
                "fold": data.fold,
                "seed": seed,
                "model": model,
                "prediction": values,
            },
            schema=schema,
        )
        for seed, values in by_seed.items()
    ]
    return pl.concat(frames) if frames else pl.DataFrame(schema=schema)


def _importance(model: StackModel, data: Fold, blocks: Blocks) -> pl.DataFrame:
    """(block, feature, gain): total gain over the boosters, largest first."""
    matrix = model.encoder.apply(data.fit.head(1), blocks)
    gain = np.sum([booster.feature_importance("gain") for booster in model.boosters], axis=0)
    frame = pl.DataFrame({"block": matrix.blocks, "feature": matrix.names, "gain": gain})
    return frame.sort(["gain", "feature"], descending=[True, False])
