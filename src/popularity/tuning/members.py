"""The members of the ensemble: the completed trials whose mean predicts the forward splits best.

The trials' predictions of the valid rows of the splits choose them, by greedy selection with replacement
(popularity.ensemble.greedy); no valid row of `holdout` is among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from popularity.core.contracts import FORWARD, TRIAL_PREDICTIONS, empty_table
from popularity.ensemble.greedy import OutOfFold, greedy_weights
from popularity.tuning.configurations import TRIAL
from popularity.tuning.objective import StackObjective, TuneParams
from popularity.tuning.space import Values
from popularity.tuning.study import Finished, Search


@dataclass(frozen=True)
class Member:
    """A trial that becomes a member.

    Args:
        name: of its configuration, or `trial_<number>`.
        trial: its values on the axes of the search.
        weight: in the mean of the trials that were chosen from.
    """

    name: str
    trial: Finished
    weight: float


@dataclass(frozen=True)
class SearchedMembers:
    """What a search finds.

    Args:
        values: on the axes of the search, by member, the largest weight first.
        chosen: name, trial and weight of each member, for study.json; empty where nothing was fitted.
        predictions: contract TRIAL_PREDICTIONS, of all completed trials.
    """

    values: Mapping[str, Values]
    chosen: Sequence[Mapping[str, Any]]
    predictions: pl.DataFrame


def find_members(
    trials: Sequence[Finished], search: Search, make_objective: Callable[[], StackObjective], params: TuneParams
) -> SearchedMembers:
    """The members that the trials become; without a trial, the first registered point is the only one.

    Args:
        trials: finished ones.
        search: that ran them.
        make_objective: of the search.
        params: section tune.
    """
    if not trials:
        return SearchedMembers(dict([next(iter(search.registered.items()))]), [], empty_table(TRIAL_PREDICTIONS))
    table, predictions = trial_predictions(make_objective(), trials)
    members = chosen_members(table, trials, params.n_members, params.seed)
    return SearchedMembers(
        {one.name: one.trial.values for one in members},
        [{"name": one.name, "trial": one.trial.number, "weight": one.weight} for one in members],
        predictions,
    )


def name_of(trial: Finished) -> str:
    """The name of a trial, as a model: that of its configuration, or `trial_<number>`."""
    return trial.name or f"{TRIAL}{trial.number}"


def trial_predictions(objective: StackObjective, trials: Sequence[Finished]) -> tuple[OutOfFold, pl.DataFrame]:
    """The predictions of the completed trials for the valid rows of the forward splits, and as TRIAL_PREDICTIONS.

    Args:
        objective: of the search; it fits again what it has not kept.
        trials: finished ones.
    """
    completed = [trial for trial in trials if trial.state == "COMPLETE"]
    folds = objective.folds_of([FORWARD])
    each = [np.column_stack([objective.predict(fold, trial.values) for trial in completed]) for fold in folds]
    users = dict(objective.posts.select("pid", "uid").iter_rows())
    uids = [users[pid] for fold in folds for pid in fold.valid["pid"]]
    sizes = np.array([fold.valid.height for fold in folds], dtype=np.int64)
    table = OutOfFold(
        names=[name_of(trial) for trial in completed],
        fold=np.repeat(np.array([fold.key.fold for fold in folds], dtype=np.int64), sizes),
        label=np.concatenate([objective.label_of(fold) for fold in folds] or [np.empty(0)]),
        user=np.unique(np.array(uids, dtype=str), return_inverse=True)[1].astype(np.int64),
        baseline=np.repeat([float(np.median(fold.label)) for fold in folds], sizes),
        prediction=np.concatenate(each) if each else np.empty((0, len(completed))),
    )
    rows = [
        pl.DataFrame(
            {"trial": trial.number, "fold": fold.key.fold, "pid": fold.valid["pid"], "prediction": own[:, index]},
            schema_overrides={"trial": pl.Int64, "fold": pl.Int32},
        )
        for index, trial in enumerate(completed)
        for fold, own in zip(folds, each, strict=True)
    ]
    return table, pl.concat(rows).sort(TRIAL_PREDICTIONS.key) if rows else empty_table(TRIAL_PREDICTIONS)


def chosen_members(table: OutOfFold, trials: Sequence[Finished], n_members: int, seed: int) -> list[Member]:
    """At most `n_members` completed trials of the largest weights, the largest first.

    Args:
        table: predictions of the completed trials; without a row, the trials of least value are chosen.
        trials: finished ones.
        n_members: at least one.
        seed: of the bags.
    """
    completed = [trial for trial in trials if trial.state == "COMPLETE"]
    weights = greedy_weights(table, seed) if len(table.label) else np.full(len(completed), 1 / len(completed))
    order = sorted(range(len(completed)), key=lambda index: (-weights[index], completed[index].value, index))
    kept = [index for index in order if weights[index] > 0][:n_members]
    return [Member(name_of(completed[index]), completed[index], float(weights[index])) for index in kept]
