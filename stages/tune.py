"""Searches the parameters of the stack on forward splits; the trials that predict best together become members.

The registered configurations (tune.candidates) are the first trials, and Optuna goes on from them. A key of section
stack that is `search` is searched; a key with a value keeps it.

Reads posts, splits, features and the blocks of the encoders and of the network; writes members.yaml, which stage stack
fits, trials.csv, predictions.parquet, study.json and best_params.yaml, a patch of params.yaml with the best trial and
without a search. The trials fit with the effort `tune.effort`. Where there is a single trial (no or one candidate,
tune.n_trials 0) nothing is fitted, and it is the only member.

    python -m stages.tune --posts data/interim/posts.parquet --splits data/interim/splits.parquet \
        --features data/features --image data/embeddings/stack/image --text data/embeddings/stack/text \
        --prototype data/embeddings/prototype --out models/tuning --resources reports/resources/tune.json

A killed run goes on after its last finished fit. POPULARITY_TUNE_WORKERS is the number of processes, one by default;
with more of them, or with tune.timeout_hours, another run may find other parameters.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from popularity.core.atomic import atomic_directory
from popularity.core.config import PARAMS_FILE, load_params, read_yaml, searched_keys
from popularity.core.contracts import TRIAL_PREDICTIONS, write_table
from popularity.core.manifest import write_manifest
from popularity.core.resume import STATE_ROOT, resume_state
from popularity.core.stage import record_resources, run
from popularity.stack import StackParams
from popularity.stack.members import write_members
from popularity.tuning.members import find_members
from popularity.tuning.objective import StackInputs, TuneParams, stack_search
from popularity.tuning.results import NO_SEARCH, best_of, write_patch, write_results
from popularity.tuning.study import run_search, workers_here

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    names = [field.name for field in fields(StackInputs)]
    for name in (*names, "out", "resources"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--state", type=Path, default=STATE_ROOT)
    args = parser.parse_args(argv)
    params = load_params("tune", TuneParams, args.params)
    stack = load_params("stack", StackParams, args.params)
    searched = searched_keys(read_yaml(args.params))
    inputs = StackInputs(**{name: vars(args)[name] for name in names})
    search, _ = stack_search(params, stack, searched, inputs)
    with (
        record_resources("tune", args.resources),
        resume_state("tune", search.name, args.state) as state,
        atomic_directory(args.out) as out,
    ):
        search, make_objective = stack_search(params, stack, searched, inputs, state)
        trials = run_search(search, make_objective, state=state, workers=workers_here())
        members = find_members(trials, search, make_objective, params)
        write_members(members.values, out / "members.yaml")
        write_table(members.predictions, out / "predictions.parquet", TRIAL_PREDICTIONS)
        write_results(trials, search, out, members.chosen)
        write_patch(trials, search, out / "best_params.yaml", tune=NO_SEARCH)
        best = best_of(trials)
        tune = {name: value for name, value in asdict(params).items() if name != "storage"}  # it is of the machine
        write_manifest(
            out,
            params={"tune": tune, "stack": asdict(stack)},
            inputs=vars(inputs),
            metrics={"trials": len(trials), "best": best.value if best else None},
        )
    logger.info("members: %s", ", ".join(members.values))


if __name__ == "__main__":
    run(main)
