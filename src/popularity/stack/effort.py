"""How much work a fit of the stack is: search and stage fit in the same way and differ in this alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import Field

from popularity.core.arrays import Int64Array
from popularity.core.config import Section
from popularity.stack.params import StackParams


@dataclass(frozen=True)
class Effort(Section):
    """How much work a fit of the stack is.

    Args:
        n_seeds: models of each learner, averaged.
        max_train_rows: of a fold; more are drawn at random. 0: all.
        learning_rate_factor: the learning rates of the boosted trees times this factor, and their rounds divided by it.
    """

    n_seeds: Annotated[int, Field(ge=1)]
    max_train_rows: Annotated[int, Field(ge=0)]
    learning_rate_factor: Annotated[float, Field(ge=1)]

    @classmethod
    def full(cls, params: StackParams) -> Effort:
        """Returns the effort of stage `stack`."""
        return cls(params.n_seeds, max_train_rows=0, learning_rate_factor=1.0)

    def apply(self, params: StackParams) -> StackParams:
        """Returns section stack with this number of seeds, and with its learning rates and rounds at this effort."""
        factor = self.learning_rate_factor
        return replace(
            params,
            n_seeds=self.n_seeds,
            num_boost_round=max(1, round(params.num_boost_round / factor)),
            early_stopping_rounds=max(1, round(params.early_stopping_rounds / factor)),
            lightgbm=replace(params.lightgbm, learning_rate=params.lightgbm.learning_rate * factor),
            extra_trees=replace(params.extra_trees, learning_rate=params.extra_trees.learning_rate * factor),
            catboost=replace(params.catboost, learning_rate=params.catboost.learning_rate * factor),
        )

    def draw(self, rows: Int64Array, seed: int) -> Int64Array:
        """Returns at most `max_train_rows` of the rows (n,), in their order."""
        if not self.max_train_rows or len(rows) <= self.max_train_rows:
            return rows
        return np.sort(np.random.default_rng(seed).choice(rows, self.max_train_rows, replace=False))
