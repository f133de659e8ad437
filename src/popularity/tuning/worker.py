"""Joins a running search of stage `tune`: python -m popularity.tuning.worker [--folder PROJECT].

Run it on another machine, in a copy of the project with the same params.yaml and data. `tune.storage`
must be a journal file on a shared disk or a database. All trials count for the same study; the stage writes the result.
The worker ends after the last trial. Start one for each processor.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from popularity.core.config import PARAMS_FILE, load_params, read_yaml, searched_keys
from popularity.core.errors import ConfigError
from popularity.core.stage import run
from popularity.stack import StackParams
from popularity.tuning.objective import StackInputs, TuneParams, stack_search
from popularity.tuning.storage import SQLITE, open_study
from popularity.tuning.study import work


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m popularity.tuning.worker", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(), help="project with params.yaml and data")
    args = parser.parse_args(argv)
    file = args.folder / PARAMS_FILE
    params = load_params("tune", TuneParams, file)
    if params.storage == SQLITE:
        raise ConfigError(
            f"{file}: tune.storage is {SQLITE}, which only the stage can use; set a journal or a database"
        )
    stack, searched = load_params("stack", StackParams, file), searched_keys(read_yaml(file))
    search, objective = stack_search(params, stack, searched, StackInputs.below(args.folder))
    study = open_study(search.name, search.budget.storage, args.folder, create=False)
    deadline = time.time() + params.timeout_hours * 3600 if params.timeout_hours else float("inf")
    # The stage counts its workers from 0; a random number gives other draws.
    worker = int.from_bytes(os.urandom(4), "little")
    work(study, search, objective, worker=worker, deadline=deadline)


if __name__ == "__main__":
    run(main)
