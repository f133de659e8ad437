"""Fits the stack and the baselines in every fold, and predicts the valid rows.

Everything that a fit learns (rounds, encoders, components, trend, weights) comes from the train rows of its fold.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
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

MAIN_MODEL = "stack"  # the model that has an error scale
USER_MEAN_PRIOR = 1.0  # posts with the overall mean that `user_mean` adds to each user


@dataclass(frozen=True)
class StackData:
    """What the stack is fitted on.

    Args:
        posts: contract POSTS.
        splits: contract FOLDS.
        features: folder that featurize wrote.
        blocks: of all posts.
    """

    posts: pl.DataFrame
    splits: pl.DataFrame
    features: Path
    blocks: Blocks


def fit_schemes(
    data: StackData, params: StackParams, *, state: Path, model_folder: Path
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Predictions (contract PREDICTIONS) of every model in every scheme, and importance (block, feature, gain).

    Models: `stack` (its blocks, on the selected train rows), `metadata` (this block only), `user_mean`, `constant`.

    Args:
        data: tables and blocks.
        params: section stack.
        state: finished folds are kept there and not fitted again.
        model_folder: the models of `refit` are saved there.

    Raises:
        ConfigError: CatBoost is one of the learners and is not installed.
    """
    if "catboost" in params.learners:
        catboost.library()

    def fit(task: tuple[FoldKey, pl.DataFrame]) -> tuple[pl.DataFrame, pl.DataFrame | None]:
        key, rows = task
        finished = state / key.file_name
        if finished.exists():
            return pl.read_parquet(finished), None
        fold = load_fold(key, rows, data.posts, data.features)
        models = {
            name: fit_model(train, data.blocks, columns, params, name)
            for name, (train, columns) in _systems(fold, data.blocks, params).items()
        }
        predictions = pl.concat(
            [_predict_model(fold, data.blocks, model, params, name) for name, model in models.items()]
            + [predict_simple(fold, params, name) for name in ("user_mean", "constant")]
        )
        if key.scheme != "refit":
            write_table(predictions, finished, PREDICTIONS)
            return predictions, None
        for name, model in models.items():
            model.save(model_folder / name)
        return predictions, _importance(models[MAIN_MODEL], fold, data.blocks)

    folds = rows_of(data.splits, [*params.schemes, "refit"])
    results = list(ordered_map(fit, folds, parallel=params.parallel_fits, threads=params.num_threads))
    predictions = pl.concat(predicted for predicted, _ in results).sort(PREDICTIONS.key)
    check_table(predictions, PREDICTIONS)
    return predictions, next(importance for _, importance in results if importance is not None)


def _systems(fold: Fold, blocks: Blocks, params: StackParams) -> dict[str, tuple[Fold, ColumnParams]]:
    """The train rows and the columns of each fitted model; the baseline `metadata` uses nothing of the network."""
    return {
        MAIN_MODEL: (kept_fold(fold, blocks, params), params.columns),
        "metadata": (fold, replace(params.columns, feature_blocks=("metadata",), feature_groups=())),
    }


def fit_and_predict(fold: Fold, blocks: Blocks, params: StackParams) -> pl.DataFrame:
    """Predictions (contract PREDICTIONS) of the model `stack` for the valid rows of one fold."""
    model = fit_model(kept_fold(fold, blocks, params), blocks, params.columns, params, MAIN_MODEL)
    return _predict_model(fold, blocks, model, params, MAIN_MODEL)


def kept_fold(fold: Fold, blocks: Blocks, params: StackParams) -> Fold:
    """The fold with the train rows that `stack.row_selection` keeps, and with all valid rows."""
    kept = kept_rows(fold.fit["pid"].to_list(), blocks.scalars, params.row_selection, params.seed)
    return replace(fold, fit=fold.fit.filter(kept), label=fold.label[kept], posted_at=fold.posted_at[kept])


def fit_model(fold: Fold, blocks: Blocks, columns: ColumnParams, params: StackParams, name: str) -> StackModel:
    """The stack fitted on the train rows: encoder, a model for each learner and seed, weights, trend and error scale.

    Rounds, penalties, weights, shift and error scale come from the inner CV: from out-of-fold predictions, with the
    trend that the rows before a split forecast. No label of a valid row is read.

    Args:
        fold: its train rows are fitted.
        blocks: of all posts.
        columns: of the matrix, in place of `params.columns`.
        params: section stack.
        name: of the model, for the log.
    """
    started = time.perf_counter()
    trend = Trend.fit(fold.posted_at, fold.label, params.detrend)
    detrended = trend.detrend(fold.label, fold.posted_at)
    encoder, matrix = MatrixEncoder.fit(fold.fit, detrended, blocks, columns)
    transform = RankGauss.fit(detrended, params.target_transform)
    sample_weight = recency_sample_weight(fold.posted_at, params.sample_weight_half_life_days)
    sample = Sample(matrix, transform.apply(detrended), sample_weight)

    splits = inner_splits(fold.posted_at, params.inner_cv)
    rows, sizes = valid_rows(splits), [len(valid) for _, valid in splits]
    learned = {learner: LEARNERS[learner].learn(sample, splits, params) for learner in params.learners}
    each = np.stack([one.out_of_fold for one in learned.values()])  # (learners, inner valid rows)
    expected = inner_trends(fold.posted_at, fold.label, splits, params.detrend)
    truth = fold.label[rows] - expected
    weights = fit_weights(each, truth, transform, centred=trend.shifts)
    out_of_fold = transform.invert(weights.apply(each))
    errors = np.split(truth - out_of_fold, np.cumsum(sizes))[:-1]
    trend = trend.shifted(errors)

    models = _fit_learners(sample, {learner: one.chosen for learner, one in learned.items()}, params)
    error_scale = ErrorScale.fit(
        matrix,
        rows,
        out_of_fold + expected + trend.shift.value,
        fold.label,
        seed=params.seed,
        num_threads=params.num_threads,
    )
    logger.info(
        "%-8s fold %d  %-8s  %5d train rows  %4d columns  %s  %5.1f s%s",
        fold.key.scheme, fold.key.fold, name,
        len(fold.label), len(matrix.names),
        "  ".join(
            f"{learner} {weight:.0%} at {one.chosen}"
            for (learner, one), weight in zip(learned.items(), weights.weights, strict=True)
        ),
        time.perf_counter() - started, _forecast(trend, fold),
    )  # fmt: skip
    return StackModel(encoder, models, weights, transform, trend, error_scale)


def _fit_learners(
    sample: Sample, chosen: Mapping[LearnerName, int], params: StackParams
) -> dict[LearnerName, list[Any]]:
    """Models of every learner, one for each seed."""
    return {
        learner: [LEARNERS[learner].fit(sample, setting, params, seed) for seed in params.each_seed]
        for learner, setting in chosen.items()
    }


def _forecast(trend: Trend, fold: Fold) -> str:
    """The trend of the valid period, as text; empty where there is none."""
    if not trend.shifts or fold.score.is_empty():
        return ""
    value, low, high = trend.forecast(fold.scored_at)
    bounds = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
    return f"  trend {value:.2f}{bounds}"


def _predict_model(fold: Fold, blocks: Blocks, model: StackModel, params: StackParams, name: str) -> pl.DataFrame:
    """Predictions of every seed; the error scale of the main model is that of their mean."""
    if fold.score.is_empty():
        return _predictions(fold, name, {})
    matrix = model.encoder.apply(fold.score, blocks)
    each = model.predict_each(matrix, fold.scored_at)
    error_scale = model.error_scale.predict(matrix, each.mean(axis=0)) if name == MAIN_MODEL else None
    return _predictions(fold, name, dict(zip(params.each_seed, each, strict=True)), error_scale)


def predict_simple(fold: Fold, params: StackParams, name: str) -> pl.DataFrame:
    """Predictions (contract PREDICTIONS) of a baseline for the valid rows.

    Args:
        fold: train and valid rows.
        params: section stack, for its seed.
        name: `constant`, the median label of the train rows, or `user_mean`, the mean label of the user's train rows,
            shrunk to the overall mean.
    """
    if name == "constant":
        values = np.full(fold.score.height, np.median(fold.label))
    else:
        overall = float(fold.label.mean())
        users = (
            fold.fit.select("uid", label=pl.Series(fold.label))
            .group_by("uid")
            .agg(mean=(pl.col("label").sum() + USER_MEAN_PRIOR * overall) / (pl.len() + USER_MEAN_PRIOR))
        )
        joined = fold.score.select("uid").join(users, on="uid", how="left", validate="m:1", maintain_order="left")
        values = joined["mean"].fill_null(overall).to_numpy()
    return _predictions(fold, name, {params.seed: values} if fold.score.height else {})


def _predictions(
    fold: Fold, model: str, by_seed: dict[int, Float64Array], error_scale: Float64Array | None = None
) -> pl.DataFrame:
    schema = {name: column.dtype for name, column in PREDICTIONS.columns.items()}
    frames = [
        pl.DataFrame(
            {
                "pid": fold.score["pid"],
                "scheme": fold.key.scheme,
                "fold": fold.key.fold,
                "seed": seed,
                "model": model,
                "prediction": values,
                "error_scale": error_scale,
            },
            schema=schema,
        )
        for seed, values in by_seed.items()
    ]
    return pl.concat(frames) if frames else pl.DataFrame(schema=schema)


def _importance(model: StackModel, fold: Fold, blocks: Blocks) -> pl.DataFrame:
    """(block, feature, gain), largest first: the total gain over LightGBM's boosters.

    Without LightGBM, which alone has gains: the mean absolute SHAP value on train rows.
    """
    if "lightgbm" in model.models:
        matrix = model.encoder.apply(fold.fit.head(1), blocks)
        gain = np.sum([booster.feature_importance("gain") for booster in model.models["lightgbm"]], axis=0)
    else:
        matrix = model.encoder.apply(fold.fit, blocks)
        gain = np.abs(model.shap_values(matrix)[:, :-1]).mean(axis=0)
    frame = pl.DataFrame({"block": matrix.blocks, "feature": matrix.names, "gain": gain})
    return frame.sort(["gain", "feature"], descending=[True, False])
