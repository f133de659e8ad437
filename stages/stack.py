"""Fits the members of the stack and the baselines in every fold, then on all training posts.

Reads posts, splits, features, the blocks of the encoders and of the network, and members.yaml of stage tune; writes
predictions.parquet, trends.parquet (the members of the trend at the dates of the valid posts) and importance.csv, and
the models of the scheme `refit` with their manifest. Without members.yaml there is one member, section stack with the
values of tune.start. The scheme `random`, whose scores are too good, is fitted only with --all-schemes or if
stack.schemes names it.

    python -m stages.stack --posts data/interim/posts.parquet --splits data/interim/splits.parquet \
        --features data/features --image data/embeddings/stack/image --text data/embeddings/stack/text \
        --prototype data/embeddings/prototype --members models/tuning/members.yaml \
        --predictions data/stack --models models/stack --resources reports/resources/stack.json
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from popularity.core.atomic import atomic_directory, atomic_path, fingerprint
from popularity.core.config import PARAMS_FILE
from popularity.core.contracts import FOLDS, POSTS, PREDICTIONS, TRENDS, read_table, write_table
from popularity.core.manifest import write_manifest
from popularity.core.resume import STATE_ROOT, resume_state
from popularity.core.stage import record_resources, run
from popularity.stack import StackData, fit_schemes, read_blocks
from popularity.stack.lightgbm_dask import dask_client
from popularity.stack.members import load_members


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    fitted_on = ("posts", "splits", "features", "image", "text", "prototype")
    for name in (*fitted_on, "predictions", "models", "resources"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--members", type=Path, help="members.yaml, whose values replace those of section stack")
    parser.add_argument("--state", type=Path, default=STATE_ROOT)
    parser.add_argument("--all-schemes", action="store_true", help="fit every scheme, random too")
    args = parser.parse_args(argv)
    members = load_members(args.params, args.members)
    if args.all_schemes:
        members = {
            name: replace(params, schemes=("holdout", "forward", "group", "random")) for name, params in members.items()
        }
    inputs = {name: vars(args)[name] for name in fitted_on}
    sections = {name: asdict(params) for name, params in members.items()}
    posts = read_table(args.posts, POSTS)
    blocks = read_blocks(args.image, args.text, args.prototype)
    with (
        record_resources("stack", args.resources),
        resume_state("stack", fingerprint(sections, *inputs.values()), args.state) as state,
        dask_client(next(iter(members.values())).cluster),
        atomic_directory(args.models) as models,
        atomic_directory(args.predictions) as out,
    ):
        data = StackData(posts, read_table(args.splits, FOLDS), args.features, blocks)
        fits = fit_schemes(data, members, state=state, model_folder=models)
        write_table(fits.predictions, out / "predictions.parquet", PREDICTIONS)
        write_table(fits.trends, out / "trends.parquet", TRENDS)
        with atomic_path(out / "importance.csv") as partial:
            fits.importance.write_csv(partial)
        write_manifest(models, params={"members": sections}, inputs=inputs, metrics={})


if __name__ == "__main__":
    run(main)
