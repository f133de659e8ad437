"""How much work a fit of the stack is: search and stage fit in the same way and differ in this alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import Field

from popularity.core.config import Section
from popularity.stack.params import StackParams
from popularity.validation.folds import Fold


@dataclass(frozen=True)
class Effort(Section):
    """How much work a fit of the stack is.

    Args:
        n_seeds: models of each learner, averaged.
        max_train_rows: of a fold; of more, `of_fold` takes some. 0: all.
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

    def of_fold(self, fold: Fold, seed: int) -> Fold:
        """Returns the fold with at most `max_train_rows` train rows, whose features and valid rows stay as they are.

        Half are the latest, which are most like the valid rows. The others are all earlier rows of users drawn at
        random, so that a user's rows stay together and the whole span of time is seen, for the trend.

        Args:
            fold: with all of its train rows.
            seed: of the draw.
        """
        if not self.max_train_rows or len(fold.label) <= self.max_train_rows:
            return fold
        by_time = np.argsort(fold.posted_at, kind="stable")
        earlier, latest = np.split(by_time, [len(by_time) - self.max_train_rows // 2])
        users, code = np.unique(fold.train["uid"].to_numpy()[earlier].astype(np.str_), return_inverse=True)
        order = np.random.default_rng(seed).permutation(len(users))[code]
        drawn = earlier[np.argsort(order, kind="stable")][: self.max_train_rows - len(latest)]
        return fold.take(np.sort(np.concatenate([drawn, latest])))
