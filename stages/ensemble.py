"""Averages the stack's members, the text model and members from files, with weights chosen on the forward splits.

Reads posts, predictions and importance of stage stack, predictions of the text model and of the files that
`ensemble.members` names; writes predictions.parquet, importance.csv and weights.json, which weighs later posts.

    python -m stages.ensemble --posts data/interim/posts.parquet --stack data/stack --text-model data/text_model \
        --members data/members --predictions data/ensemble --models models/ensemble \
        --resources reports/resources/ensemble.json
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import polars as pl

from popularity.core.atomic import atomic_directory, atomic_path, write_json
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.contracts import BASELINES, POSTS, PREDICTIONS, read_table, write_table
from popularity.core.manifest import write_manifest
from popularity.core.stage import record_resources, run
from popularity.ensemble.members import (
    EnsembleParams,
    MemberTable,
    chosen_weights,
    read_members,
    read_text_predictions,
    summary,
    weighted_importance,
)
from popularity.evaluation.scheme_scores import scheme_scores

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    for name in ("posts", "stack", "predictions", "models", "resources"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--text-model", type=Path, help="folder of its predictions; if not given, the stack alone")
    parser.add_argument("--members", type=Path, help="folder of the files that ensemble.members names")
    args = parser.parse_args(argv)
    params = load_params("ensemble", EnsembleParams, args.params)
    posts = read_table(args.posts, POSTS)
    predictions = read_table(args.stack / "predictions.parquet", PREDICTIONS)
    text = read_text_predictions(args.text_model) if params.text_model else None
    others = read_members(params.members, args.members) if params.members else {}
    with (
        record_resources("ensemble", args.resources),
        atomic_directory(args.models) as models,
        atomic_directory(args.predictions) as out,
    ):
        table = MemberTable.of(predictions, text, others)
        rows = table.out_of_fold(posts)
        chosen = chosen_weights(rows, params)
        found = summary(rows, chosen, table, params.members)
        baselines = predictions.filter(pl.col("model").is_in(BASELINES))
        mean = pl.concat([table.mean(chosen), baselines]).sort(PREDICTIONS.key)
        write_table(mean, out / "predictions.parquet", PREDICTIONS)
        importance = weighted_importance(pl.read_csv(args.stack / "importance.csv"), chosen.whole)
        with atomic_path(out / "importance.csv") as partial:
            importance.write_csv(partial)
        write_json(models / "weights.json", found)
        write_manifest(
            models,
            params={"ensemble": asdict(params)},
            inputs={"posts": args.posts, "stack": args.stack}
            | ({"text_model": args.text_model} if args.text_model else {})
            | ({"members": args.members} if params.members else {}),
            metrics=scheme_scores(posts, mean),
        )
    for name, weight in found["weights"].items():
        logger.info("weight %.2f  loss %s  %s", weight, found["losses"].get(name, "-"), name)


if __name__ == "__main__":
    run(main)
