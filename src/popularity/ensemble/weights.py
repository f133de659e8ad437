"""Ensemble weights: several learners' predictions become one weighted mean, fitted out of fold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from popularity.core.arrays import Float64Array
from popularity.target.rank_gauss import RankGauss

N_STEPS = 20  # weights are multiples of 1 / N_STEPS: finer ones fit the noise of the inner CV
ERROR_DIGITS = 12  # of an error that is compared: rounding must not choose between equals


@dataclass(frozen=True)
class EnsembleWeights:
    """The ensemble weights of learners.

    Args:
        weights: (learners,) not negative, sum 1.
    """

    weights: Float64Array

    def apply(self, predictions: Float64Array) -> Float64Array:
        """Returns the weighted mean (n,) of predictions (learners, n)."""
        mean: Float64Array = predictions[0] if len(predictions) == 1 else self.weights @ predictions
        return mean

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` reads back to the last bit."""
        return {"weights": self.weights.tolist()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> EnsembleWeights:
        """Returns the weights that `to_json` described."""
        return cls(np.array(content["weights"]))


def fit_weights(
    predictions: Float64Array, label: Float64Array, transform: RankGauss, *, centred: bool
) -> EnsembleWeights:
    """Returns the ensemble weights of the least mean absolute error in label units, out of fold.

    Without a row all learners weigh the same; of equal weights those of the first learners are the larger.

    Args:
        predictions: (learners, m) out of fold, of the inner CV's valid rows, on the scale of `transform`.
        label: (m,) what `transform` was fitted on.
        transform: between labels and what the learners fit.
        centred: the errors' median does not count, because predictions are shifted later.
    """
    count = len(predictions)
    if not label.size or count == 1:
        return EnsembleWeights(np.full(count, 1 / count))

    def error(weights: Float64Array) -> float:
        errors = label - transform.invert(weights @ predictions)
        return round(float(np.abs(errors - np.median(errors) if centred else errors).mean()), ERROR_DIGITS)

    return EnsembleWeights(min(weight_grid(count), key=error))


def weight_grid(learners: int) -> list[Float64Array]:
    """Returns all weights (learners,) in multiples of 1 / N_STEPS of sum 1, large first weights first."""
    steps = product(range(N_STEPS, -1, -1), repeat=learners - 1)
    return [np.array([*own, N_STEPS - sum(own)]) / N_STEPS for own in steps if sum(own) <= N_STEPS]
