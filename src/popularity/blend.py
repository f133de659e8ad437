"""Averages the predictions of several runs, or of a teammate, into a valid submission: python -m popularity.blend.

    python -m popularity.blend --runs ../seed1 ../clip --out ../blended
    python -m popularity.blend --add theirs.csv --weight 0.3 --out ../blended
    python -m popularity.blend --runs ../seed1 --add theirs.csv --forward on_forward.csv --out ../blended

Start it in the root of the repository; our own predictions are those of the last run, in submissions/. RUNS are other
folders of the repository where `dvc repro` finished on the same data set and splits, with another seed or encoder: each
keeps its own network and stack, and only the predictions are averaged. FILE is a teammate's submission in either
official form. The weights are fitted on the valid posts of the scheme `forward`, whose labels are known; a teammate's
need predictions of those posts (same form, any order) that were made without the labels. Or --weight gives their
weight. Writes submission.json and submission.csv, as the stage submit does, into a new FOLDER.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from popularity.core import paths
from popularity.core.arrays import Float64Array
from popularity.core.atomic import atomic_directory
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.contracts import FORWARD, MAIN_MODEL, POSTS, PREDICTIONS, read_table
from popularity.core.errors import DataError
from popularity.core.metrics import score
from popularity.core.run_chain import refuse_mixed_run
from popularity.core.stage import run
from popularity.ensemble.weights import EnsembleWeights, fit_weights
from popularity.submission.ids import ids_of_run
from popularity.submission.validate import ID_PREFIX, read_scores
from popularity.submission.write import SubmitConfig, write_files
from popularity.target.rank_gauss import RankGauss

OURS, THEIRS = "ours", "theirs"
FIELDS = ("fold", "pid", "label")
SUBMISSION, PREDICTED = Path(paths.SUBMISSIONS, "submission.csv"), Path(paths.ENSEMBLE_PREDICTIONS)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m popularity.blend", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="folders of other runs on the same data set")
    parser.add_argument("--add", type=Path, metavar="FILE", help="their submission, .json or .csv")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--weight", type=float, help="of their submission, 0 to 1")
    either.add_argument("--forward", type=Path, help="their predictions of the valid posts of `forward`")
    parser.add_argument("--out", type=Path, metavar="FOLDER", required=True, help="new folder")
    parser.add_argument("--posts", type=Path, default=Path(paths.POSTS))
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    args = parser.parse_args(argv)
    if not (args.runs or args.add):
        parser.error("nothing to average: give --runs or --add")
    if args.add and args.weight is None and args.forward is None:
        parser.error("--add: give --weight, or --forward to fit it")
    if not args.add and not (args.weight is None and args.forward is None):
        parser.error("--weight and --forward belong to --add")
    if args.weight is not None and (args.runs or not 0 <= args.weight <= 1):
        parser.error(f"--weight {args.weight}: expected 0 to 1, and no --runs, whose weights are fitted")
    if args.out.exists():
        parser.error(f"--out {args.out}: it exists already")
    ids = ids_of_run(args.params, args.posts)
    folders = {OURS: Path(), **{str(folder): folder for folder in args.runs}}
    for folder in folders.values():
        refuse_mixed_run(folder, (paths.SUBMISSIONS,))
    files = {name: folder / SUBMISSION for name, folder in folders.items()} | ({THEIRS: args.add} if args.add else {})
    each = np.array([list(read_scores(file, ids, in_order=True).values()) for file in files.values()])
    if args.weight is not None:
        weights = EnsembleWeights(np.array([1 - args.weight, args.weight]))
    else:
        posts = read_table(args.posts, POSTS)
        rows = forward_rows({name: folder / PREDICTED for name, folder in folders.items()}, posts)
        if args.forward:
            rows = with_theirs(rows, args.forward)
        weights = fitted(rows)
        print(scores_text(rows, weights))
    for name, weight in zip(files, weights.weights, strict=True):
        print(f"weight of {name}: {weight:g}")
    config = load_params("submit", SubmitConfig, args.params)
    with atomic_directory(args.out) as out:
        write_files(ids, weights.apply(each).tolist(), config, out)


def forward_rows(runs: Mapping[str, Path], posts: pl.DataFrame) -> pl.DataFrame:
    """(fold, pid, label, a column a run) of the valid posts of `forward`, sorted by fold and pid.

    Args:
        runs: name -> file of contract PREDICTIONS, whose seeds are averaged.
        posts: contract POSTS.

    Raises:
        DataError: a run did not fit `forward`, or has other valid posts than the first run.
    """
    rows = pl.DataFrame()
    for name, file in runs.items():
        own = (
            read_table(file, PREDICTIONS)
            .filter(scheme=FORWARD, model=MAIN_MODEL)
            .sort(PREDICTIONS.key)
            .group_by("fold", "pid", maintain_order=True)
            .agg(pl.mean("prediction").alias(name))
            .sort("fold", "pid")
        )
        if own.is_empty():
            raise DataError(
                f"no predictions of {FORWARD}", file=file, expected=f"`{FORWARD}` in stack.schemes",
                fix="run it with this scheme, or give --weight",
            )  # fmt: skip
        if rows.is_empty():
            rows = own.join(posts.select("pid", "label"), on="pid", how="left", validate="m:1", maintain_order="left")
            rows = rows.select(*FIELDS, name)
        elif rows.select("fold", "pid").equals(own.select("fold", "pid")):
            rows = rows.with_columns(own[name])
        else:
            raise DataError(
                f"other posts in {FORWARD} than ours", file=file,
                expected="a run on the same data set with the same section split",
            )  # fmt: skip
    return rows


def with_theirs(rows: pl.DataFrame, file: Path) -> pl.DataFrame:
    """`rows` of `forward_rows` with the column `theirs`, from a file of the same posts in any order.

    Raises:
        DataError: the file lacks a post, has another one, or is broken.
    """
    ids = (ID_PREFIX + rows["pid"]).to_list()
    found = read_scores(file, list(dict.fromkeys(ids)), in_order=False)
    return rows.with_columns(pl.Series(THEIRS, [found[post] for post in ids], dtype=pl.Float64))


def fitted(rows: pl.DataFrame) -> EnsembleWeights:
    """The weights of the prediction columns of `rows` with the least mean absolute error."""
    each = rows.drop(FIELDS).to_numpy().T
    return fit_weights(each, rows["label"].to_numpy(), RankGauss("none", None), centred=False)


def scores_text(rows: pl.DataFrame, weights: EnsembleWeights) -> str:
    """Scores of each column and of the ensemble, a line each; those of the ensemble are in sample, so too good."""
    each: Float64Array = rows.drop(FIELDS).to_numpy().T
    folds = rows["fold"].to_numpy().astype(np.int64)
    lines = []
    for name, values in [*zip(rows.drop(FIELDS).columns, each, strict=True), ("ensemble", weights.apply(each))]:
        found = score(rows["label"].to_numpy(), values, folds)
        src = "-" if found["src"] is None else f"{found['src']:.4f}"
        lines.append(f"SRC {src}  MAE {found['mae']:.4f}  {name}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
