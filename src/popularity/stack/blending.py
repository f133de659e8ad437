"""How the predictions of several learners become one: weights for the level, and weights for the order.

A mean of predictions is the better level, a mean of ranks often the better order: it does not care how far apart a
learner puts its posts. Under `rank` the order comes from the one and is then given the values of the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from scipy.stats import rankdata

from popularity.stack.inner import Array
from popularity.stack.target import Target

BlendKind = Literal["mean", "rank"]

STEPS = 20  # weights are multiples of 1 / STEPS: finer ones fit the noise of the inner cuts
DIGITS = 12  # to which an error is told from another: rounding must not choose between equals
QUANTILES = 201  # landmarks of a distribution; between them it is a straight line


@dataclass(frozen=True)
class Order:
    """An order of posts from weighted mean ranks, and the values that it is given. Landmarks, so that a post's place
    does not depend on the posts beside it.

    Args:
        weights: (learners,) of the ranks; not negative, sum 1.
        marks: (learners, QUANTILES) of each learner's out-of-fold predictions.
        ranks: (QUANTILES,) of the weighted mean ranks there.
        values: (QUANTILES,) of the blended predictions there.
    """

    weights: Array
    marks: Array
    ranks: Array
    values: Array

    @classmethod
    def fit(cls, each: Array, blended: Array, label: Array, sizes: Sequence[int]) -> Order:
        """From out-of-fold predictions (learners, m), their blend (m,) and labels (m,) of the inner cuts' rows.

        The weights are those of the best mean over the cuts, of `sizes` rows, of the rank correlation with the label.
        """
        ranked = _ranked(each)[1]
        slices = np.split(np.arange(len(label)), np.cumsum(sizes)[:-1])

        def order(weights: Array) -> float:
            mean = weights @ ranked
            return round(float(np.mean([_rank_correlation(mean[rows], label[rows]) for rows in slices])), DIGITS)

        return cls.of(each, blended, max(candidates(len(each)), key=order))

    @classmethod
    def of(cls, each: Array, blended: Array, weights: Array) -> Order:
        """The order of predictions (learners, m) by given weights (learners,), with the values of their blend (m,)."""
        marks, ranked = _ranked(each)
        steps = np.linspace(0, 1, QUANTILES)
        return cls(weights, marks, np.quantile(weights @ ranked, steps), np.quantile(blended, steps))

    def apply(self, each: Array) -> Array:
        """(n,) from predictions (learners, n)."""
        steps = np.linspace(0, 1, QUANTILES)
        ranked = np.stack([_through(own, marks, steps) for own, marks in zip(each, self.marks, strict=True)])
        return _through(self.weights @ ranked, self.ranks, self.values)


@dataclass(frozen=True)
class Blend:
    """Weights (learners,) of the predictions, not negative, sum 1; and the order where it is settled apart."""

    weights: Array
    order: Order | None

    @classmethod
    def fit(
        cls, each: Array, label: Array, sizes: Sequence[int], target: Target, kind: BlendKind, *, centred: bool
    ) -> Blend:
        """From the out-of-fold predictions (learners, m) of the inner cuts' scored rows, in the scale of `target`.

        Args:
            each: out of fold, cut after cut.
            label: (m,) what `target` was fitted on.
            sizes: rows of each cut.
            target: what was fitted.
            kind: mean or rank.
            centred: whether the errors' median does not count, because predictions are shifted later.

        The weights have the least mean absolute error in label units. Without a row all learners count alike; of equal
        weights those of the first learners are the larger.
        """
        count = len(each)
        if not label.size or count == 1:
            return cls(np.full(count, 1 / count), None)

        def error(weights: Array) -> float:
            errors = label - target.invert(weights @ each)
            return round(float(np.abs(errors - np.median(errors) if centred else errors).mean()), DIGITS)

        weights = min(candidates(count), key=error)
        return cls(weights, Order.fit(each, weights @ each, label, sizes) if kind == "rank" else None)

    def level(self, each: Array) -> Array:
        """(n,) weighted mean of predictions (learners, n)."""
        mean: Array = each[0] if len(each) == 1 else self.weights @ each
        return mean

    def apply(self, each: Array) -> Array:
        """(n,) from predictions (learners, n)."""
        return self.level(each) if self.order is None else self.order.apply(each)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads back to the last bit."""
        order = None if self.order is None else {name: values.tolist() for name, values in vars(self.order).items()}
        return {"weights": self.weights.tolist(), "order": order}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Blend:
        """The blend that `to_json` described."""
        order = content["order"]
        arrays = None if order is None else {name: np.array(values) for name, values in order.items()}
        return cls(np.array(content["weights"]), None if arrays is None else Order(**arrays))


def candidates(learners: int) -> list[Array]:
    """All weights in multiples of 1 / STEPS that add up to 1, those that are large in front first."""
    shares = product(range(STEPS, -1, -1), repeat=learners - 1)
    return [np.array([*own, STEPS - sum(own)]) / STEPS for own in shares if sum(own) <= STEPS]


def _ranked(each: Array) -> tuple[Array, Array]:
    """The landmarks (learners, QUANTILES) of predictions (learners, m), and their ranks (learners, m), 0 to 1."""
    steps = np.linspace(0, 1, QUANTILES)
    marks = np.quantile(each, steps, axis=1).T
    return marks, np.stack([_through(own, own_marks, steps) for own, own_marks in zip(each, marks, strict=True)])


def _through(values: Array, marks: Array, heights: Array) -> Array:
    """(n,) heights at the values, between the marks by straight lines and beyond them on the line through both ends."""
    width = marks[-1] - marks[0]
    slope = (heights[-1] - heights[0]) / width if width > 0 else 0.0
    inside = np.clip(values, marks[0], marks[-1])
    drawn: Array = np.interp(inside, marks, heights) + slope * (values - inside)
    return drawn


def _rank_correlation(left: Array, right: Array) -> float:
    """Spearman's rho; 0 where one side is constant."""
    ranks = [rankdata(side) for side in (left, right)]
    centred = [own - own.mean() for own in ranks]
    norm = float(np.linalg.norm(centred[0]) * np.linalg.norm(centred[1]))
    return float(centred[0] @ centred[1]) / norm if norm else 0.0
