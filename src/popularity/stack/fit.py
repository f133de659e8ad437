"""Fits the stack and the baselines beside it in every fold, and predicts the scored rows.

Every number that a fit needs (rounds, encoders, components, level, blend) comes from the fold's fit rows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from popularity.core.arrays import Float64Array
from popularity.core.contracts import PREDICTIONS, FoldKey, check_table, write_table
from popularity.core.parallel import ordered_map
from popularity.ensemble.weights import fit_weights
from popularity.stack import catboost
from popularity.stack.error_scale import ErrorScale
from popularity.stack.feature_blocks import Blocks
from popularity.stack.learners import LEARNERS
from popularity.stack.matrix import ColumnParams, MatrixEncoder
from popularity.stack.model import StackModel
from popularity.stack.params import LearnerName, StackParams
from popularity.stack.row_selection import kept_rows
from popularity.stack.sample import Sample, recency_sample_weight
from popularity.target.rank_gauss import RankGauss
from popularity.target.trend import Trend, inner_trends
from popularity.validation import rows_of
from popularity.validation.folds import Fold, load_fold
from popularity.validation.inner_cv import inner_splits, valid_rows

logger = logging.getLogger(__name__)

MAIN = "stack"  # the model whose errors have a scale


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
        ConfigError: CatBoost is asked for and not installed.
    """
    if "catboost" in params.learners:
        catboost.library()

    def fit(task: tuple[FoldKey, pl.DataFrame]) -> tuple[pl.DataFrame, pl.DataFrame | None]:
        key, rows = task
        finished = state / key.file_name
        if finished.exists():
            return pl.read_parquet(finished), None
        data = load_fold(key, rows, posts, features)
        models = {
            name: fit_model(fitted_on, blocks, columns, params, name)
            for name, (fitted_on, columns) in _systems(data, blocks, params).items()
        }
        predictions = pl.concat(
            [_predict_trees(data, blocks, model, params, name) for name, model in models.items()]
            + [predict_simple(data, params, name) for name in ("user_mean", "constant")]
        )
        if key.scheme != "refit":
            write_table(predictions, finished, PREDICTIONS)
            return predictions, None
        for name, model in models.items():
            model.save(model_folder / name)
        return predictions, _importance(models[MAIN], data, blocks)

    folds = rows_of(splits, [*params.schemes, "refit"])
    parts = list(ordered_map(fit, folds, parallel=params.parallel_fits, threads=params.num_threads))
    result = pl.concat(predictions for predictions, _ in parts).sort(PREDICTIONS.key)
    check_table(result, PREDICTIONS)
    return result, next(gains for _, gains in parts if gains is not None)


def _systems(data: Fold, blocks: Blocks, params: StackParams) -> dict[str, tuple[Fold, ColumnParams]]:
    """The fit rows and the columns that each tree model sees; the baseline knows nothing of stage 1."""
    return {
        MAIN: (kept_fold(data, blocks, params), params.columns),
        "metadata": (data, replace(params.columns, feature_blocks=("metadata",), feature_groups=())),
    }


def fit_and_predict(data: Fold, blocks: Blocks, params: StackParams) -> pl.DataFrame:
    """Predictions (contract PREDICTIONS) of the model `stack` for the scored rows of one fold."""
    model = fit_model(kept_fold(data, blocks, params), blocks, params.columns, params, MAIN)
    return _predict_trees(data, blocks, model, params, MAIN)


def kept_fold(data: Fold, blocks: Blocks, params: StackParams) -> Fold:
    """The fold with the fit rows that `stack.row_selection` leaves; its scored rows are as they were."""
    kept = kept_rows(data.fit["pid"].to_list(), blocks.scalars, params.row_selection, params.seed)
    return replace(data, fit=data.fit.filter(kept), label=data.label[kept], posted_at=data.posted_at[kept])


def fit_model(data: Fold, blocks: Blocks, columns: ColumnParams, params: StackParams, name: str) -> StackModel:
    """Encoders, one model a seed and learner, their blend, the level and the scale of the error.

    Rounds, penalties, blend, shift and scale come from cuts in time inside the fit rows: out of fold, at what was
    learned, with the level that the rows before a cut forecast. No label of a scored row is read.
    """
    started = time.perf_counter()
    level = Trend.fit(data.posted_at, data.label, params.detrend)
    rest = level.detrend(data.label, data.posted_at)
    encoder, matrix = MatrixEncoder.fit(data.fit, rest, blocks, columns)
    target = RankGauss.fit(rest, params.target_transform)
    sample = Sample(matrix, target.apply(rest), recency_sample_weight(data.posted_at, params.sample_weight_half_life_days))

    cuts = inner_splits(data.posted_at, params.inner_cv)
    rows, sizes = valid_rows(cuts), [len(own) for _, own in cuts]
    learned = {learner: LEARNERS[learner].learn(sample, cuts, params) for learner in params.learners}
    each = np.stack([one.out_of_fold for one in learned.values()])  # (learners, inner rows)
    expected = inner_trends(data.posted_at, data.label, cuts, params.detrend)
    truth = data.label[rows] - expected
    blend = fit_weights(each, truth, target, centred=level.shifts)
    out_of_fold = target.invert(blend.apply(each))
    errors = np.split(truth - out_of_fold, np.cumsum(sizes))[:-1]
    level = level.shifted(errors)

    models = _fit_learners(sample, {learner: one.chosen for learner, one in learned.items()}, params)
    scale = ErrorScale.fit(
        matrix,
        rows,
        out_of_fold + expected + level.shift.value,
        data.label,
        seed=params.seed,
        threads=params.num_threads,
    )
    logger.info(
        "%-8s fold %d  %-8s  %5d fit rows  %4d columns  %s  %5.1f s%s",
        data.key.scheme, data.key.fold, name,
        len(data.label), len(matrix.names),
        "  ".join(
            f"{learner} {share:.0%} at {one.chosen}"
            for (learner, one), share in zip(learned.items(), blend.weights, strict=True)
        ),
        time.perf_counter() - started, _forecast(level, data),
    )  # fmt: skip
    return StackModel(encoder, models, blend, target, level, scale)


def _fit_learners(
    sample: Sample, chosen: Mapping[LearnerName, int], params: StackParams
) -> dict[LearnerName, list[Any]]:
    """Models of every learner, one a seed."""
    return {
        learner: [LEARNERS[learner].fit(sample, setting, params, seed) for seed in params.each_seed]
        for learner, setting in chosen.items()
    }


def _forecast(level: Trend, data: Fold) -> str:
    """The level of the scored period, in words; empty where there is none."""
    if not level.shifts or data.score.is_empty():
        return ""
    value, low, high = level.forecast(data.scored_at)
    bounds = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
    return f"  level {value:.2f}{bounds}"


def _predict_trees(data: Fold, blocks: Blocks, model: StackModel, params: StackParams, name: str) -> pl.DataFrame:
    """Predictions of every seed; the scale of the main model is that of their mean."""
    if data.score.is_empty():
        return _predictions(data, name, {})
    matrix = model.encoder.apply(data.score, blocks)
    each = model.predict_each(matrix, data.scored_at)
    scale = model.scale.predict(matrix, each.mean(axis=0)) if name == MAIN else None
    return _predictions(data, name, dict(zip(params.each_seed, each, strict=True)), scale)


def predict_simple(data: Fold, params: StackParams, name: str) -> pl.DataFrame:
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


def _predictions(data: Fold, model: str, by_seed: dict[int, Float64Array], scale: Float64Array | None = None) -> pl.DataFrame:
    schema = {name: column.dtype for name, column in PREDICTIONS.columns.items()}
    frames = [
        pl.DataFrame(
            {
                "pid": data.score["pid"],
                "scheme": data.key.scheme,
                "fold": data.key.fold,
                "seed": seed,
                "model": model,
                "prediction": values,
                "error_scale": scale,
            },
            schema=schema,
        )
        for seed, values in by_seed.items()
    ]
    return pl.concat(frames) if frames else pl.DataFrame(schema=schema)


def _importance(model: StackModel, data: Fold, blocks: Blocks) -> pl.DataFrame:
    """(block, feature, gain), largest first: total gain over LightGBM's boosters.

    Without LightGBM, which alone has gains, the mean size of a column's contributions to fit rows.
    """
    if "lightgbm" in model.models:
        matrix = model.encoder.apply(data.fit.head(1), blocks)
        gain = np.sum([booster.feature_importance("gain") for booster in model.models["lightgbm"]], axis=0)
    else:
        matrix = model.encoder.apply(data.fit, blocks)
        gain = np.abs(model.added(matrix)[:, :-1]).mean(axis=0)
    frame = pl.DataFrame({"block": matrix.blocks, "feature": matrix.names, "gain": gain})
    return frame.sort(["gain", "feature"], descending=[True, False])
