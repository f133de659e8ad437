"""Compares rules that choose among a search's trials or average them: each split is scored by the choice on the others.

    python -m benchmarks.averaging ../memes ../series
    python -m benchmarks.averaging . --csv averaging.csv

A folder is a project in which stage `tune` has run with at least two forward splits. The rules read the predictions of
its completed trials, which were fitted with the effort `tune.effort` and have no text model. A registered trial is one
of `tune.candidates`, the default first. The graph's own rule is greedy, with `tune.n_members` members, shrunk by
`ensemble.shrinkage`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.optimize import nnls

from benchmarks.tables import add_csv_flag, text_table, write_csv
from popularity.core import paths
from popularity.core.arrays import Float64Array
from popularity.core.config import load_params
from popularity.core.contracts import FOLDS, FORWARD, POSTS, TRIAL_PREDICTIONS, read_table
from popularity.core.errors import DataError
from popularity.core.metrics import loss_of_scores, mean_absolute_error, spearman
from popularity.core.stage import run
from popularity.ensemble.greedy import OutOfFold, greedy_weights, shrunk
from popularity.ensemble.members import EnsembleParams
from popularity.evaluation.bootstrap import resample_folds
from popularity.tuning.objective import TuneParams

N_RESAMPLES = 1000  # bootstrap draws of users, for the standard errors
RIDGE = 1.0  # of stacking: the pull towards equal weights, in mean squared distances of a trial from the trials' mean
Rule = Callable[[OutOfFold, Sequence[int]], Float64Array]  # (rows, positions of registered trials) -> weights


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="project folders")
    add_csv_flag(parser)
    args = parser.parse_args(argv)
    table = [
        row
        for folder in args.folders
        for row in scores_of_rules(folder.resolve().name, *read_trials(folder), rules_of(folder / paths.PARAMS))
    ]
    print(text_table(table))
    write_csv(table, args.csv)


def read_trials(folder: Path) -> tuple[OutOfFold, list[int]]:
    """The completed trials of a project, and the positions of the registered ones.

    Raises:
        DataError: there are fewer than two splits or no trials.
    """
    predictions = read_table(folder / paths.TUNING_PREDICTIONS, TRIAL_PREDICTIONS)
    if predictions["fold"].n_unique() < 2:
        raise DataError(
            "fewer than two forward splits with predictions of trials",
            file=folder / paths.TUNING_PREDICTIONS,
            expected="a search of at least two trials, and split.n_origins of at least 2",
            fix="dvc repro tune",
        )
    posts = read_table(folder / paths.POSTS, POSTS).select("pid", "uid", "label")
    splits = read_table(folder / paths.SPLITS, FOLDS).filter(scheme=FORWARD, role="train")
    medians = splits.join(posts, on="pid", how="left", validate="m:1").group_by("fold").agg(baseline=pl.median("label"))
    wide = predictions.pivot(on="trial", index=["fold", "pid"], values="prediction")
    numbers = sorted(int(name) for name in wide.columns[2:])
    rows = wide.join(posts, on="pid", how="left", validate="m:1").join(medians, on="fold", how="left", validate="m:1")
    rows = rows.sort("fold", "pid")
    trials = pl.read_csv(folder / paths.TUNING_TRIALS, schema_overrides={"name": pl.String})
    names = dict(trials.select("number", "name").iter_rows())
    table = OutOfFold(
        names=[names[number] or f"trial_{number}" for number in numbers],
        fold=rows["fold"].to_numpy().astype(np.int64),
        label=rows["label"].to_numpy(),
        user=np.unique(rows["uid"].to_numpy().astype(str), return_inverse=True)[1].astype(np.int64),
        baseline=rows["baseline"].to_numpy(),
        prediction=rows.select(str(number) for number in numbers).to_numpy(),
    )
    return table, [index for index, number in enumerate(numbers) if names[number]]


def one_standard_error(rows: OutOfFold, registered: Sequence[int]) -> Float64Array:
    """The first registered trial whose loss is within one standard error of the best, over paired draws of users."""
    users = np.unique(rows.user, return_inverse=True)[1].astype(np.int64)
    both = np.column_stack([rows.prediction[:, registered], rows.baseline])
    drawn = resample_folds(rows.label, both, users, resamples=N_RESAMPLES, seed=0, folds=rows.fold)
    draws = loss_of_scores(drawn["mae"][..., :-1], drawn["mae"][..., -1:], drawn["src"][..., :-1]).mean(axis=0)
    values = rows.losses_of_members()[registered]
    best = int(np.argmin(values))
    paired = draws - draws[:, [best]]
    paired = paired[np.isfinite(paired).all(axis=1)]
    errors = paired.std(axis=0, ddof=1) if len(paired) > 1 else np.zeros(len(values))
    return _single(rows, registered[int(np.flatnonzero(values - values[best] <= errors)[0])])


def best_single(rows: OutOfFold, registered: Sequence[int], *, drawn: bool) -> Float64Array:
    """The trial of least loss, among the registered ones or all."""
    losses = rows.losses_of_members()
    among = list(range(len(losses))) if drawn else list(registered)
    return _single(rows, among[int(np.argmin(losses[among]))])


def equal(rows: OutOfFold, registered: Sequence[int]) -> Float64Array:
    """Equal weights of the registered trials."""
    weights = np.zeros(len(rows.names))
    weights[list(registered)] = 1 / len(registered)
    return weights


def greedy(rows: OutOfFold, registered: Sequence[int], *, members: int, shrinkage: float) -> Float64Array:  # noqa: ARG001
    """Greedy weights of the `members` trials of the largest ones, chosen again among these and shrunk."""
    weights = greedy_weights(rows, seed=0)
    kept = np.sort(np.argsort(-weights, kind="stable")[: min(members, int((weights > 0).sum()))])
    found = np.zeros(len(weights))
    found[kept] = shrunk(greedy_weights(rows.members(kept.tolist()), seed=0), shrinkage)
    return found


def stacking(rows: OutOfFold, registered: Sequence[int]) -> Float64Array:  # noqa: ARG001
    """Non-negative weights of least squared error with a ridge towards equal ones."""
    members = rows.prediction.shape[1]
    start = np.full(members, 1 / members)
    centred = rows.prediction - rows.prediction.mean(axis=1, keepdims=True)
    pull = np.sqrt(RIDGE * float((centred**2).sum(axis=0).mean()) + 1e-12)
    design = np.vstack([rows.prediction, pull * np.eye(members)])
    weights = nnls(design, np.concatenate([rows.label, pull * start]))[0]
    return weights / weights.sum() if weights.sum() > 0 else start


def _single(rows: OutOfFold, index: int) -> Float64Array:
    found: Float64Array = np.eye(len(rows.names))[index]
    return found


ONE_STANDARD_ERROR = "one standard error"


def rules_of(params: Path) -> dict[str, Rule]:
    """The rules by name, those of the graph with its parameters.

    Args:
        params: params.yaml, of which tune.n_members and ensemble.shrinkage are read.
    """
    members = load_params("tune", TuneParams, params).n_members
    shrinkage = load_params("ensemble", EnsembleParams, params).shrinkage
    return {
        ONE_STANDARD_ERROR: one_standard_error,
        "best registered": partial(best_single, drawn=False),
        "best trial": partial(best_single, drawn=True),
        "equal, registered": equal,
        "greedy, all trials": partial(greedy, members=10**6, shrinkage=0.0),
        f"greedy, {members} members": partial(greedy, members=members, shrinkage=0.0),
        f"greedy, {members} members, shrunk": partial(greedy, members=members, shrinkage=shrinkage),
        "shrunk stacking": stacking,
    }


def scores_of_rules(
    name: str, table: OutOfFold, registered: Sequence[int], rules: Mapping[str, Rule]
) -> list[dict[str, Any]]:
    """A row a rule: SRC, MAE and selection loss, means over the splits, each by the weights that the others choose."""
    lines = []
    for rule, choose in rules.items():
        scores = []
        for fold in table.folds:
            weights, own = choose(table.without(fold), registered), table.only(fold)
            mean = own.prediction @ weights
            src, mae = spearman(own.label, mean), mean_absolute_error(own.label, mean)
            scores.append((src or 0.0, mae, own.losses(weights)[0], int((weights > 0).sum())))
        src, mae, loss, members = np.mean(scores, axis=0)
        lines.append({"run": name, "rule": rule, "src": src, "mae": mae, "loss": loss, "members": round(members, 1)})
    reference = next(line["loss"] for line in lines if line["rule"] == ONE_STANDARD_ERROR)
    return [{**line, f"loss - {ONE_STANDARD_ERROR}": line["loss"] - reference} for line in lines]


if __name__ == "__main__":
    run(main)
