"""Searches the parameters of the stack by the schemes `forward` and `group`; stage stack takes the best ones.

The search starts from params.yaml with the selected configuration.

Reads posts, splits, features and the blocks of both encoders and of the network; writes best_params.yaml, trials.csv
and study.json. The trials fit with the effort `tune.effort`. At the end the best parameters are fitted once more, as
stage stack fits them; study.json holds these losses too. best_params.yaml holds the keys of the selected configuration
and those of the best trial; with tune.n_trials 0 the former alone.

    python -m stages.tune --posts data/interim/posts.parquet --splits data/interim/splits.parquet \
        --features data/features --image data/embeddings/image/efficientnet_lite0 --text data/embeddings/text/minilm \
        --prototype data/embeddings/prototype --selected models/selection/choice.yaml \
        --out models/tuning --resources reports/resources/tune.json

A killed run goes on after its last finished trial. POPULARITY_TUNE_WORKERS is the number of processes, one by default;
with more of them, or with tune.timeout_hours, another run may find other parameters.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from popularity.core.atomic import atomic_directory
from popularity.core.config import PARAMS_FILE, load_params, read_yaml
from popularity.core.manifest import write_manifest
from popularity.core.resume import STATE_ROOT, resume_state
from popularity.core.stage import record_resources, run
from popularity.stack import StackParams
from popularity.stack.lightgbm_dask import dask_client
from popularity.tuning.objective import StackInputs, TuneParams, losses_of_stage, stack_search
from popularity.tuning.results import best_of, write_results
from popularity.tuning.study import run_search, workers_here


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    names = [field.name for field in fields(StackInputs)]
    for name in (*names, "out", "resources"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--selected", type=Path, help="choice.yaml, whose keys replace those of section stack")
    parser.add_argument("--state", type=Path, default=STATE_ROOT)
    args = parser.parse_args(argv)
    params = load_params("tune", TuneParams, args.params)
    stack = load_params("stack", StackParams, args.params, args.selected)
    inputs = StackInputs(**{name: vars(args)[name] for name in names})
    search, objective = stack_search(params, stack, inputs)
    with (
        record_resources("tune", args.resources),
        resume_state("tune", search.name, args.state) as state,
        atomic_directory(args.out) as out,
    ):
        trials = run_search(search, objective, state=state, workers=workers_here())
        best = best_of(trials)
        losses = _losses_of_stage(inputs, params, search.space.apply(best.values)) if best else None
        write_results(trials, search, out, read_yaml(args.selected) if args.selected else {}, losses)
        write_manifest(
            out,
            params={"tune": _without_storage(params), "stack": asdict(stack)},
            inputs=vars(inputs),
            metrics={"trials": len(trials), "best": best.value if best else None},
        )


def _losses_of_stage(inputs: StackInputs, params: TuneParams, stack: StackParams) -> dict[str, Any]:
    """The losses of the stack that stage stack will fit with the best parameters, without the text model."""
    with dask_client(stack.cluster):
        return asdict(losses_of_stage(inputs, params.schemes, stack))


def _without_storage(params: TuneParams) -> dict[str, Any]:
    """The parameters for the manifest, which holds nothing of the machine."""
    return {name: value for name, value in asdict(params).items() if name != "storage"}


if __name__ == "__main__":
    run(main)
