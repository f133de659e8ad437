"""Fits the stack and the baselines in every fold, and predicts the valid rows.

Everything that a fit learns (rounds, encoders, components, trend, weights) comes from the train rows of its fold.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from popularity.core.arrays import Float64Array
from popularity.core.atomic import fingerprint
from popularity.core.contracts import (
    MAIN_MODEL,
    PREDICTIONS,
    REFIT,
    TIME_SCHEMES,
    TRENDS,
    FoldKey,
    check_table,
    empty_table,
    write_table,
)
from popularity.core.parallel import ordered_map
from popularity.ensemble.weights import fit_weights
from popularity.stack import catboost
from popularity.stack.effort import Effort
from popularity.stack.error_scale import ErrorScale
from popularity.stack.feature_blocks import Blocks
from popularity.stack.history_dropout import drop_histories
from popularity.stack.learners import LEARNERS
from popularity.stack.masking import rows_to_mask
from popularity.stack.matrix import ColumnParams, Matrix, MatrixEncoder, columns_of_all
from popularity.stack.model import StackModel
from popularity.stack.params import LearnerName, StackParams
from popularity.stack.row_selection import kept_rows
from popularity.stack.sample import Sample, recency_sample_weight
from popularity.target.collection_order import along
from popularity.target.rank_gauss import RankGauss
from popularity.target.trend import Trend, inner_trends
from popularity.validation import rows_of
from popularity.validation.folds import Fold, load_fold
from popularity.validation.inner_cv import inner_splits, valid_rows

logger = logging.getLogger(__name__)

METADATA = "metadata"  # the baseline
N_DATES = 101  # of a fold's valid posts, at which the members of the trend are written
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


@dataclass(frozen=True)
class StackFits:
    """What the fits of all folds give.

    Args:
        predictions: contract PREDICTIONS, of every model in every scheme.
        trends: contract TRENDS, of the first member's trend in the splits in time and in `refit`.
        importance: (model, block, feature, gain) of the members in `refit`.
    """

    predictions: pl.DataFrame
    trends: pl.DataFrame
    importance: pl.DataFrame


def fit_schemes(data: StackData, members: Mapping[str, StackParams], *, state: Path, model_folder: Path) -> StackFits:
    """Fits every model in every scheme.

    Models: the members (their blocks, on the selected train rows), `metadata` (this block only, otherwise as the first
    member), `user_mean`, `constant`. In schemes that are no splits in time, which choose no weight and are no promise,
    the first member is the only one.

    Args:
        data: tables and blocks.
        members: section stack by name, at least one; they differ in keys that the search decides alone.
        state: finished folds are kept there and not fitted again.
        model_folder: the models of `refit` are saved there.

    Raises:
        ConfigError: CatBoost is one of the learners and is not installed.
    """
    if any("catboost" in params.learners for params in members.values()):
        catboost.library()
    first = next(iter(members.values()))
    every = {**members, METADATA: metadata_alone(first)}

    def fit(task: tuple[FoldKey, pl.DataFrame]) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame | None]:
        key, rows = task
        finished = state / key.file_name
        finished_trends = finished.with_suffix(".trends.parquet")
        if finished.exists():
            return pl.read_parquet(finished), pl.read_parquet(finished_trends), None
        fold = load_fold(key, rows, data.posts, data.features)
        predicted = [predict_simple(fold, first, name) for name in ("user_mean", "constant")]
        decides = key.scheme in (*TIME_SCHEMES, REFIT)
        systems = {name: own for name, own in every.items() if decides or own is first or name == METADATA}
        importance: list[pl.DataFrame] = []
        trends = empty_table(TRENDS)
        started = time.perf_counter()
        for name, encoded in encode_shared(fold, data.blocks, systems):
            own = systems[name]
            model = fit_fold(encoded, own, Effort.full(own))
            predicted.append(_predict_model(encoded, model, own, name))
            _log(encoded, model, name, time.perf_counter() - started)
            if own is first:
                trends = trend_members(fold, model.trend)
            if key.scheme == REFIT:
                model.save(model_folder / name)
                importance += [_importance(encoded, model, name)] if name in members else []
            started = time.perf_counter()
        predictions = pl.concat(predicted)
        if key.scheme != REFIT:
            write_table(trends, finished_trends, TRENDS)
            write_table(predictions, finished, PREDICTIONS)
        return predictions, trends, pl.concat(importance) if importance else None

    folds = rows_of(data.splits, [*first.schemes, REFIT])
    results = list(ordered_map(fit, folds, parallel=first.parallel_fits, threads=first.num_threads))
    predictions = pl.concat(predicted for predicted, _, _ in results).sort(PREDICTIONS.key)
    check_table(predictions, PREDICTIONS)
    trends = pl.concat(own for _, own, _ in results).sort(TRENDS.key)
    importance = next(found for _, _, found in results if found is not None)
    return StackFits(predictions, trends, importance.sort("model", maintain_order=True))


def trend_members(fold: Fold, trend: Trend) -> pl.DataFrame:
    """What each member of a trend forecasts at the dates of the fold's valid posts (contract TRENDS), without a shift.

    At N_DATES dates with equal numbers of posts between them; no row where no post lies in the future.
    """
    if fold.valid.is_empty() or fold.key.scheme not in (*TIME_SCHEMES, REFIT):
        return empty_table(TRENDS)
    earlier = np.linspace(0, 1, N_DATES)
    dates = np.quantile(fold.valid_at, earlier, method="nearest").astype(np.int64)
    members = trend.members_at(dates)
    if trend.order is not None:  # it has no date, so every date has its mean
        numbers = along(trend.kind, fold.valid["pid"], fold.valid_at)
        members = {trend.kind: np.full(N_DATES, trend.at(numbers).mean())}
    tables = [
        pl.DataFrame({"earlier": earlier, "posted_at": dates, "value": value, "member": member})
        for member, value in members.items()
    ]
    keys = {"scheme": pl.lit(fold.key.scheme), "fold": pl.lit(fold.key.fold)}
    table = pl.concat(tables).with_columns(**keys)
    return table.select(pl.col(name).cast(rule.dtype) for name, rule in TRENDS.columns.items()).sort(TRENDS.key)


def metadata_alone(params: StackParams) -> StackParams:
    """Section stack of the baseline METADATA, which uses nothing of the network and every train row."""
    return replace(
        params,
        columns=replace(params.columns, feature_blocks=("metadata",), feature_groups=()),
        row_selection=replace(params.row_selection, fraction=1.0),
    )


def encode_shared(fold: Fold, blocks: Blocks, systems: Mapping[str, StackParams]) -> Iterator[tuple[str, EncodedFold]]:
    """The fold with the columns of each system, by name; those of an equal `columns_key` are encoded at once.

    Args:
        fold: train and valid rows.
        blocks: of all posts.
        systems: section stack by name.
    """
    groups: dict[str, list[str]] = {}
    for name, params in systems.items():
        groups.setdefault(columns_key(params), []).append(name)
    for names in groups.values():
        of_all = columns_of_all([systems[name].columns for name in names])
        encoded = encode_fold(fold, blocks, replace(systems[names[0]], columns=of_all))
        for name in names:
            yield name, encoded.with_columns(systems[name].columns)


def columns_key(params: StackParams) -> str:
    """Equal for sections whose columns differ at most in blocks, groups and `uid_category`: see `columns_of_all`."""
    same = replace(params.columns, feature_blocks=(), feature_groups=(), uid_category=False)
    return fingerprint(params.detrend, asdict(same))


def fit_and_predict(fold: Fold, blocks: Blocks, params: StackParams) -> pl.DataFrame:
    """Predictions (contract PREDICTIONS) of the model `stack` for the valid rows of one fold, as the stage fits it."""
    encoded = encode_fold(fold, blocks, params)
    return _predict_model(encoded, fit_fold(encoded, params, Effort.full(params)), params, MAIN_MODEL)


@dataclass(frozen=True)
class EncodedFold:
    """A fold with its columns, which are fitted on all of its train rows.

    Args:
        fold: train and valid rows.
        losses: contract CLASS_LOSSES, which row selection reads.
        encoder: from features and blocks to the columns.
        train: (n, columns) of the train rows; columns of ridges are out of fold.
        valid: (m, columns) of the valid rows; None if there are none.
    """

    fold: Fold
    losses: pl.DataFrame
    encoder: MatrixEncoder
    train: Matrix
    valid: Matrix | None

    def with_columns(self, params: ColumnParams) -> EncodedFold:
        """The same fold with some of its columns, as if these alone had been encoded.

        Args:
            params: as MatrixEncoder.with_columns.
        """
        encoder = self.encoder.with_columns(params)
        valid = None if self.valid is None else self.valid.with_columns(encoder)
        return replace(self, encoder=encoder, train=self.train.with_columns(encoder), valid=valid)

    @property
    def nbytes(self) -> int:
        """Bytes of the columns."""
        return self.train.values.nbytes + (0 if self.valid is None else self.valid.values.nbytes)


def encode_fold(fold: Fold, blocks: Blocks, params: StackParams) -> EncodedFold:
    """The columns of a fold; they depend on `detrend` and `columns` of section stack, and on no label of a valid row.

    Where valid rows have a class that no train row has, a like share of the train rows is masked (`rows_to_mask`).

    Args:
        fold: all of its train rows are fitted, whatever rows are selected later.
        blocks: of all posts.
        params: section stack.
    """
    axis = along(params.detrend, fold.train["pid"], fold.posted_at)
    detrended = Trend.fit(axis, fold.label, params.detrend, fold.collected_at).detrend(fold.label, axis)
    classes = [blocks.classes_of(rows["pid"]) for rows in (fold.train, fold.valid)]
    masked = None if classes[0] is None or classes[1] is None else rows_to_mask(classes[0], classes[1])
    encoder, train = MatrixEncoder.fit(fold.train, detrended, blocks, params.columns, masked)
    valid = None if fold.valid.is_empty() else encoder.apply(fold.valid, blocks)
    return EncodedFold(fold, blocks.losses, encoder, train, valid)


def fit_fold(encoded: EncodedFold, params: StackParams, effort: Effort) -> StackModel:
    """The stack fitted on the train rows that `row_selection` keeps: the fit of stages, search and benchmarks.

    Fitted are a model for each learner and seed, their weights, the trend and the error scale. Rounds, penalties,
    weights, shift and error scale come from the inner CV: from out-of-fold predictions, with the trend that the rows
    before a split forecast. Some train rows are read without their user's past, in the inner CV too (`drop_histories`).
    No label of a valid row is read.

    Args:
        encoded: the fold and its columns; of a search, those of `Effort.of_fold`.
        params: section stack.
        effort: of the stage, `Effort.full`, or of a search.
    """
    params, fold = effort.apply(params), encoded.fold
    kept = kept_rows(fold.train["pid"].to_list(), encoded.losses, params.row_selection, params.seed)
    train_rows = np.flatnonzero(kept)
    label, posted_at, matrix = fold.label[train_rows], fold.posted_at[train_rows], encoded.train.take(train_rows)
    matrix = drop_histories(matrix, posted_at, params.history_dropout, params.seed)
    axis = along(params.detrend, matrix.pids, posted_at)
    trend = Trend.fit(axis, label, params.detrend, fold.collected_at)
    detrended = trend.detrend(label, axis)
    transform = RankGauss.fit(detrended, params.target_transform)
    sample_weight = recency_sample_weight(posted_at, params.sample_weight_half_life_days)
    sample = Sample(matrix, transform.apply(detrended), sample_weight)

    splits = inner_splits(posted_at, params.inner_cv)
    rows, sizes = valid_rows(splits), [len(valid) for _, valid in splits]
    learned = {learner: LEARNERS[learner].learn(sample, splits, params) for learner in params.learners}
    each = np.stack([one.out_of_fold for one in learned.values()])  # (learners, inner valid rows)
    expected = inner_trends(axis, label, splits, params.detrend, fold.collected_at)
    truth = label[rows] - expected
    weights = fit_weights(each, truth, transform, centred=trend.shifts)
    out_of_fold = transform.invert(weights.apply(each))
    errors = np.split(truth - out_of_fold, np.cumsum(sizes))[:-1]
    trend = trend.shifted(errors)

    models = _fit_learners(sample, {learner: one.chosen for learner, one in learned.items()}, params)
    error_scale = ErrorScale.fit(
        matrix,
        rows,
        out_of_fold + expected + trend.shift.value,
        label,
        seed=params.seed,
        num_threads=params.num_threads,
    )
    return StackModel(encoded.encoder, models, weights, transform, trend, error_scale)


def _fit_learners(
    sample: Sample, chosen: Mapping[LearnerName, int], params: StackParams
) -> dict[LearnerName, list[Any]]:
    """Models of every learner, one for each seed."""
    return {
        learner: [LEARNERS[learner].fit(sample, setting, params, seed) for seed in params.each_seed]
        for learner, setting in chosen.items()
    }


def _log(encoded: EncodedFold, model: StackModel, name: str, seconds: float) -> None:
    """A line for each fit: rows before row selection, columns, learners' weights and rounds, forecast of the trend."""
    weights = "  ".join(
        f"{learner} {weight:.0%}{LEARNERS[learner].describe(models[0])}"
        for (learner, models), weight in zip(model.models.items(), model.weights.weights, strict=True)
    )
    fold = encoded.fold
    logger.info(
        "%-8s fold %d  %-10s  %5d train rows  %4d columns  %s  %5.1f s%s",
        fold.key.scheme, fold.key.fold, name,
        len(fold.label), len(encoded.train.names), weights, seconds, _forecast(model.trend, fold),
    )  # fmt: skip


def _forecast(trend: Trend, fold: Fold) -> str:
    """The trend of the valid period, as text; empty where there is none."""
    if not trend.shifts or fold.valid.is_empty():
        return ""
    value, low, high = trend.forecast(fold.valid_at)
    bounds = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
    return f"  trend {value:.2f}{bounds}"


def _predict_model(encoded: EncodedFold, model: StackModel, params: StackParams, name: str) -> pl.DataFrame:
    """Predictions of every seed; the error scale of a member is that of their mean."""
    if encoded.valid is None:
        return _predictions(encoded.fold, name, {})
    each = model.predict_each(encoded.valid, encoded.fold.valid_at)
    error_scale = None if name == METADATA else model.error_scale.predict(encoded.valid, each.mean(axis=0))
    return _predictions(encoded.fold, name, dict(zip(params.each_seed, each, strict=True)), error_scale)


def predict_simple(fold: Fold, params: StackParams, name: str) -> pl.DataFrame:
    """Predictions (contract PREDICTIONS) of a baseline for the valid rows.

    Args:
        fold: train and valid rows.
        params: section stack, for its seed.
        name: `constant`, the median label of the train rows, or `user_mean`, the mean label of the user's train rows,
            shrunk to the overall mean.
    """
    if name == "constant":
        values = np.full(fold.valid.height, np.median(fold.label))
    else:
        overall = float(fold.label.mean())
        users = (
            fold.train.select("uid", label=pl.Series(fold.label))
            .group_by("uid")
            .agg(mean=(pl.col("label").sum() + USER_MEAN_PRIOR * overall) / (pl.len() + USER_MEAN_PRIOR))
        )
        joined = fold.valid.select("uid").join(users, on="uid", how="left", validate="m:1", maintain_order="left")
        values = joined["mean"].fill_null(overall).to_numpy()
    return _predictions(fold, name, {params.seed: values} if fold.valid.height else {})


def _predictions(
    fold: Fold, model: str, by_seed: dict[int, Float64Array], error_scale: Float64Array | None = None
) -> pl.DataFrame:
    empty = empty_table(PREDICTIONS)
    frames = [
        pl.DataFrame(
            {
                "pid": fold.valid["pid"],
                "scheme": fold.key.scheme,
                "fold": fold.key.fold,
                "seed": seed,
                "model": model,
                "prediction": values,
                "error_scale": error_scale,
            },
            schema=empty.schema,
        )
        for seed, values in by_seed.items()
    ]
    return pl.concat(frames) if frames else empty


def _importance(encoded: EncodedFold, model: StackModel, name: str) -> pl.DataFrame:
    """(model, block, feature, gain), largest first: the total gain over LightGBM's boosters.

    Without LightGBM, which alone has gains: the mean absolute SHAP value on train rows.
    """
    matrix = encoded.train
    if "lightgbm" in model.models:
        gain = np.sum([booster.feature_importance("gain") for booster in model.models["lightgbm"]], axis=0)
    else:
        gain = np.abs(model.shap_values(matrix)[:, :-1]).mean(axis=0)
    frame = pl.DataFrame(
        {"model": [name] * len(gain), "block": matrix.blocks, "feature": matrix.names, "gain": gain.astype(np.float64)}
    )
    return frame.sort(["gain", "feature"], descending=[True, False])
