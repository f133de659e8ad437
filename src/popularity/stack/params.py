"""Section `stack` of params.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from popularity.core.config import Section
from popularity.stack.lightgbm_dask import ClusterParams
from popularity.stack.matrix import EncoderParams
from popularity.stack.row_selection import KeepParams
from popularity.target.rank_gauss import TargetKind
from popularity.target.trend import LevelKind

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
LearnerName = Literal["lightgbm", "catboost", "linear"]


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
class CatBoostParams(Section):
    """Passed to CatBoost under these names."""

    loss_function: Literal["MAE", "RMSE"]
    learning_rate: Annotated[float, Field(gt=0)]
    depth: Annotated[int, Field(ge=1, le=16)]
    l2_leaf_reg: Annotated[float, Field(ge=0)]
    rsm: Share
    subsample: Share
    border_count: Annotated[int, Field(ge=1, le=65535)]


@dataclass(frozen=True)
class LinearParams(Section):
    """Candidates for the ridge penalty, of which the inner cuts take one."""

    penalties: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]


@dataclass(frozen=True)
class StackParams(Section):
    seed: int
    seeds: Positive
    target: TargetKind
    level: LevelKind
    columns: EncoderParams
    keep: KeepParams
    max_rounds: Positive
    patience: Positive
    half_life_days: Annotated[float, Field(ge=0)]
    inner_cuts: Positive
    inner_share: Annotated[float, Field(gt=0, lt=1)]
    schemes: tuple[Literal["report", "matched", "user", "random"], ...]
    threads: Positive
    folds_at_once: Positive
    cluster: ClusterParams
    learners: Annotated[tuple[LearnerName, ...], Field(min_length=1)]
    trees: TreeParams
    catboost: CatBoostParams
    linear: LinearParams
    text_shares: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)]

    @property
    def at_once(self) -> int:
        """Folds that are fitted at a time; on a cluster each has all of it."""
        return 1 if self.cluster.workers else self.folds_at_once

    @property
    def each_seed(self) -> list[int]:
        """One a bagged fit."""
        return [self.seed + offset for offset in range(self.seeds)]
