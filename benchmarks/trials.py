"""The cost of a trial for each kind of change: stages that run again, seconds, CPU seconds.

    python -m benchmarks.trials --folder RUN                          # a folder in which the graph has run
    python -m benchmarks.trials --folder RUN --only split network --csv trials.csv
    python -m benchmarks.trials --folder RUN --jobs 2                 # independent stages at the same time

Each trial is `dvc repro` in a copy of RUN, after the change of params.yaml that `CHANGES` has for it; RUN stays as
it is. In every kind of change but `search` the search is off (`tune.candidates=[]`, `tune.n_trials=0`), as in a
comparison of two values (docs/experiments.md); in `found` params.yaml first gets what the search of the run found
(models/tuning/best_params.yaml). The code is that of the copy.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.graph import change_params
from benchmarks.measuring import measure
from benchmarks.tables import add_csv_flag, text_table, write_csv
from popularity.core import paths
from popularity.core.config import PARAMS_FILE
from popularity.core.errors import DataError
from popularity.core.stage import run
from popularity.encoders.names import as_names
from popularity.profile import main as set_profile
from popularity.resources import read_records
from popularity.tuning.results import NO_SEARCH

Params = dict[str, Any]
FOUND = "found"
LEFT_OUT = shutil.ignore_patterns(".venv*", ".state", "__pycache__", ".*_cache")


def num_leaves(params: Params) -> None:
    """A value in place of `search`, or another one; the search of the other keys is as it was."""
    params["stack"]["lightgbm"]["num_leaves"] = 31


def stack_parameter(params: Params) -> None:
    """The same without a search."""
    num_leaves(params)
    params["tune"] |= NO_SEARCH


def quick_stack_parameter(params: Params) -> None:
    """The same by the learner that it belongs to alone and with one seed."""
    stack_parameter(params)
    params["stack"] |= {"learners": ["lightgbm"], "n_seeds": 1}


def feature_group(params: Params) -> None:
    """The first group of the search's start is left out."""
    columns, start = params["stack"]["columns"], params["tune"]["start"]
    groups = columns["feature_groups"]
    columns["feature_groups"] = list(start["columns.feature_groups"] if groups == "search" else groups)[1:]
    params["tune"] |= NO_SEARCH


def encoder(params: Params) -> None:
    """A second text encoder for the stack: that of the network, which reads fewer tokens."""
    first = as_names(params["encoders"]["network"]["text"])[0]
    entry = dict(params["embed_text"][first])
    params["embed_text"]["of_the_trial"] = entry | {"max_tokens": max(entry["max_tokens"] // 2, 8)}
    params["encoders"]["stack"]["text"] = [*as_names(params["encoders"]["stack"]["text"]), "of_the_trial"]
    params["tune"] |= NO_SEARCH


def split_parameter(params: Params) -> None:
    """Other draws of users: all folds of the schemes that draw them, and all that is fitted on folds."""
    params["split"]["seed"] += 1
    params["tune"] |= NO_SEARCH


def network_parameter(params: Params) -> None:
    """Another seed of the network."""
    params["train"]["seed"] += 1
    params["tune"] |= NO_SEARCH


CHANGES: Mapping[str, Callable[[Params], None]] = {
    "stack": stack_parameter,
    FOUND: num_leaves,
    "quick": quick_stack_parameter,
    "search": num_leaves,
    "group": feature_group,
    "encoder": encoder,
    "split": split_parameter,
    "network": network_parameter,
}
NAMES = {
    "stack": "a stack parameter",
    FOUND: "a stack parameter, the others as the search found them",
    "quick": "a stack parameter, one learner and seed",
    "search": "a stack parameter, with the search",
    "group": "a feature group",
    "encoder": "an encoder added",
    "split": "a split parameter",
    "network": "a network parameter",
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="in which the graph has run")
    parser.add_argument("--only", nargs="+", choices=list(CHANGES), default=list(CHANGES), help="kinds of change")
    parser.add_argument("--work", type=Path, help="folder for the copy; by default a temporary one")
    parser.add_argument("--jobs", type=int, default=1, help="stages at the same time")
    add_csv_flag(parser)
    args = parser.parse_args(argv)
    if not (args.folder / "reports/metrics.json").is_file():
        raise DataError("has no reports/metrics.json", file=args.folder, expected="a finished run", fix="make repro")
    rows = []
    for row in trials(args.folder.resolve(), args.only, args.work, args.jobs):
        rows.append(row)
        print(f"{row['change']}: {row['seconds']:.0f} s", flush=True)
    print(text_table(rows, digits=1))
    write_csv(rows, args.csv)


def trials(folder: Path, kinds: Sequence[str], work: Path | None, jobs: int) -> Iterator[dict[str, Any]]:
    """A row for each kind of change.

    Args:
        folder: of the finished run.
        kinds: keys of CHANGES.
        work: folder for the copies, one at a time.
        jobs: stages at the same time.
    """
    for kind in kinds:
        with tempfile.TemporaryDirectory(dir=work and work.resolve()) as name:
            copy = Path(name) / "run"
            shutil.copytree(folder, copy, symlinks=True, ignore=LEFT_OUT)
            if kind == FOUND:
                set_profile(["--patch", str(copy / paths.TUNING_PATCH), "--params", str(copy / PARAMS_FILE)])
            change_params(copy / PARAMS_FILE, CHANGES[kind])
            found = measure("speed.graph", "repro", copy, str(jobs))
            yield {
                "change": NAMES[kind],
                "stages": described(copy, found["stages"]),
                "seconds": found["seconds"],
                "cpu": found["cpu"],
            }


def described(folder: Path, stages: Sequence[str]) -> str:
    """The stages that ran, each with its own seconds."""
    seconds = {record["stage"]: record["seconds"] for record in read_records(folder / "reports/resources", ())}
    return ", ".join(f"{stage} {seconds[stage]:.0f}" if stage in seconds else stage for stage in stages)


if __name__ == "__main__":
    run(main)
