"""The mean by which the predictions of several learners become one, with weights that are fitted out of fold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from popularity.target.rank_gauss import Target
from popularity.validation.inner_cv import Array

STEPS = 20  # weights are multiples of 1 / STEPS: finer ones fit the noise of the inner cuts
DIGITS = 12  # to which an error is told from another: rounding must not choose between equals


@dataclass(frozen=True)
class Blend:
    """Weights (learners,) of the predictions, not negative, sum 1."""

    weights: Array

    @classmethod
    def fit(cls, each: Array, label: Array, target: Target, *, centred: bool) -> Blend:
        """From the out-of-fold predictions (learners, m) of the inner cuts' scored rows, in the scale of `target`.

        Args:
            each: out of fold.
            label: (m,) what `target` was fitted on.
            target: what was fitted.
            centred: whether the errors' median does not count, because predictions are shifted later.

        The weights have the least mean absolute error in label units. Without a row all learners count alike; of equal
        weights those of the first learners are the larger.
        """
        count = len(each)
        if not label.size or count == 1:
            return cls(np.full(count, 1 / count))

        def error(weights: Array) -> float:
            errors = label - target.invert(weights @ each)
            return round(float(np.abs(errors - np.median(errors) if centred else errors).mean()), DIGITS)

        return cls(min(candidates(count), key=error))

    def apply(self, each: Array) -> Array:
        """(n,) weighted mean of predictions (learners, n)."""
        mean: Array = each[0] if len(each) == 1 else self.weights @ each
        return mean

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads back to the last bit."""
        return {"weights": self.weights.tolist()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Blend:
        """The blend that `to_json` described."""
        return cls(np.array(content["weights"]))


def candidates(learners: int) -> list[Array]:
    """All weights in multiples of 1 / STEPS that add up to 1, those that are large in front first."""
    shares = product(range(STEPS, -1, -1), repeat=learners - 1)
    return [np.array([*own, STEPS - sum(own)]) / STEPS for own in shares if sum(own) <= STEPS]
