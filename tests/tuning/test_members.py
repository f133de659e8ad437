"""The trials that become members of the ensemble."""

from __future__ import annotations

import numpy as np

from popularity.ensemble.greedy import OutOfFold
from popularity.tuning.members import chosen_members, name_of
from popularity.tuning.study import Finished


def trial(number: int, value: float, name: str | None = None, state: str = "COMPLETE") -> Finished:
    return Finished(number, state, value, {"x": number}, {}, name)


TRIALS = [
    trial(0, 0.5, "plain"), trial(1, 0.4), trial(2, 0.3, state="PRUNED"), trial(3, 0.41), trial(4, 0.9),
]  # fmt: skip


def table(rows: int = 400) -> OutOfFold:
    """Of the four completed trials: 1 and 3 have small and independent errors, 4 knows nothing."""
    rng = np.random.default_rng(2)
    label = rng.normal(6, 2, rows)
    errors = [rng.normal(0, error, rows) for error in (1.5, 1.0, 1.0)]
    return OutOfFold(
        names=[name_of(one) for one in TRIALS if one.state == "COMPLETE"],
        fold=np.arange(rows) * 2 // max(rows, 1),
        label=label,
        user=np.arange(rows) % 40,
        baseline=np.full(rows, 6.0),
        prediction=np.column_stack([*(label + error for error in errors), rng.normal(6, 2, rows)]),
    )


def test_the_trials_that_predict_best_together_become_members_the_largest_weight_first() -> None:
    found = chosen_members(table(), TRIALS, 2, seed=0)
    assert {one.name for one in found} == {"trial_1", "trial_3"}
    assert found[0].weight >= found[1].weight > 0
    assert [one.trial for one in chosen_members(table(), TRIALS, 1, seed=0)] == [found[0].trial]
    assert found == chosen_members(table(), TRIALS, 2, seed=0)


def test_without_a_forward_split_the_trials_of_least_loss_are_members() -> None:
    found = chosen_members(table(0), TRIALS, 3, seed=0)
    assert [one.name for one in found] == ["trial_1", "trial_3", "plain"]
