"""Screens candidates for the defaults of section stack on several data sets: cached columns, one booster a fold.

    python -m benchmarks.screen ../memes ../series ../sketches                        # all of benchmarks.candidates
    python -m benchmarks.screen ../memes ../series --candidates learners "no trend"   # groups or names
    python -m benchmarks.screen ../memes ../series --file mine.yaml --csv screen.csv

A folder is a project in which `dvc repro embed_posts featurize` has run. A candidate is a name for other values of
section stack, by dotted key; --file adds some, in the form of tune.configurations:

    wide trees:
      lightgbm.num_leaves: 63
      lightgbm.min_data_in_leaf: 20

`default` is section stack of the file --params, the same for all sets. Every fit is LightGBM alone with one seed,
--rounds rounds and no inner CV, thus without the trend's shift. So the scores are no promise, and a finalist gets whole
runs. The columns of each block of a fold are encoded once, as stage `stack` encodes them, and kept with the predictions
in .state/benchmarks/screen of the folder, by everything that they depend on, code included.

Intervals are over users, of the difference to `default` on the same draws. A score is the mean over the forward
splits; the mean over the sets is of SRC and of MAE as a share of the constant's MAE. --holdout scores scheme `holdout`
too, after the last choice: it refuses code or parameters that are not committed, and logs the scores.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from benchmarks.candidates import changed, chosen_candidates
from benchmarks.compare import commit_of, log_holdout
from benchmarks.means import LOSS, SHARE, mean_over_sets, outside, with_share
from benchmarks.screen_fits import predictions_of, tasks_of
from benchmarks.systems import METRICS, POST_COLUMNS, compare
from benchmarks.tables import add_csv_flag, signed_interval, text_table, verdict, write_csv
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.contracts import FORWARD, HOLDOUT
from popularity.core.manifest import REPOSITORY
from popularity.core.parallel import ordered_map
from popularity.core.stage import run
from popularity.ensemble.members import CONSTANT
from popularity.stack import StackParams

DEFAULT, MEAN = "default", "mean"
ROUNDS = 300  # of a fit, at the learning rate of section stack

RULE = """\
Rule: a candidate may become the default if it gains on the mean over the sets (MAE / constant - SRC falls) and loses on
no set outside its interval, in SRC or in MAE. Such a finalist gets whole runs, which decide. What is better on some
sets alone may be a choice of the search. Of many candidates some gain by chance."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="project folders, one a data set")
    parser.add_argument(
        "--candidates", nargs="+", default=[], help="names or groups; by default all, or those of --file"
    )
    parser.add_argument("--file", type=Path, help="YAML file of further candidates")
    parser.add_argument("--params", type=Path, default=PARAMS_FILE, help="file with section stack of the default")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of each fit, unless a candidate names its own")
    parser.add_argument("--holdout", action="store_true", help="score scheme `holdout` too")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap draws of users")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="folds at a time; changes no number")
    add_csv_flag(parser)
    args = parser.parse_args(argv)
    commit = commit_of(REPOSITORY, *(folder.resolve() for folder in args.folders)) if args.holdout else ""
    base = replace(
        load_params("stack", StackParams, args.params), n_seeds=1, num_boost_round=args.rounds, learners=("lightgbm",)
    )
    stacks = stacks_of(base, args)
    lines: list[dict[str, Any]] = []
    for scheme in (FORWARD, HOLDOUT) if args.holdout else (FORWARD,):
        sets = predicted(args, stacks, scheme)
        scored = {
            name: with_share(compare(rows, DEFAULT, resamples=args.resamples))
            for name, rows in tqdm(sets.items(), "intervals", unit="set")
        }
        over_sets = mean_over_sets(sets, DEFAULT, resamples=args.resamples)
        for name, table in scored.items():
            print(f"\n{name}: {scheme}, {sizes(table)}\n{printed(table)}")
        print(f"\nmean over the sets: {scheme}\n{printed_mean(over_sets, scored, choose=scheme == FORWARD)}")
        every = {**scored, MEAN: over_sets}
        lines += [{"set": name, "scheme": scheme, **row} for name, table in every.items() for row in table.to_dicts()]
        if scheme == HOLDOUT:
            for name, table in scored.items():
                log_holdout(Path(name) / "reports/holdout.log", commit, table.filter(pl.col("metric").is_in(METRICS)))
    print(f"\n{RULE}\n\n{holdout_note(stacks, args)}")
    write_csv(lines, args.csv)


def stacks_of(base: StackParams, args: argparse.Namespace) -> dict[str, StackParams]:
    """Section stack of the default and of every candidate of the flags that differs from it, by name."""
    keys = chosen_candidates(args.candidates, args.file, taken=(DEFAULT, CONSTANT, *POST_COLUMNS))
    stacks = {name: changed(base, name, values) for name, values in keys.items()}
    same = [name for name, stack in stacks.items() if stack == base]
    if same:
        print(f"as the default: {', '.join(same)}")
    return {DEFAULT: base} | {name: stack for name, stack in stacks.items() if name not in same}


def holdout_note(stacks: Mapping[str, StackParams], args: argparse.Namespace) -> str:
    """Whether holdout was scored, as text."""
    if not args.holdout:
        return "holdout was not scored."
    scored = f"{len(stacks)} stacks on {len(args.folders)} sets"
    return (
        f"holdout was scored for {scored}; reports/holdout.log of each folder has the scores.\n"
        "Choose on forward alone, and say with the result that holdout was scored."
    )


def predicted(args: argparse.Namespace, stacks: Mapping[str, StackParams], scheme: str) -> dict[str, pl.DataFrame]:
    """(POST_COLUMNS, a column a stack, CONSTANT) of the valid posts of a scheme, by folder.

    Raises:
        DataError: a folder has no splits, features or vectors.
    """
    tasks = [task for folder in dict.fromkeys(args.folders) for task in tasks_of(folder, args.params, scheme, stacks)]
    threads = max(stack.num_threads for stack in stacks.values())
    found = ordered_map(predictions_of, tasks, parallel=args.workers, threads=threads)
    bar = tqdm(found, f"{scheme}, {len(stacks)} fits a fold", len(tasks), unit="fold")
    tables: dict[str, list[pl.DataFrame]] = {}
    for task, table in zip(tasks, bar, strict=True):
        tables.setdefault(str(task.folder), []).append(table)
    return {name: pl.concat(parts) for name, parts in tables.items()}


def sizes(table: pl.DataFrame) -> str:
    """The numbers of splits, posts and users of a set, as text."""
    return ", ".join(f"{table[name][0]:,} {name}" for name in ("splits", "posts", "users"))


def printed(table: pl.DataFrame) -> str:
    """A line a candidate: SRC and MAE, their difference to the default, and MAE over the constant's."""
    lines = []
    for (system,), rows in table.group_by("system", maintain_order=True):
        line: dict[str, Any] = {"candidate": system}
        for metric in METRICS:
            row = rows.filter(metric=metric).row(0, named=True)
            line |= {metric.upper(): row["score"], f"{metric.upper()} - {DEFAULT}": _difference(row, metric)}
        lines.append(line | {"MAE / constant": rows.filter(metric=SHARE)["score"].item()})
    return text_table(lines)


def printed_mean(over_sets: pl.DataFrame, scored: Mapping[str, pl.DataFrame], *, choose: bool) -> str:
    """A line a candidate: means over the sets, differences to the default, and sets outside their intervals.

    Args:
        over_sets: of `mean_over_sets`.
        scored: of `with_share`, by set.
        choose: whether the line has a verdict.
    """
    lines = []
    for (system,), rows in over_sets.filter(pl.col("system") != CONSTANT).group_by("system", maintain_order=True):
        line: dict[str, Any] = {"candidate": system}
        for metric, shown in (("src", "SRC"), (SHARE, "MAE / constant")):
            row = rows.filter(metric=metric).row(0, named=True)
            line |= {shown: row["score"], f"{shown} - {DEFAULT}": _difference(row, metric)}
        loss = rows.filter(metric=LOSS).row(0, named=True)
        better, worse = (outside(scored, str(system), word) for word in ("better", "worse"))
        line |= {"better on": ", ".join(better), "worse on": ", ".join(worse)}
        if choose:
            line["verdict"] = "" if system == DEFAULT else verdict_of(loss, worse)
        lines.append(line)
    return text_table(lines)


def verdict_of(loss: Mapping[str, Any], worse: Sequence[str]) -> str:
    """What RULE says of a candidate.

    Args:
        loss: the row of LOSS of `mean_over_sets`; less is better.
        worse: sets on which the candidate loses outside its interval.
    """
    if worse:
        return "loses"
    if not loss["difference"] < 0:
        return "no gain"
    return "finalist" if verdict(LOSS, loss["low"], loss["high"]) else "finalist, gain within its interval"


def _difference(row: Mapping[str, Any], metric: str) -> str:
    if row["system"] in (DEFAULT, CONSTANT):
        return ""
    shown = signed_interval(row["difference"], row["low"], row["high"])
    return f"{shown} {verdict(metric, row['low'], row['high'])}".strip()


if __name__ == "__main__":
    run(main)
