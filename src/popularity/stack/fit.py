"""Fits the stack and the baselines beside it in every fold, and predicts the scored rows.

Every number that a fit needs (rounds, encoders, components) comes from the fold's fit rows.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from popularity.features import read_features
from popularity.schema import PREDICTIONS, check_table, write_table
from popularity.splits import rows_of
from popularity.stack import catboost_learner, lightgbm_learner
from popularity.stack.blocks import Blocks
from popularity.stack.inner import Array, Sample, blend, blend_share, inner_cuts, recency_weights, scored_rows
from popularity.stack.matrix import EncoderParams, MatrixEncoder
from popularity.stack.model import StackModel
from popularity.stack.params import StackParams
from popularity.stack.scale import ScaleModel
from popularity.stack.selection import kept_rows
from popularity.stack.target import Target

logger = logging.getLogger(__name__)

MAIN = "stack"  # the model whose errors have a scale


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

    Models: `stack` (its blocks, on the kept fit rows), `metadata` (that block alone), `user_mean`, `constant`. The
    models of `final` are saved into `model_folder`. Finished folds are kept in `state` and not fitted again.

    Raises:
        ConfigError: a second learner is asked for and not installed.
    """
    if params.second.use:
        catboost_learner.catboost()
    parts: list[pl.DataFrame] = []
    for (scheme, repeat, fold), rows in rows_of(splits, [*params.schemes, "final"]):
        finished = state / f"{scheme}-{repeat}-{fold}.parquet"
        if scheme != "final" and finished.exists():
            parts.append(pl.read_parquet(finished))
            continue
        data = load_fold((scheme, repeat, fold), rows, posts, features)
        models = {
            name: fit_model(fitted_on, blocks, columns, params, name)
            for name, (fitted_on, columns) in _systems(data, blocks, params).items()
        }
        predictions = pl.concat(
            [_predict_trees(data, blocks, model, params, name) for name, model in models.items()]
            + [_predict_simple(data, params, name) for name in ("user_mean", "constant")]
        )
        if scheme == "final":
            for name, model in models.items():
                model.save(model_folder / name)
            importance = _importance(models[MAIN], data, blocks)
        else:
            write_table(predictions, finished, PREDICTIONS)
        parts.append(predictions)
    result = pl.concat(parts).sort(PREDICTIONS.key)
    check_table(result, PREDICTIONS)
    return result, importance


def _systems(data: Fold, blocks: Blocks, params: StackParams) -> dict[str, tuple[Fold, EncoderParams]]:
    """The fit rows and the columns that each tree model sees; the baseline knows nothing of stage 1."""
    return {
        MAIN: (kept_fold(data, blocks, params), params.columns),
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
    model = fit_model(kept_fold(data, blocks, params), blocks, params.columns, params, MAIN)
    return _predict_trees(data, blocks, model, params, MAIN)


def kept_fold(data: Fold, blocks: Blocks, params: StackParams) -> Fold:
    """The fold with the fit rows that `stack.keep` leaves; its scored rows are as they were."""
    kept = kept_rows(data.fit["pid"].to_list(), blocks.scalars, params.keep, params.seed)
    return replace(data, fit=data.fit.filter(kept), label=data.label[kept], posted_at=data.posted_at[kept])


def fit_model(data: Fold, blocks: Blocks, columns: EncoderParams, params: StackParams, name: str) -> StackModel:
    """Encoders, one booster a seed and learner, their blend and the scale of the error, all from the fit rows.

    Rounds, blend and scale come from cuts in time inside them: out of fold, at the rounds that were learned.
    """
    started = time.perf_counter()
    encoder, matrix = MatrixEncoder.fit(data.fit, data.label, blocks, columns)
    target = Target.fit(data.label, params.target)
    sample = Sample(matrix, target.apply(data.label), recency_weights(data.posted_at, params.half_life_days))
    cuts = inner_cuts(data.posted_at, params.inner_cuts, params.inner_share)
    rows = scored_rows(cuts)
    first = lightgbm_learner.learn(sample, cuts, params)
    boosters = [lightgbm_learner.fit(sample, first.rounds, params, seed) for seed in params.each_seed]
    second: list[Any] = []
    share, out_of_fold, note = 1.0, first.out_of_fold, ""
    if params.second.use:
        other = catboost_learner.learn(sample, cuts, params)
        second = [catboost_learner.fit(sample, other.rounds, params, seed) for seed in params.each_seed]
        share = blend_share(first.out_of_fold, other.out_of_fold, data.label[rows], target)
        out_of_fold = blend(first.out_of_fold, other.out_of_fold, share)
        note = f"  CatBoost {other.rounds} rounds, {1 - share:.0%} of the blend"
    scale = ScaleModel.fit(
        matrix, rows, target.invert(out_of_fold), data.label, seed=params.seed, threads=params.threads
    )
    logger.info(
        "%-8s repeat %d fold %d  %-8s  %5d fit rows  %4d columns  %4d trees  %5.1f s%s",
        data.scheme, data.repeat, data.fold, name,
        len(data.label), len(matrix.names), first.rounds * len(boosters), time.perf_counter() - started, note,
    )  # fmt: skip
    return StackModel(encoder, boosters, second, share, target, scale)


def _predict_trees(data: Fold, blocks: Blocks, model: StackModel, params: StackParams, name: str) -> pl.DataFrame:
    """Predictions of every seed; the scale of the main model is that of their mean."""
    if data.score.is_empty():
        return _predictions(data, name, {})
    matrix = model.encoder.apply(data.score, blocks)
    each = model.predict_each(matrix)
    scale = model.scale.predict(matrix, each.mean(axis=0)) if name == MAIN else None
    return _predictions(data, name, dict(zip(params.each_seed, each, strict=True)), scale)


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


def _predictions(data: Fold, model: str, by_seed: dict[int, Array], scale: Array | None = None) -> pl.DataFrame:
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
                "scale": scale,
            },
            schema=schema,
        )
        for seed, values in by_seed.items()
    ]
    return pl.concat(frames) if frames else pl.DataFrame(schema=schema)


def _importance(model: StackModel, data: Fold, blocks: Blocks) -> pl.DataFrame:
    """(block, feature, gain): total gain over LightGBM's boosters, largest first."""
    matrix = model.encoder.apply(data.fit.head(1), blocks)
    gain = np.sum([booster.feature_importance("gain") for booster in model.boosters], axis=0)
    frame = pl.DataFrame({"block": matrix.blocks, "feature": matrix.names, "gain": gain})
    return frame.sort(["gain", "feature"], descending=[True, False])
