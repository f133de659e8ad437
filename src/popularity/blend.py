"""Merges predictions of several runs, or a teammate's, into a valid submission: python -m popularity.blend.

    python -m popularity.blend --runs ../seed1 ../clip --out ../blended
    python -m popularity.blend --add theirs.csv --weight 0.3 --out ../blended
    python -m popularity.blend --runs ../seed1 --add theirs.csv --matched on_matched.csv --out ../blended

Ours are those of the last run, in submissions/; run it from the repository's root. RUNS are other folders of the
repository in which `dvc repro` ended on the same data set and splits, with another seed or encoder: each network keeps
its own stack, and only their predictions meet. FILE is a teammate's submission in either official form. Weights are
fitted where there are labels: on the posts that the scheme `matched` scores, theirs from predictions of those posts
(same form, any order) that were made without the labels; or the weight of theirs is given. Writes submission.json and
submission.csv, as the stage submit does, into a new FOLDER.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from popularity.core.arrays import Float64Array
from popularity.core.atomic import atomic_directory
from popularity.core.config import PARAMS_FILE, load_params, read_yaml
from popularity.core.contracts import POSTS, PREDICTIONS, read_table
from popularity.core.errors import DataError
from popularity.core.metrics import score
from popularity.core.stage import run
from popularity.ensemble.weights import EnsembleWeights, fit_weights
from popularity.submission.validate import ID_PREFIX, expected_ids, read_scores
from popularity.submission.write import SubmitConfig, write_files
from popularity.target.rank_gauss import RankGauss

MODEL, SCHEME = "stack", "forward"
OURS, THEIRS = "ours", "theirs"
FACTS = ("fold", "pid", "label")
SUBMISSION, PREDICTED = Path("submissions/submission.csv"), Path("data/stack/predictions.parquet")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m popularity.blend", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="folders of other runs on the same data set")
    parser.add_argument("--add", type=Path, metavar="FILE", help="their submission, .json or .csv")
    share = parser.add_mutually_exclusive_group()
    share.add_argument("--weight", type=float, help="of theirs, 0 to 1")
    share.add_argument("--matched", type=Path, help="their predictions of what `matched` scores: the weight is fitted")
    parser.add_argument("--out", type=Path, metavar="FOLDER", required=True, help="that is made")
    parser.add_argument("--posts", type=Path, default=Path("data/interim/posts.parquet"))
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    args = parser.parse_args(argv)
    if not (args.runs or args.add):
        parser.error("nothing to blend: give --runs or --add")
    if args.add and args.weight is None and args.matched is None:
        parser.error("--add: give --weight, or --matched to fit it")
    if not args.add and not (args.weight is None and args.matched is None):
        parser.error("--weight and --matched are of --add")
    if args.weight is not None and (args.runs or not 0 <= args.weight <= 1):
        parser.error(f"--weight {args.weight}: expected 0 to 1, and no --runs, whose weights are fitted")
    if args.out.exists():
        parser.error(f"--out {args.out}: it is there already")
    ids = expected_ids(Path(read_yaml(args.params)["dataset"]["root"]) / "test_allmetadata_json")
    folders = {OURS: Path(), **{str(folder): folder for folder in args.runs}}
    files = {name: folder / SUBMISSION for name, folder in folders.items()} | ({THEIRS: args.add} if args.add else {})
    each = np.array([list(read_scores(file, ids, in_order=True).values()) for file in files.values()])
    if args.weight is not None:
        blend = EnsembleWeights(np.array([1 - args.weight, args.weight]))
    else:
        posts = read_table(args.posts, POSTS)
        rows = matched_rows({name: folder / PREDICTED for name, folder in folders.items()}, posts)
        if args.matched:
            rows = with_theirs(rows, args.matched)
        blend = fitted(rows)
        print(told(rows, blend))
    for name, weight in zip(files, blend.weights, strict=True):
        print(f"weight of {name}: {weight:g}")
    config = load_params("submit", SubmitConfig, args.params)
    with atomic_directory(args.out) as out:
        write_files(ids, blend.apply(each).tolist(), config, out)


def matched_rows(runs: Mapping[str, Path], posts: pl.DataFrame) -> pl.DataFrame:
    """(fold, pid, label, a column a run) of the posts that `matched` scores, sorted by fold and pid.

    Args:
        runs: by name, table of contract PREDICTIONS; seeds are averaged.
        posts: contract POSTS.

    Raises:
        DataError: `matched` was not fitted, or not on the posts of the first run.
    """
    rows = pl.DataFrame()
    for name, file in runs.items():
        own = (
            read_table(file, PREDICTIONS)
            .filter(scheme=SCHEME, model=MODEL)
            .sort(PREDICTIONS.key)
            .group_by("fold", "pid", maintain_order=True)
            .agg(pl.mean("prediction").alias(name))
            .sort("fold", "pid")
        )
        if own.is_empty():
            raise DataError(
                f"no predictions of {SCHEME}", file=file, expected=f"`{SCHEME}` in stack.schemes",
                fix="run it so, or blend by --weight",
            )  # fmt: skip
        if rows.is_empty():
            rows = own.join(posts.select("pid", "label"), on="pid", how="left", validate="m:1", maintain_order="left")
            rows = rows.select(*FACTS, name)
        elif rows.select("fold", "pid").equals(own.select("fold", "pid")):
            rows = rows.with_columns(own[name])
        else:
            raise DataError(
                f"other posts in {SCHEME} than ours", file=file,
                expected="a run on the same data set with the same section split",
            )  # fmt: skip
    return rows


def with_theirs(rows: pl.DataFrame, file: Path) -> pl.DataFrame:
    """`rows` of matched_rows with the column `theirs`, from a file of exactly those posts in any order.

    Raises:
        DataError: the file lacks a post, holds another or is broken.
    """
    ids = (ID_PREFIX + rows["pid"]).to_list()
    found = read_scores(file, list(dict.fromkeys(ids)), in_order=False)
    return rows.with_columns(pl.Series(THEIRS, [found[post] for post in ids], dtype=pl.Float64))


def fitted(rows: pl.DataFrame) -> EnsembleWeights:
    """The blend of all columns of `rows` with the least mean absolute error."""
    each = rows.drop(FACTS).to_numpy().T
    return fit_weights(each, rows["label"].to_numpy(), RankGauss("none", None), centred=False)


def told(rows: pl.DataFrame, blend: EnsembleWeights) -> str:
    """Scores of each and of the blend on the rows that its weights were fitted on: the blend's are flattered."""
    each: Float64Array = rows.drop(FACTS).to_numpy().T
    cuts = rows["fold"].to_numpy().astype(np.int64)
    lines = []
    for name, values in [*zip(rows.drop(FACTS).columns, each, strict=True), ("blend", blend.apply(each))]:
        found = score(rows["label"].to_numpy(), values, cuts)
        src = "-" if found["src"] is None else f"{found['src']:.4f}"
        lines.append(f"SRC {src}  MAE {found['mae']:.4f}  {name}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
