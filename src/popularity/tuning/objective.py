"""The search over the stack: the parameters of section `stack` of least selection loss on `forward` and `group`.

A trial fits one LightGBM booster in each fold. For each fold and choice of blocks, encoders are fitted, their columns
binned and the other learners fitted once; the trials share these and differ in blocks, row selection, target transform
and LightGBM's parameters. The valid posts of `holdout` are in no fold of these schemes: they are neither train nor
valid rows and are counted in no feature (popularity.validation), so the search does not bias the scores of `holdout`.
On the folds of the search itself, the scores of the tuned stack are too good.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import lightgbm as lgb
import numpy as np
import polars as pl
from pydantic import Field
from threadpoolctl import threadpool_limits

from popularity.core.arrays import Float32Array, Float64Array
from popularity.core.atomic import fingerprint
from popularity.core.contracts import FOLDS, POSTS, read_table
from popularity.core.metrics import mean_absolute_error, selection_loss
from popularity.core.resume import code_fingerprint
from popularity.ensemble.weights import ERROR_DIGITS, weight_grid
from popularity.stack.feature_blocks import Blocks, read_blocks
from popularity.stack.learners import LEARNERS
from popularity.stack.lightgbm import lightgbm_params
from popularity.stack.matrix import ColumnParams, Matrix, MatrixEncoder
from popularity.stack.params import StackParams
from popularity.stack.row_selection import kept_rows
from popularity.stack.sample import Sample, recency_sample_weight
from popularity.target.rank_gauss import RankGauss
from popularity.target.trend import Trend
from popularity.tuning.space import Choices, Space, Values
from popularity.tuning.study import Budget, Search, Step
from popularity.validation import rows_of
from popularity.validation.folds import Fold, load_fold
from popularity.validation.inner_cv import inner_splits

BLOCKS_KEY = "columns.feature_blocks"
MAX_CACHE_BYTES = 4 * 2**30  # of binned folds; others are binned again when they are needed


@dataclass(frozen=True)
class TuneParams(Budget):
    """Section tune of params.yaml.

    Args:
        schemes: that score a trial; never `holdout`, which measures the tuned stack.
        space: axes by dotted key of section stack: see popularity.tuning.space.
    """

    schemes: Annotated[tuple[Literal["forward", "group"], ...], Field(min_length=1)]
    space: dict[str, Any]


@dataclass(frozen=True)
class StackInputs:
    """The files that the stack is fitted on: outs of earlier stages."""

    posts: Path
    splits: Path
    features: Path
    image: Path
    text: Path
    prototype: Path

    @classmethod
    def below(cls, folder: Path) -> StackInputs:
        """The files in the project `folder`, at their places of dvc.yaml."""
        interim, embeddings = folder / "data/interim", folder / "data/embeddings"
        return cls(
            interim / "posts.parquet",
            interim / "splits.parquet",
            folder / "data/features",
            embeddings / "image",
            embeddings / "text",
            embeddings / "prototype",
        )


def stack_search(params: TuneParams, stack: StackParams, inputs: StackInputs) -> tuple[Search, partial[StackObjective]]:
    """The search, and a function that makes its objective in any process.

    The study's name depends on parameters, inputs and code, but not on budget and storage: in a storage that is kept (a
    journal, a database) a larger search continues a smaller one. Without trials the space is not read, so that section
    stack may hold any value.

    Args:
        params: section tune.
        stack: section stack, where the search starts.
        inputs: files that the stack is fitted on.

    Raises:
        ConfigError: the space is not valid.
    """
    space = Space.parse("tune.space", params.space if params.n_trials else {}, "stack", stack)
    budget = Budget(params.seed, params.n_trials, params.timeout_hours, params.storage)
    key = fingerprint(
        code_fingerprint(), asdict(stack), params.space, params.schemes, params.seed, *vars(inputs).values()
    )
    return Search(f"stack-{key}", space, budget), partial(StackObjective, inputs, params.schemes, space)


@dataclass(frozen=True)
class BinnedFold:
    """A fold binned by LightGBM, for one choice of columns.

    Args:
        train: all train rows.
        valid: the valid rows, binned like the train rows.
        values: (m, columns) of the valid rows.
        other_learners: (learners, m) detrended predictions of the other learners for the valid rows.
    """

    train: lgb.Dataset
    valid: lgb.Dataset
    values: Float32Array
    other_learners: Float64Array

    @property
    def size(self) -> int:
        """Bytes, roughly: a value is binned to one byte."""
        columns = self.values.shape[1]
        return int(columns * (self.train.num_data() + len(self.values)) + self.values.nbytes)


@dataclass(frozen=True)
class FittedFold:
    """A booster of a fold, with what makes labels of its predictions.

    Args:
        booster: fitted on the selected train rows.
        transform: from the detrended label to the target of the booster.
        trend: of the label in time.
        values: (m, columns) of the valid rows.
        other_learners: (learners, m) detrended predictions of the other learners for the valid rows.
        errors: (rounds,) mean absolute error on the valid rows after each round.
    """

    booster: lgb.Booster
    transform: RankGauss
    trend: Trend
    values: Float32Array
    other_learners: Float64Array
    errors: Float64Array

    def predict(self, rounds: int) -> Float64Array:
        """(learners, m) detrended predictions for the valid rows: of LightGBM after `rounds` rounds first."""
        own = self.booster.predict(self.values, num_iteration=rounds)
        return np.vstack([self.transform.invert(np.asarray(own, dtype=np.float64)), self.other_learners])


class StackObjective:
    """The selection loss of a trial: of the valid rows of each fold, mean over folds, then over schemes.

    The number of rounds is the same in all folds of a trial: that of LightGBM's least mean error, as in lgb.cv; a fold
    that stopped early counts with its last error. The weights of the learners are the same too: those of the least mean
    error.

    A trial differs from stage `stack`, so that it costs one fit for each fold. Encoders are fitted on all train rows,
    even if the trial selects rows. No feature is left out for few values (the bins serve every min_data_in_leaf).
    Rounds and weights come from the valid rows, not from the inner CV. The other learners have the target transform and
    the sample weights of section `stack` and all train rows. The shift of the trend, which the stage learns from the
    inner CV, is replaced: the median error of a fold does not count.

    Args:
        inputs: files that the stack is fitted on.
        schemes: that score a trial.
        space: of section stack.
    """

    def __init__(self, inputs: StackInputs, schemes: Sequence[str], space: Space[StackParams]) -> None:
        self.inputs, self.schemes, self.space = inputs, schemes, space
        self.binned: OrderedDict[str, BinnedFold] = OrderedDict()

    @cached_property
    def posts(self) -> pl.DataFrame:
        return read_table(self.inputs.posts, POSTS)

    @cached_property
    def blocks(self) -> Blocks:
        return read_blocks(self.inputs.image, self.inputs.text, self.inputs.prototype)

    @cached_property
    def folds(self) -> list[Fold]:
        splits = read_table(self.inputs.splits, FOLDS)
        rows = rows_of(splits, list(self.schemes))
        return [load_fold(key, own, self.posts, self.inputs.features) for key, own in rows]

    @cached_property
    def labels(self) -> list[Float64Array]:
        """(m,) labels of the valid rows of each fold."""
        known = self.posts.select("pid", "label")
        joined = [
            fold.score.select("pid").join(known, on="pid", how="left", validate="1:1", maintain_order="left")
            for fold in self.folds
        ]
        return [rows["label"].to_numpy() for rows in joined]

    @property
    def steps(self) -> int:
        return len(self.folds)

    def __call__(self, values: Values) -> Iterator[Step]:
        """A step for each fold; its metrics are the rounds, LightGBM's weight, and the loss of each fold so far."""
        params = self.space.apply(values)
        fitted: list[FittedFold] = []
        for index in range(self.steps):
            fitted.append(self._fit(index, params))
            rounds = best_rounds([fold.errors for fold in fitted])
            each = [fold.predict(rounds) for fold in fitted]
            weights = self._weights(fitted, each)
            losses = [
                self._loss(index, fold.trend, weights @ own)
                for index, (fold, own) in enumerate(zip(fitted, each, strict=True))
            ]
            names = [f"{fold.key.scheme}_{fold.key.fold}" for fold in self.folds[: len(fitted)]]
            metrics = {"rounds": rounds, "lightgbm": float(weights[0]), **dict(zip(names, losses, strict=True))}
            yield Step(self._mean(losses), metrics)

    def _mean(self, values: Sequence[float]) -> float:
        """The mean over folds, then over schemes: every scheme counts alike."""
        by_scheme: dict[str, list[float]] = {}
        for fold, value in zip(self.folds, values, strict=False):
            by_scheme.setdefault(fold.key.scheme, []).append(value)
        return float(np.mean([np.mean(own) for own in by_scheme.values()]))

    def _weights(self, fitted: Sequence[FittedFold], each: Sequence[Float64Array]) -> Float64Array:
        """(learners,) weights of the least mean error over the folds; of equal ones that of most LightGBM."""

        def error(weights: Float64Array) -> float:
            errors = [
                _error(label, fold.trend.retrend(weights @ own, data.scored_at), fold.trend)
                for data, label, fold, own in zip(self.folds, self.labels, fitted, each, strict=False)
            ]
            return round(self._mean(errors), ERROR_DIGITS)

        return min(weight_grid(len(each[0])), key=error)

    def _loss(self, index: int, trend: Trend, detrended: Float64Array) -> float:
        fold, label = self.folds[index], self.labels[index]
        predicted = trend.retrend(detrended, fold.scored_at)
        return selection_loss(label, predicted + _shift(label, predicted, trend), np.median(fold.label))

    def _fit(self, index: int, params: StackParams) -> FittedFold:
        fold, label = self.folds[index], self.labels[index]
        with threadpool_limits(params.num_threads, user_api="blas"):  # more threads would sum in another order
            binned = self._bin(index, params)
        kept = np.flatnonzero(
            kept_rows(fold.fit["pid"].to_list(), self.blocks.scalars, params.row_selection, params.seed)
        )
        trend, detrended = _detrended(fold, params)
        transform = RankGauss.fit(detrended[kept], params.target_transform)
        # A label or weight set before the subset is constructed is lost: those of all rows are used.
        rows = binned.train.subset(kept.tolist()).construct()
        rows.set_label(transform.apply(detrended[kept]))
        rows.set_weight(recency_sample_weight(fold.posted_at[kept], params.sample_weight_half_life_days))
        errors: list[float] = []

        def measure(predicted: Float64Array, _rows: lgb.Dataset) -> tuple[str, float, bool]:
            errors.append(_error(label, trend.retrend(transform.invert(predicted), fold.scored_at), trend))
            return "mae", errors[-1], False

        booster = lgb.train(
            {**lightgbm_params(params, params.seed), "metric": "None", "feature_pre_filter": False},
            rows,
            num_boost_round=params.num_boost_round,
            valid_sets=[binned.valid],
            feval=measure,
            callbacks=[lgb.early_stopping(params.early_stopping_rounds, verbose=False)],
            keep_training_booster=True,  # otherwise the trees after its own best round are removed
        )
        return FittedFold(booster, transform, trend, binned.values, binned.other_learners, np.array(errors))

    def _bin(self, index: int, params: StackParams) -> BinnedFold:
        """The binned fold, from the cache; otherwise the fold is binned for every choice of blocks in the space."""
        base = self.space.base
        params = replace(
            params,
            target_transform=base.target_transform,
            row_selection=base.row_selection,
            sample_weight_half_life_days=base.sample_weight_half_life_days,
        )
        key = _key(index, params)
        if key not in self.binned:
            axis = self.space.axes.get(BLOCKS_KEY)
            choices = list(axis.choices) if isinstance(axis, Choices) else [params.columns.feature_blocks]
            fold = self.folds[index]
            detrended = _detrended(fold, params)[1]
            all_columns = replace(
                params.columns, feature_blocks=tuple(dict.fromkeys(block for one in choices for block in one))
            )
            encoder, train = MatrixEncoder.fit(fold.fit, detrended, self.blocks, all_columns)
            valid = encoder.apply(fold.score, self.blocks)
            for blocks in choices:
                chosen = replace(params, columns=replace(params.columns, feature_blocks=tuple(blocks)))
                own_train, own_valid = _columns_of(train, chosen.columns), _columns_of(valid, chosen.columns)
                others = _predict_others(fold, own_train, own_valid, detrended, chosen)
                datasets = _bin_rows((own_train, detrended), (own_valid, self.labels[index]), chosen)
                self.binned[_key(index, chosen)] = BinnedFold(*datasets, own_valid.values, others)
        self.binned.move_to_end(key)
        while len(self.binned) > 1 and sum(fold.size for fold in self.binned.values()) > MAX_CACHE_BYTES:
            self.binned.popitem(last=False)
        return self.binned[key]


def _key(index: int, params: StackParams) -> str:
    """A fingerprint of all that a binned fold and the other learners depend on; of LightGBM's parameters, max_bin."""
    return fingerprint(index, {**asdict(params), "lightgbm": params.lightgbm.max_bin})


def _predict_others(
    fold: Fold, train: Matrix, valid: Matrix, detrended: Float64Array, params: StackParams
) -> Float64Array:
    """(learners, m) detrended predictions of the learners other than LightGBM for the valid rows."""
    transform = RankGauss.fit(detrended, params.target_transform)
    sample = Sample(
        train, transform.apply(detrended), recency_sample_weight(fold.posted_at, params.sample_weight_half_life_days)
    )
    splits = inner_splits(fold.posted_at, params.inner_cv)
    predictions = [np.empty((0, len(valid.values)))]
    for learner in (LEARNERS[name] for name in params.learners if name != "lightgbm"):
        model = learner.fit(sample, learner.learn(sample, splits, params).chosen, params, params.seed)
        predictions.append(transform.invert(learner.predict(model, valid))[None])
    return np.vstack(predictions)


def _detrended(fold: Fold, params: StackParams) -> tuple[Trend, Float64Array]:
    """The trend of a fold's train rows, and their detrended labels."""
    trend = Trend.fit(fold.posted_at, fold.label, params.detrend)
    return trend, trend.detrend(fold.label, fold.posted_at)


def _error(label: Float64Array, predicted: Float64Array, trend: Trend) -> float:
    """The mean absolute error after the shift."""
    return mean_absolute_error(label, predicted + _shift(label, predicted, trend))


def _shift(label: Float64Array, predicted: Float64Array, trend: Trend) -> float:
    """The median error of the valid rows, in place of the stage's shift; 0 if the trend does not shift."""
    return float(np.median(label - predicted)) if trend.shifts else 0.0


def best_rounds(errors: Sequence[Float64Array]) -> int:
    """The number of rounds of least mean error; a curve that ends early counts with its last error."""
    length = max(len(curve) for curve in errors)
    padded = [np.pad(curve, (0, length - len(curve)), mode="edge") for curve in errors]
    return int(np.argmin(np.mean(padded, axis=0))) + 1


def _bin_rows(
    train: tuple[Matrix, Float64Array], valid: tuple[Matrix, Float64Array], params: StackParams
) -> tuple[lgb.Dataset, lgb.Dataset]:
    """The train rows and, in the same bins, the valid rows, each given as matrix and label."""
    matrix, label = train
    options: dict[str, Any] = {
        "feature_name": list(matrix.names),
        "categorical_feature": list(matrix.categorical),
        "params": {
            "max_bin": params.lightgbm.max_bin,
            "num_threads": params.num_threads,
            "verbosity": -1,
            "seed": params.seed,
            "feature_pre_filter": False,
        },
    }
    rows = lgb.Dataset(matrix.values, label, **options).construct()
    return rows, lgb.Dataset(valid[0].values, valid[1], reference=rows, **options).construct()


def _columns_of(matrix: Matrix, params: ColumnParams) -> Matrix:
    """The columns of `params.feature_blocks`, in the order of MatrixEncoder."""
    order = sorted(params.feature_blocks, key=lambda block: block != "metadata")
    columns = [index for block in order for index, origin in enumerate(matrix.blocks) if origin == block]
    return Matrix(matrix.values[:, columns], matrix.pids, tuple(matrix.columns[column] for column in columns))
