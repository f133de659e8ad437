"""Weights of members by their predictions of the forward splits: greedy, with replacement, averaged over bags.

Caruana et al., Ensemble Selection from Libraries of Models (ICML 2004): the member that helps the mean most is added,
again and again, and its weight is how often it was taken. Each bag of posts by half of the users chooses alone; the
mean over the bags owes less to chance. `shrunk` moves the weights towards equal ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import rankdata

from popularity.core.arrays import Float64Array, Int64Array
from popularity.core.metrics import fold_rows, loss_of_scores, selection_loss

N_STEPS = 20  # members taken in each bag
N_BAGS = 10
MAX_ROWS = 5_000  # of a split in a bag; more are drawn at random
LOSS_DIGITS = 12  # of a loss that is compared: rounding must not choose between equals


@dataclass(frozen=True)
class OutOfFold:
    """Predictions of members for the n valid rows of forward splits.

    Args:
        names: of the members.
        fold: (n,) number of the row's split.
        label: (n,).
        user: (n,) index of the post's user.
        baseline: (n,) median label of the train rows of the row's split.
        prediction: (n, members).
    """

    names: Sequence[str]
    fold: Int64Array
    label: Float64Array
    user: Int64Array
    baseline: Float64Array
    prediction: Float64Array

    @property
    def folds(self) -> list[int]:
        """The numbers of the splits, in order."""
        numbers: list[int] = np.unique(self.fold).tolist()
        return numbers

    def without(self, fold: int) -> OutOfFold:
        """The rows of the other splits; all rows where there is no other one."""
        others = self.fold != fold
        return self._take(np.flatnonzero(others)) if others.any() else self

    def only(self, fold: int) -> OutOfFold:
        """The rows of one split."""
        return self._take(np.flatnonzero(self.fold == fold))

    def members(self, positions: Sequence[int]) -> OutOfFold:
        """The predictions of some members."""
        names = [self.names[position] for position in positions]
        return replace(self, names=names, prediction=self.prediction[:, list(positions)])

    def _take(self, rows: Int64Array) -> OutOfFold:
        own = {name: getattr(self, name)[rows] for name in ("fold", "label", "user", "baseline", "prediction")}
        return replace(self, **own)

    def losses(self, weights: Float64Array) -> Float64Array:
        """(splits,) selection losses of the weighted mean of the members, weights (members,)."""
        mean = self.prediction @ weights
        each = fold_rows(len(self.label), self.fold)
        return np.array([selection_loss(self.label[rows], mean[rows], self.baseline[rows]) for rows in each])

    def losses_of_members(self) -> Float64Array:
        """(members,) selection losses, means over the splits."""
        return np.array([self.losses(one).mean() for one in np.eye(len(self.names))])


def greedy_weights(table: OutOfFold, seed: int) -> Float64Array:
    """(members,) weights, not negative, of sum 1; equal ones where there is no row.

    Args:
        table: at least one member.
        seed: of the bags.
    """
    members = len(table.names)
    if not len(table.label) or members == 1:
        return np.full(members, 1 / members)
    rng = np.random.default_rng(seed)
    weights = np.zeros(members)
    for _ in range(N_BAGS):
        weights += _greedy([_Split.of(table, rows) for rows in _bag(table, rng)])
    found: Float64Array = weights / weights.sum()
    return found


def shrunk(weights: Float64Array, shrinkage: float) -> Float64Array:
    """Returns weights (members,) moved towards equal ones of the same sum, by a share of the way from 0 to 1."""
    moved: Float64Array = (1 - shrinkage) * weights + shrinkage * weights.mean()
    return moved


def _bag(table: OutOfFold, rng: np.random.Generator) -> list[Int64Array]:
    """The rows of each split by a random half of the users; all rows of a split that would have fewer than two."""
    users = np.unique(table.user)
    kept = np.isin(table.user, rng.permutation(users)[: (len(users) + 1) // 2])
    bags = []
    for rows in fold_rows(len(table.label), table.fold):
        own = rows[kept[rows]] if kept[rows].sum() > 1 else rows
        bags.append(np.sort(rng.choice(own, MAX_ROWS, replace=False)) if len(own) > MAX_ROWS else own)
    return bags


@dataclass(frozen=True)
class _Split:
    """Rows of one split; the ranks of the labels are computed once.

    Args:
        label: (m,).
        ranks: (m,) of the labels, centred, of length 1; 0 where all labels are equal.
        baseline_mae: of the constant.
        prediction: (m, members).
    """

    label: Float64Array
    ranks: Float64Array
    baseline_mae: float
    prediction: Float64Array

    @classmethod
    def of(cls, table: OutOfFold, rows: Int64Array) -> _Split:
        label = table.label[rows]
        mae = float(np.abs(label - table.baseline[rows]).mean())
        return cls(label, _unit(rankdata(label)), mae, np.asfortranarray(table.prediction[rows]))

    def loss(self, prediction: Float64Array) -> float:
        """The selection loss of predictions (m,)."""
        mae = np.abs(self.label - prediction).mean()
        return float(loss_of_scores(mae, self.baseline_mae, self.ranks @ _unit(rankdata(prediction))))


def _unit(ranks: Float64Array) -> Float64Array:
    centred: Float64Array = ranks - ranks.mean()
    norm = float(np.sqrt(centred @ centred))
    return centred / norm if norm > 0 else centred


def _greedy(splits: Sequence[_Split]) -> Float64Array:
    """(members,) how often each member is taken in N_STEPS steps; of equals the first."""
    taken = np.zeros(splits[0].prediction.shape[1])
    sums = [np.zeros(len(split.label)) for split in splits]
    for step in range(1, N_STEPS + 1):
        losses = [
            np.mean(
                [
                    split.loss((total + split.prediction[:, member]) / step)
                    for split, total in zip(splits, sums, strict=True)
                ]
            )
            for member in range(len(taken))
        ]
        best = int(np.argmin(np.round(losses, LOSS_DIGITS)))
        taken[best] += 1
        sums = [total + split.prediction[:, best] for split, total in zip(splits, sums, strict=True)]
    return taken
