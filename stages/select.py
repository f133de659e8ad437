"""Chooses one of the registered configurations of section `stack` by forward splits of this data set.

Reads posts, splits, features and the blocks of both encoders and of the network; writes choice.yaml, which the next
stage takes for its start, scores.csv and selection.json. With select.candidates [] nothing is chosen, and the stack
keeps the values of params.yaml.

    python -m stages.select --posts data/interim/posts.parquet --splits data/interim/splits.parquet \
        --features data/features --image data/embeddings/image/efficientnet_lite0 --text data/embeddings/text/minilm \
        --prototype data/embeddings/prototype --out models/selection --resources reports/resources/select.json

A killed run goes on after its last finished fit.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from popularity.core.atomic import atomic_directory, fingerprint
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.manifest import write_manifest
from popularity.core.resume import STATE_ROOT, resume_state
from popularity.core.stage import record_resources, run
from popularity.stack import StackParams
from popularity.stack.lightgbm_dask import dask_client
from popularity.tuning.candidates import SelectParams, candidates_of, predict_candidates, write_selection
from popularity.tuning.objective import StackInputs


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    names = [field.name for field in fields(StackInputs)]
    for name in (*names, "out", "resources"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--state", type=Path, default=STATE_ROOT)
    args = parser.parse_args(argv)
    params = load_params("select", SelectParams, args.params)
    stack = load_params("stack", StackParams, args.params)
    candidates = candidates_of(params, stack)
    inputs = StackInputs(**{name: vars(args)[name] for name in names})
    with (
        record_resources("select", args.resources),
        # The parameters of a finished fit are in its file name, so it serves other candidates too.
        resume_state("select", fingerprint(*vars(inputs).values()), args.state) as state,
        dask_client(stack.cluster),
        atomic_directory(args.out) as out,
    ):
        predicted = predict_candidates(candidates, inputs, state) if candidates else None
        chosen = write_selection(candidates, predicted, stack.seed, out)
        write_manifest(
            out,
            params={"select": asdict(params), "stack": asdict(stack)},
            inputs=vars(inputs),
            metrics={"chosen": chosen.name if chosen else None},
        )


if __name__ == "__main__":
    run(main)
