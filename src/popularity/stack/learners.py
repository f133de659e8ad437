"""The learners by name: each is a module with the same functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from popularity.core.arrays import Float64Array
from popularity.stack import catboost, lightgbm, linear
from popularity.stack.matrix import Matrix
from popularity.stack.params import LearnerName, StackParams
from popularity.stack.sample import Learned, Sample
from popularity.validation.inner_cv import InnerSplit


class Learner(Protocol):
    """What a learner is to the stack."""

    SUFFIX: str  # of the file of a saved model

    def learn(self, sample: Sample, cuts: Sequence[InnerSplit], params: StackParams) -> Learned:
        """What the inner cuts say of it."""

    def fit(self, sample: Sample, chosen: int, params: StackParams, seed: int) -> Any:
        """A model of all rows, at what the inner cuts chose."""

    def predict(self, model: Any, matrix: Matrix) -> Float64Array:
        """(n,) in the scale that was fitted."""

    def contributions(self, model: Any, matrix: Matrix) -> Float64Array:
        """(n, columns + 1) what each column adds to a prediction, and last what all posts share."""

    def save(self, model: Any, path: Path) -> None:
        """Writes one file, without pickle: the same fit, the same bytes."""

    def load(self, path: Path) -> Any:
        """The model that `save` wrote."""


LEARNERS: Mapping[LearnerName, Learner] = {
    "lightgbm": lightgbm,
    "catboost": catboost,
    "linear": linear,
}
