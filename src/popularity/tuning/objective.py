"""The search over the stack: which parameters of section `stack` predict the scored rows of `matched` and `user` best.

A trial fits one LightGBM booster a fold. Encoders are fitted, their columns binned, and the learners beside LightGBM
fitted, once a fold and choice of blocks; a trial takes its blocks, its share of the rows, its target and its trees from
there. The posts that `report` scores are in no fold of these schemes, neither fitted on nor scored nor counted in a
feature (popularity.validation), so choosing by them says nothing about `report`. Their own scores, once they chose the
parameters, flatter the tuned stack.
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
import numpy.typing as npt
import polars as pl
from pydantic import Field
from threadpoolctl import threadpool_limits

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

Array = npt.NDArray[np.float64]
BLOCKS = "columns.feature_blocks"
CACHE_BYTES = 4 * 2**30  # of binned folds; more are binned anew when they are needed again


@dataclass(frozen=True)
class TuneParams(Budget):
    """Section tune of params.yaml.

    Args:
        schemes: that trials are judged by; `report` is what the tuned stack is reported on, and is not among them.
        space: axis by dotted key of section stack: see popularity.tuning.space.
    """

    schemes: Annotated[tuple[Literal["forward", "group"], ...], Field(min_length=1)]
    space: dict[str, Any]


@dataclass(frozen=True)
class StackInputs:
    """What the stack is fitted on: the outs of earlier stages."""

    posts: Path
    splits: Path
    features: Path
    image: Path
    text: Path
    prototype: Path

    @classmethod
    def below(cls, folder: Path) -> StackInputs:
        """Where dvc.yaml puts them in the project `folder`."""
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
    """The search, and what makes its objective in any process.

    The study's name stands for parameters, inputs and code, but not for budget and storage: in a storage that is kept
    (a journal, a database) more trials go on where fewer ended. Without trials the space is not looked at, so that any
    value can be fitted as it is given.

    Raises:
        ConfigError: the space is none.
    """
    space = Space.parse("tune.space", params.space if params.n_trials else {}, "stack", stack)
    budget = Budget(params.seed, params.n_trials, params.timeout_hours, params.storage)
    key = fingerprint(
        code_fingerprint(), asdict(stack), params.space, params.schemes, params.seed, *vars(inputs).values()
    )
    return Search(f"stack-{key}", space, budget), partial(StackObjective, inputs, params.schemes, space)


@dataclass(frozen=True)
class BinnedFold:
    """A fold as LightGBM has it for one choice of columns.

    Args:
        fit: all fit rows.
        scored: the scored rows, binned like them.
        values: (m, columns) the scored rows themselves.
        beside: (learners, m) what each learner beside LightGBM predicts for them, less the level.
    """

    fit: lgb.Dataset
    scored: lgb.Dataset
    values: npt.NDArray[np.float32]
    beside: Array

    @property
    def size(self) -> int:
        """Bytes, about: a column is binned to one."""
        columns = self.values.shape[1]
        return int(columns * (self.fit.num_data() + len(self.values)) + self.values.nbytes)


@dataclass(frozen=True)
class FittedFold:
    """A booster, the scored rows that it predicts, and their mean absolute error after each of its rounds."""

    booster: lgb.Booster
    target: RankGauss
    level: Trend
    values: npt.NDArray[np.float32]
    beside: Array
    errors: Array

    def predict(self, rounds: int) -> Array:
        """(learners, m) of the scored rows, less the level: LightGBM's after so many rounds, then the others'."""
        own = self.booster.predict(self.values, num_iteration=rounds)
        return np.vstack([self.target.invert(np.asarray(own, dtype=np.float64)), self.beside])


class StackObjective:
    """MAE over that of the fit rows' median, minus SRC: of the scored rows of each fold, mean over folds and schemes.

    Rounds are the same in all folds of a trial: those at which the mean of LightGBM's errors is least, as lgb.cv has
    it; a fold that has stopped early counts with its last error from there on. So are the weights of the learners:
    those of the least mean error.

    Unlike in the stage `stack`, encoders are fitted on all fit rows even where a trial keeps a part of them, no feature
    is left out for having few values (the bins serve every min_data_in_leaf), and rounds and the learners' weights come
    from the scored rows instead of cuts inside the fit rows. So a trial costs one fit a fold: the learners beside
    LightGBM have the target and the recency of section `stack`, and all fit rows, whatever a trial takes. The shift of
    the level, which the stage learns from those cuts, is stood in for by leaving the median of the errors out of
    account.
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
    def labels(self) -> list[Array]:
        """(m,) of the scored rows of each fold."""
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
        """A step a fold; facts are the rounds, LightGBM's weight and the value of each fold so far at both."""
        params = self.space.apply(values)
        fitted: list[FittedFold] = []
        for place in range(self.steps):
            fitted.append(self._fit(place, params))
            rounds = best_rounds([fold.errors for fold in fitted])
            each = [fold.predict(rounds) for fold in fitted]
            weights = self._weights(fitted, each)
            found = [
                self._value(number, fold.level, weights @ own)
                for number, (fold, own) in enumerate(zip(fitted, each, strict=True))
            ]
            names = [f"{fold.key.scheme}_{fold.key.fold}" for fold in self.folds[: place + 1]]
            facts = {"rounds": rounds, "lightgbm": float(weights[0]), **dict(zip(names, found, strict=True))}
            yield Step(self._mean(found), facts)

    def _mean(self, values: Sequence[float]) -> float:
        """Every scheme counts alike."""
        by_scheme: dict[str, list[float]] = {}
        for fold, value in zip(self.folds, values, strict=False):
            by_scheme.setdefault(fold.key.scheme, []).append(value)
        return float(np.mean([np.mean(own) for own in by_scheme.values()]))

    def _weights(self, fitted: Sequence[FittedFold], each: Sequence[Array]) -> Array:
        """(learners,) of the least mean error over the folds; of equal ones those with the most for LightGBM."""

        def error(weights: Array) -> float:
            errors = [
                _error(label, fold.level.retrend(weights @ own, data.scored_at), fold.level)
                for data, label, fold, own in zip(self.folds, self.labels, fitted, each, strict=False)
            ]
            return round(self._mean(errors), ERROR_DIGITS)

        return min(weight_grid(len(each[0])), key=error)

    def _value(self, place: int, level: Trend, rest: Array) -> float:
        fold, label = self.folds[place], self.labels[place]
        predicted = level.retrend(rest, fold.scored_at)
        return selection_loss(label, predicted + _shift(label, predicted, level), np.median(fold.label))

    def _fit(self, place: int, params: StackParams) -> FittedFold:
        fold, scored = self.folds[place], self.labels[place]
        with threadpool_limits(params.num_threads, user_api="blas"):  # more threads would sum in another order
            binned = self._bin(place, params)
        kept = np.flatnonzero(
            kept_rows(fold.fit["pid"].to_list(), self.blocks.scalars, params.row_selection, params.seed)
        )
        level, rest = _rest(fold, params)
        target = RankGauss.fit(rest[kept], params.target_transform)
        # A subset forgets a label or a weight that it is given before it is constructed, and keeps those of the whole.
        rows = binned.fit.subset(kept.tolist()).construct()
        rows.set_label(target.apply(rest[kept]))
        rows.set_weight(recency_sample_weight(fold.posted_at[kept], params.sample_weight_half_life_days))
        errors: list[float] = []

        def measure(predicted: Array, _rows: lgb.Dataset) -> tuple[str, float, bool]:
            errors.append(_error(scored, level.retrend(target.invert(predicted), fold.scored_at), level))
            return "mae", errors[-1], False

        booster = lgb.train(
            {**lightgbm_params(params, params.seed), "metric": "None", "feature_pre_filter": False},
            rows,
            num_boost_round=params.num_boost_round,
            valid_sets=[binned.scored],
            feval=measure,
            callbacks=[lgb.early_stopping(params.early_stopping_rounds, verbose=False)],
            keep_training_booster=True,  # or the trees after its own best round are cut off
        )
        return FittedFold(booster, target, level, binned.values, binned.beside, np.array(errors))

    def _bin(self, place: int, params: StackParams) -> BinnedFold:
        """From the cache, or encoded and binned for every choice of blocks that the space has."""
        base = self.space.base
        params = replace(
            params,
            target_transform=base.target_transform,
            row_selection=base.row_selection,
            sample_weight_half_life_days=base.sample_weight_half_life_days,
        )
        key = _key(place, params)
        if key not in self.binned:
            axis = self.space.axes.get(BLOCKS)
            choices = list(axis.choices) if isinstance(axis, Choices) else [params.columns.feature_blocks]
            fold = self.folds[place]
            rest = _rest(fold, params)[1]
            every = replace(
                params.columns, feature_blocks=tuple(dict.fromkeys(block for one in choices for block in one))
            )
            encoder, fit = MatrixEncoder.fit(fold.fit, rest, self.blocks, every)
            scored = encoder.apply(fold.score, self.blocks)
            for blocks in choices:
                chosen = replace(params, columns=replace(params.columns, feature_blocks=tuple(blocks)))
                own, own_scored = _part(fit, chosen.columns), _part(scored, chosen.columns)
                beside = _beside(fold, own, own_scored, rest, chosen)
                self.binned[_key(place, chosen)] = _binned(own, own_scored, rest, self.labels[place], beside, chosen)
        self.binned.move_to_end(key)
        while len(self.binned) > 1 and sum(fold.size for fold in self.binned.values()) > CACHE_BYTES:
            self.binned.popitem(last=False)
        return self.binned[key]


def _key(place: int, params: StackParams) -> str:
    """What a binned fold, and the learners beside LightGBM, depend on: all but the trees, of which the bins' number."""
    return fingerprint(place, {**asdict(params), "lightgbm": params.lightgbm.max_bin})


def _beside(fold: Fold, fit: Matrix, scored: Matrix, rest: Array, params: StackParams) -> Array:
    """(learners, m) what each learner beside LightGBM predicts for the scored rows, less the level."""
    target = RankGauss.fit(rest, params.target_transform)
    sample = Sample(fit, target.apply(rest), recency_sample_weight(fold.posted_at, params.sample_weight_half_life_days))
    cuts = inner_splits(fold.posted_at, params.inner_cv)
    beside = [np.empty((0, len(scored.values)))]
    for learner in (LEARNERS[name] for name in params.learners if name != "lightgbm"):
        model = learner.fit(sample, learner.learn(sample, cuts, params).chosen, params, params.seed)
        beside.append(target.invert(learner.predict(model, scored))[None])
    return np.vstack(beside)


def _rest(fold: Fold, params: StackParams) -> tuple[Trend, Array]:
    """The level of a fold's fit rows, and what it leaves of their labels."""
    level = Trend.fit(fold.posted_at, fold.label, params.detrend)
    return level, level.detrend(fold.label, fold.posted_at)


def _error(label: Array, predicted: Array, level: Trend) -> float:
    """The mean absolute error after the shift."""
    return mean_absolute_error(label, predicted + _shift(label, predicted, level))


def _shift(label: Array, predicted: Array, level: Trend) -> float:
    """What the stage's shift is replaced with: the median error of the scored rows; 0 where nothing is shifted."""
    return float(np.median(label - predicted)) if level.shifts else 0.0


def best_rounds(errors: Sequence[Array]) -> int:
    """The number of rounds at which the mean of the curves is least; a curve that ends goes on as it ended."""
    length = max(len(curve) for curve in errors)
    padded = [np.pad(curve, (0, length - len(curve)), mode="edge") for curve in errors]
    return int(np.argmin(np.mean(padded, axis=0))) + 1


def _binned(
    fit: Matrix, scored: Matrix, label: Array, scored_label: Array, beside: Array, params: StackParams
) -> BinnedFold:
    facts: dict[str, Any] = {
        "feature_name": list(fit.names),
        "categorical_feature": list(fit.categorical),
        "params": {
            "max_bin": params.lightgbm.max_bin,
            "num_threads": params.num_threads,
            "verbosity": -1,
            "seed": params.seed,
            "feature_pre_filter": False,
        },
    }
    rows = lgb.Dataset(fit.values, label, **facts).construct()
    return BinnedFold(
        rows, lgb.Dataset(scored.values, scored_label, reference=rows, **facts).construct(), scored.values, beside
    )


def _part(matrix: Matrix, params: ColumnParams) -> Matrix:
    """The columns of `params.feature_blocks`, in the order in which MatrixEncoder would put them."""
    order = sorted(params.feature_blocks, key=lambda block: block != "metadata")
    columns = [place for block in order for place, origin in enumerate(matrix.blocks) if origin == block]
    return Matrix(matrix.values[:, columns], matrix.pids, tuple(matrix.columns[column] for column in columns))
