"""Section `stack` of params.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from popularity.core.config import Section
from popularity.stack.lightgbm_dask import ClusterParams
from popularity.stack.matrix import ColumnParams
from popularity.stack.row_selection import RowSelectionParams
from popularity.target.rank_gauss import TargetTransform
from popularity.target.trend import Detrend
from popularity.validation.inner_cv import InnerCvParams

Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
LearnerName = Literal["lightgbm", "extra_trees", "catboost", "linear"]


@dataclass(frozen=True)
class LightGBMParams(Section):
    """Passed to LightGBM under these names."""

    objective: Literal["regression", "regression_l1", "huber"]
    learning_rate: Annotated[float, Field(gt=0)]
    num_leaves: Annotated[int, Field(ge=2)]
    min_data_in_leaf: Positive
    feature_fraction: Fraction
    feature_fraction_bynode: Fraction
    extra_trees: bool
    bagging_fraction: Fraction
    lambda_l2: Annotated[float, Field(ge=0)]
    cat_smooth: Annotated[float, Field(ge=0)]
    cat_l2: Annotated[float, Field(ge=0)]
    min_data_per_group: Positive
    max_bin: Annotated[int, Field(ge=2, le=255)]


@dataclass(frozen=True)
class CatBoostParams(Section):
    """Passed to CatBoost under these names."""

    loss_function: Literal["MAE", "RMSE"]
    learning_rate: Annotated[float, Field(gt=0)]
    depth: Annotated[int, Field(ge=1, le=16)]
    l2_leaf_reg: Annotated[float, Field(ge=0)]
    rsm: Fraction
    subsample: Fraction
    border_count: Annotated[int, Field(ge=1, le=65535)]


@dataclass(frozen=True)
class LinearParams(Section):
    """Candidates for the ridge penalty; the inner CV takes one."""

    alphas: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]


@dataclass(frozen=True)
class StackParams(Section):
    """Section stack; params.yaml explains every key."""

    seed: int
    n_seeds: Positive
    target_transform: TargetTransform
    detrend: Detrend
    columns: ColumnParams
    row_selection: RowSelectionParams
    history_dropout: Annotated[float, Field(ge=0, lt=1)]
    num_boost_round: Positive
    early_stopping_rounds: Positive
    sample_weight_half_life_days: Annotated[float, Field(ge=0)]
    inner_cv: InnerCvParams
    schemes: tuple[Literal["holdout", "forward", "group", "random"], ...]
    num_threads: Positive
    parallel_folds: Positive
    cluster: ClusterParams
    learners: Annotated[tuple[LearnerName, ...], Field(min_length=1)]
    lightgbm: LightGBMParams
    extra_trees: LightGBMParams
    catboost: CatBoostParams
    linear: LinearParams

    @property
    def parallel_fits(self) -> int:
        """How many folds are fitted at a time; one on a cluster, where every fit uses all workers."""
        return 1 if self.cluster.workers else self.parallel_folds

    @property
    def each_seed(self) -> list[int]:
        """The seeds of the fits that are averaged."""
        return [self.seed + offset for offset in range(self.n_seeds)]
