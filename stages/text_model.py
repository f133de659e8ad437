"""Fine-tunes the text encoder on the label in every fold; the network, another model, never sees a label.

Reads posts, splits and features; writes predictions.parquet for the valid rows of the schemes `text_model.schemes` and
`refit`, and the model of `refit` with its manifest.

    python -m popularity.launch stages.text_model --posts data/interim/posts.parquet \
        --splits data/interim/splits.parquet --features data/features --predictions data/text_model \
        --models models/text_model --resources reports/resources/text_model.json

The processes divide the folds among themselves. A killed run goes on after the folds that are finished.
POPULARITY_TOPOLOGY picks a file of configs/accelerate.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from popularity.core.atomic import atomic_directory, fingerprint
from popularity.core.config import PARAMS_FILE, load_params, read_yaml
from popularity.core.contracts import FOLDS, MEMBER_PREDICTIONS, POSTS, read_table, write_table
from popularity.core.manifest import write_manifest
from popularity.core.resume import STATE_ROOT, resume_state
from popularity.core.stage import record_resources, run
from popularity.encoders.precision import resolve_precision
from popularity.encoders.sharding import start_processes
from popularity.encoders.sources import find_weights
from popularity.encoders.text import network_text_params
from popularity.text_model import FoldInputs, TextModelParams, fit_folds


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    for name in ("posts", "splits", "features", "predictions", "models", "resources"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--state", type=Path, default=STATE_ROOT)
    args = parser.parse_args(argv)
    params = load_params("text_model", TextModelParams, args.params)
    processes = start_processes()
    encoder = network_text_params(args.params)
    encoder = replace(encoder, precision=resolve_precision(encoder.precision, processes.device))
    schemes = tuple(scheme for scheme in read_yaml(args.params)["stack"]["schemes"] if scheme in params.schemes)
    inputs = {name: vars(args)[name] for name in ("posts", "splits", "features")}
    part_of_the_result = asdict(replace(params, parallel_folds=1))
    key = fingerprint(part_of_the_result, asdict(encoder), schemes, find_weights(encoder), *inputs.values())
    with record_resources("text_model", args.resources), resume_state("text_model", key, args.state) as state:
        posts, splits = read_table(args.posts, POSTS), read_table(args.splits, FOLDS)
        fold_inputs = FoldInputs(posts, args.features, encoder, params, processes.device, state)
        predictions = fit_folds(fold_inputs, splits, schemes, processes)
        if processes.is_main_process:
            with atomic_directory(args.models) as models, atomic_directory(args.predictions) as out:
                write_table(predictions, out / "predictions.parquet", MEMBER_PREDICTIONS)
                if params.epochs:
                    (models / "model.safetensors").write_bytes(fold_inputs.model_file.read_bytes())
                write_manifest(models, params={"text_model": asdict(params)}, inputs=inputs, metrics={})
        processes.wait_for_everyone()


if __name__ == "__main__":
    run(main)
