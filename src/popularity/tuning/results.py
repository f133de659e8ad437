"""Writes the result of a search: a table of the trials, a summary, and the best values as a patch of params.yaml."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import polars as pl
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState, create_trial
from ruamel.yaml import YAML

from popularity.core.atomic import atomic_path, write_json, write_text
from popularity.core.config import nested
from popularity.tuning.space import Choices, Space
from popularity.tuning.study import Finished, Search

MIN_TRIALS = 5  # completed ones, for the importance of parameters
IMPORTANCE_DIGITS = 6
NO_SEARCH: Mapping[str, Any] = {"candidates": [], "n_trials": 0}  # of section tune


def best_of(trials: Sequence[Finished]) -> Finished | None:
    """The completed trial of least value, the first of equal ones; None if there is none."""
    completed = [trial for trial in trials if trial.state == "COMPLETE"]
    return min(completed, key=lambda trial: trial.value) if completed else None


def write_results(
    trials: Sequence[Finished], search: Search, folder: Path, members: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Writes trials.csv and study.json into `folder`; the same trials give the same bytes.

    trials.csv: number, name, state, value, a column for each parameter (lists as JSON), then the metrics of the last
    step.
    study.json: the space, the registered trials in their order, the best one, the members, the importance of the
    parameters (fANOVA over completed trials), and the least value after each trial.

    Args:
        trials: finished ones, in order.
        search: that ran them.
        folder: of the files.
        members: name, trial and weight of those that were chosen.
    """
    write_text(folder / "trials.csv", _table(trials, search.space).write_csv())
    write_json(
        folder / "study.json",
        {
            "section": search.space.section,
            "seed": search.budget.seed,
            "space": {key: _axis(search.space, key) for key in search.space.axes},
            "trials": {state: Counter(trial.state for trial in trials)[state] for state in ("COMPLETE", "PRUNED")},
            "best": _described(best_of(trials)),
            "registered": [{"name": name, "params": values} for name, values in search.registered.items()],
            "members": list(members),
            "importance": _importance(trials, search),
            "history": _history(trials),
        },
    )


def write_patch(trials: Sequence[Finished], search: Search, file: Path, **sections: Mapping[str, Any]) -> None:
    """Writes the values of the best trial as a patch of params.yaml, {<section>: {...}}; empty without a trial.

    Args:
        trials: finished ones.
        search: that ran them.
        file: of the patch.
        sections: further parts of it.
    """
    best = best_of(trials)
    with atomic_path(file) as partial:
        YAML().dump({search.space.section: nested(best.values), **sections} if best else {}, partial)


def _table(trials: Sequence[Finished], space: Space[Any]) -> pl.DataFrame:
    metrics = list(dict.fromkeys(name for trial in trials for name in trial.metrics))
    labels = [space.encode(trial.values) for trial in trials]
    columns: dict[str, list[Any]] = {
        "number": [trial.number for trial in trials],
        "name": [trial.name for trial in trials],
        "state": [trial.state for trial in trials],
        "value": [trial.value for trial in trials],
        **{key: [label[key] for label in labels] for key in space.axes},
        **{name: [trial.metrics.get(name) for trial in trials] for name in metrics},
    }
    return pl.DataFrame(columns)


def _axis(space: Space[Any], key: str) -> dict[str, Any]:
    axis = space.axes[key]
    if isinstance(axis, Choices):
        return {"choices": list(axis.choices)}
    return {"low": axis.low, "high": axis.high, "log": axis.log, "integer": axis.integer}


def _described(trial: Finished | None) -> dict[str, Any] | None:
    return (
        None
        if trial is None
        else {"number": trial.number, "value": trial.value, "name": trial.name, "params": trial.values}
    )


def _history(trials: Sequence[Finished]) -> list[dict[str, Any]]:
    """The value of each trial and the least among the completed ones so far."""
    history: list[dict[str, Any]] = []
    for count, trial in enumerate(trials, start=1):
        best = best_of(trials[:count])
        history.append({"number": trial.number, "value": trial.value, "best": None if best is None else best.value})
    return history


def _importance(trials: Sequence[Finished], search: Search) -> dict[str, float]:
    """The share of the variance between completed trials, by parameter; {} if they are too few or all equal."""
    completed = [trial for trial in trials if trial.state == "COMPLETE"]
    if len(completed) < MIN_TRIALS or len({trial.value for trial in completed}) == 1:
        return {}
    study = optuna.create_study()
    study.add_trials(
        create_trial(
            state=TrialState.COMPLETE,
            value=trial.value,
            params=search.space.encode(trial.values),
            distributions=search.space.distributions(),
        )
        for trial in completed
    )
    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=search.budget.seed))
    return {name: round(share, IMPORTANCE_DIGITS) for name, share in found.items()}
