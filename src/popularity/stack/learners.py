"""The learners, by name: each is a module with the same functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from popularity.core.arrays import Float64Array
from popularity.stack import catboost, extra_trees, lightgbm, linear
from popularity.stack.matrix import Matrix
from popularity.stack.params import LearnerName, StackParams
from popularity.stack.sample import Learned, Sample
from popularity.validation.inner_cv import InnerSplit


class Learner(Protocol):
    """The functions that the stack calls."""

    SUFFIX: str  # of the file of a saved model

    def learn(self, sample: Sample, splits: Sequence[InnerSplit], params: StackParams) -> Learned:
        """The setting that the inner CV chooses, and out-of-fold predictions."""

    def fit(self, sample: Sample, chosen: int, params: StackParams, seed: int) -> Any:
        """A model with the chosen setting, fitted on all rows."""

    def predict(self, model: Any, matrix: Matrix) -> Float64Array:
        """(n,) predictions in the unit of the fitted target."""

    def describe(self, model: Any) -> str:
        """The number of rounds, for the log; empty without rounds."""

    def shap_values(self, model: Any, matrix: Matrix) -> Float64Array:
        """(n, columns + 1) SHAP values of the columns, and the expected value last."""

    def save(self, model: Any, path: Path) -> None:
        """Writes one file, without pickle: the same fit gives the same bytes."""

    def load(self, path: Path) -> Any:
        """The model that `save` wrote."""


LEARNERS: Mapping[LearnerName, Learner] = {
    "lightgbm": lightgbm,
    "extra_trees": extra_trees,
    "catboost": catboost,
    "linear": linear,
}
