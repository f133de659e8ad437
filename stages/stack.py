"""Fits the stack and its baselines in every fold, then on all training posts.

Reads posts, splits, features, the blocks of both encoders and of the network, and the predictions of the text model;
writes predictions.parquet, trends.parquet (the members of the trend at the dates of the valid posts) and
importance.csv, and the models of the scheme `refit` with their manifest. The scheme `random`, whose scores are too
good, is fitted only with --all-schemes or if stack.schemes names it.

    python -m stages.stack --posts data/interim/posts.parquet --splits data/interim/splits.parquet \
        --features data/features --image data/embeddings/image/efficientnet_lite0 --text data/embeddings/text/minilm \
        --prototype data/embeddings/prototype --member data/text_model --tuned models/tuning/best_params.yaml \
        --predictions data/stack --models models/stack --resources reports/resources/stack.json
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from popularity.core.atomic import atomic_directory, atomic_path, fingerprint, write_json
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.contracts import ENSEMBLE_WEIGHTS_FILE, FOLDS, POSTS, PREDICTIONS, TRENDS, read_table, write_table
from popularity.core.manifest import write_manifest
from popularity.core.resume import STATE_ROOT, resume_state
from popularity.core.stage import record_resources, run
from popularity.ensemble.members import add_member, read_member
from popularity.evaluation.scheme_scores import scheme_scores
from popularity.stack import StackData, StackParams, fit_schemes, read_blocks
from popularity.stack.lightgbm_dask import dask_client


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    fitted_on = ("posts", "splits", "features", "image", "text", "prototype")
    for name in (*fitted_on, "predictions", "models", "resources"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--member", type=Path, help="predictions of stages.text_model; if not given, the stack alone")
    parser.add_argument("--tuned", type=Path, help="best_params.yaml, whose keys replace those of section stack")
    parser.add_argument("--state", type=Path, default=STATE_ROOT)
    parser.add_argument("--all-schemes", action="store_true", help="fit every scheme, random too")
    args = parser.parse_args(argv)
    params = load_params("stack", StackParams, args.params, args.tuned)
    if args.all_schemes:
        params = replace(params, schemes=("holdout", "forward", "group", "random"))
    inputs = {name: vars(args)[name] for name in fitted_on}
    # Of the fits; the text model is averaged with them later.
    key = fingerprint(asdict(replace(params, text_model_weights=(0.0,))), *inputs.values())
    inputs |= {"text_model": args.member} if args.member else {}
    posts = read_table(args.posts, POSTS)
    blocks = read_blocks(args.image, args.text, args.prototype)
    with (
        record_resources("stack", args.resources),
        resume_state("stack", key, args.state) as state,
        dask_client(params.cluster),
        atomic_directory(args.models) as models,
        atomic_directory(args.predictions) as out,
    ):
        data = StackData(posts, read_table(args.splits, FOLDS), args.features, blocks)
        fits = fit_schemes(data, params, state=state, model_folder=models)
        predictions, weights = add_member(fits.predictions, read_member(args.member), posts, params.text_model_weights)
        write_json(models / ENSEMBLE_WEIGHTS_FILE, weights)
        write_table(predictions, out / "predictions.parquet", PREDICTIONS)
        write_table(fits.trends, out / "trends.parquet", TRENDS)
        with atomic_path(out / "importance.csv") as partial:
            fits.importance.write_csv(partial)
        scores = scheme_scores(posts, predictions)
        write_manifest(models, params={"stack": asdict(params)}, inputs=inputs, metrics=scores)


if __name__ == "__main__":
    run(main)
