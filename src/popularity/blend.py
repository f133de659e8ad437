"""Merges a teammate's predictions into a valid submission: python -m popularity.blend --add FILE --out FOLDER.

    python -m popularity.blend --add theirs.csv --weight 0.3 --out ../blended
    python -m popularity.blend --add theirs.csv --matched their_matched.csv --blend rank --out ../blended

FILE is a submission in either official form. Its weight is given, or fitted where there are labels: on the posts that
the scheme `matched` scores, from predictions of theirs (same form, any order) that were made without those labels.
Writes submission.json and submission.csv, as the stage submit does, into a new FOLDER. Ours are those of
the last run, in submissions/; run it from the repository's root.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from popularity.config import PARAMS_FILE, load_params, read_yaml
from popularity.errors import DataError
from popularity.evaluation.metrics import score
from popularity.files import atomic_directory
from popularity.schema import POSTS, PREDICTIONS, read_table
from popularity.stack.blending import Blend, BlendKind, Order
from popularity.stack.inner import Array
from popularity.stack.target import Target
from popularity.stage import run
from popularity.submission.validate import ID_PREFIX, expected_ids, read_scores
from popularity.submission.write import SubmitConfig, write_files

MODEL, SCHEME = "stack", "matched"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m popularity.blend", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--add", type=Path, required=True, help="their submission, .json or .csv")
    share = parser.add_mutually_exclusive_group(required=True)
    share.add_argument("--weight", type=float, help="of theirs, 0 to 1")
    share.add_argument("--matched", type=Path, help="their predictions of what `matched` scores: the weight is fitted")
    parser.add_argument("--blend", choices=["mean", "rank"], default="mean", help="as stack.blend")
    parser.add_argument("--out", type=Path, required=True, help="folder that is made")
    parser.add_argument("--ours", type=Path, default=Path("submissions/submission.csv"))
    parser.add_argument("--posts", type=Path, default=Path("data/interim/posts.parquet"))
    parser.add_argument("--predictions", type=Path, default=Path("data/stack/predictions.parquet"))
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    args = parser.parse_args(argv)
    if args.weight is not None and not 0 <= args.weight <= 1:
        parser.error(f"--weight {args.weight}: expected 0 to 1")
    if args.out.exists():
        parser.error(f"--out {args.out}: it is there already")
    ids = expected_ids(Path(read_yaml(args.params)["dataset"]["root"]) / "test_allmetadata_json")
    each = np.array([list(read_scores(file, ids, in_order=True).values()) for file in (args.ours, args.add)])
    if args.matched is None:
        weights = np.array([1 - args.weight, args.weight])
        level = weights @ each
        blend = Blend(weights, Order.of(each, level, weights) if args.blend == "rank" else None)
    else:
        rows = matched_rows(read_table(args.predictions, PREDICTIONS), read_table(args.posts, POSTS), args.matched)
        blend = fitted(rows, args.blend)
        print(told(rows, blend))
        if blend.order is not None:
            # Ranks are among the posts that are submitted, not among those that the weights come from.
            blend = Blend(blend.weights, Order.of(each, blend.level(each), blend.order.weights))
    order = "" if blend.order is None else f", in the order {blend.order.weights[1]:g}"
    print(f"weight of theirs: {blend.weights[1]:g}{order}")
    config = load_params("submit", SubmitConfig, args.params)
    with atomic_directory(args.out) as out:
        write_files(ids, blend.apply(each).tolist(), config, out)


def matched_rows(predictions: pl.DataFrame, posts: pl.DataFrame, theirs: Path) -> pl.DataFrame:
    """(fold, pid, label, ours, theirs) of the posts that `matched` scores, sorted by fold and pid.

    Args:
        predictions: contract PREDICTIONS; seeds and repeats are averaged.
        posts: contract POSTS.
        theirs: file of exactly those posts, in any order.

    Raises:
        DataError: their file lacks a post, holds another or is broken; or `matched` was not fitted.
    """
    ours = (
        predictions.filter(scheme=SCHEME, model=MODEL)
        .sort(PREDICTIONS.key)
        .group_by("fold", "pid", maintain_order=True)
        .agg(ours=pl.mean("prediction"))
        .sort("fold", "pid")
        .join(posts.select("pid", "label"), on="pid", how="left", validate="m:1", maintain_order="left")
    )
    if ours.is_empty():
        raise DataError(
            f"no predictions of {SCHEME}", expected=f"`{SCHEME}` in stack.schemes", fix="give --weight instead"
        )
    ids = (ID_PREFIX + ours["pid"]).to_list()
    found = read_scores(theirs, list(dict.fromkeys(ids)), in_order=False)
    return ours.with_columns(theirs=pl.Series([found[post] for post in ids], dtype=pl.Float64))


def fitted(rows: pl.DataFrame, kind: BlendKind) -> Blend:
    """The blend of `ours` and `theirs` with the least mean absolute error, and under `rank` the best order."""
    each = rows.select("ours", "theirs").to_numpy().T
    sizes = rows.group_by("fold", maintain_order=True).len()["len"].to_list()
    return Blend.fit(each, rows["label"].to_numpy(), sizes, Target("raw", None), kind, centred=False)


def told(rows: pl.DataFrame, blend: Blend) -> str:
    """Scores of ours, theirs and the blend on the rows that its weight was fitted on: the blend's are flattered."""
    each: Array = rows.select("ours", "theirs").to_numpy().T
    cuts = rows["fold"].to_numpy().astype(np.int64)
    lines = []
    for name, values in (("ours", each[0]), ("theirs", each[1]), ("blend", blend.apply(each))):
        found = score(rows["label"].to_numpy(), values, cuts)
        src = "-" if found["src"] is None else f"{found['src']:.4f}"
        lines.append(f"{name:8}SRC {src}  MAE {found['mae']:.4f}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
