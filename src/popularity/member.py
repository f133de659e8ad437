"""Makes another run, or a teammate's predictions, a member of the ensemble: python -m popularity.member NAME.

    python -m popularity.member seed1 --run ../seed1
    python -m popularity.member theirs --submission theirs.csv --forward on_forward.csv

Start it in the root of the repository after `dvc repro split`. FOLDER is another folder of the repository where `dvc
repro` finished on the same data set and splits, with another seed or encoder. FILE is a teammate's submission in either
official form. Its weight is fitted on their predictions of the valid posts of `forward` (same form, any order, each
post once), made without the labels of those posts: by a model of the train rows of the earliest split in which the post
is valid. Writes data/members/NAME.parquet. Stage `ensemble` reads it once `ensemble.members` names it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from popularity.core import paths
from popularity.core.config import PARAMS_FILE
from popularity.core.contracts import (
    FOLDS,
    FORWARD,
    MAIN_MODEL,
    MEMBER_PREDICTIONS,
    POSTS,
    PREDICTIONS,
    REFIT,
    read_table,
    write_table,
)
from popularity.core.errors import DataError
from popularity.core.metrics import score
from popularity.core.run_chain import refuse_mixed_run
from popularity.core.stage import run
from popularity.ensemble.members import RESERVED
from popularity.submission.ids import ids_of_run
from popularity.submission.validate import ID_PREFIX, read_scores

KEY = list(MEMBER_PREDICTIONS.key)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m popularity.member", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="letters, digits and underscores")
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--run", type=Path, metavar="FOLDER", help="another run on the same data set and splits")
    either.add_argument("--submission", type=Path, metavar="FILE", help="their submission, .json or .csv")
    parser.add_argument(
        "--forward", type=Path, metavar="FILE", help="their predictions of the valid posts of `forward`"
    )
    args = parser.parse_args(argv)
    if not re.fullmatch(r"\w+", args.name, re.ASCII) or args.name in RESERVED:
        parser.error(f"{args.name}: expected letters, digits and underscores, and none of {', '.join(RESERVED)}")
    if (args.forward is None) != (args.submission is None):
        parser.error("--submission and --forward belong together")
    posts = read_table(Path(paths.POSTS), POSTS)
    valid = read_table(Path(paths.SPLITS), FOLDS).filter(role="valid").select(KEY)
    if args.run:
        member = of_run(args.run, valid)
    else:
        member = of_files(args.submission, args.forward, valid, ids_of_run(PARAMS_FILE, Path(paths.POSTS)))
    print(scores_text(member, posts))
    file = Path(paths.MEMBER_FILES, f"{args.name}.parquet")
    write_table(member.sort(KEY), file, MEMBER_PREDICTIONS)
    print(f"{file} written\nnext: add {args.name} to ensemble.members in {PARAMS_FILE}, then dvc repro")


def of_run(folder: Path, valid: pl.DataFrame) -> pl.DataFrame:
    """The predictions (contract MEMBER_PREDICTIONS, not sorted) of another run, means over its seeds.

    Args:
        folder: of the run.
        valid: (scheme, fold, pid) of our valid rows.

    Raises:
        DataError: the run has other valid posts in a scheme, or did not fit `forward`.
        ContractError: its outputs are of different runs.
    """
    refuse_mixed_run(folder, (paths.ENSEMBLE_OUTPUTS,))
    file = folder / paths.ENSEMBLE_PREDICTIONS
    rows = read_table(file, PREDICTIONS).filter(model=MAIN_MODEL).sort(PREDICTIONS.key)
    member = rows.group_by(KEY, maintain_order=True).agg(pl.mean("prediction")).select(list(MEMBER_PREDICTIONS.columns))
    for scheme in (FORWARD, REFIT):
        if member.filter(scheme=scheme).is_empty():
            raise DataError(
                f"no predictions of {scheme}", file=file, expected=f"`{scheme}` in stack.schemes of that run"
            )
    ours = valid.filter(pl.col("scheme").is_in(member["scheme"].unique().to_list()))
    if not ours.sort(KEY).equals(member.select(KEY).sort(KEY)):
        raise DataError(
            "other valid posts than ours", file=file,
            expected="a run on the same data set with the same section split",
        )  # fmt: skip
    return member


def of_files(submission: Path, forward: Path, valid: pl.DataFrame, ids: Sequence[str]) -> pl.DataFrame:
    """The predictions (contract MEMBER_PREDICTIONS, not sorted) of two files in the official form.

    Args:
        submission: of the test posts, in their order.
        forward: of the valid posts of `forward`, each once.
        valid: (scheme, fold, pid) of our valid rows.
        ids: of the test posts, in their order.

    Raises:
        DataError: a file lacks a post, has another one, or is broken.
    """
    rows = valid.filter(pl.col("scheme").is_in([FORWARD, REFIT]))
    known = (ID_PREFIX + rows.filter(scheme=FORWARD)["pid"].unique(maintain_order=True)).to_list()
    scores = {
        FORWARD: read_scores(forward, known, in_order=False),
        REFIT: read_scores(submission, ids, in_order=True),
    }
    parts = [
        rows.filter(scheme=scheme).with_columns(
            prediction=(ID_PREFIX + pl.col("pid")).replace_strict(own, return_dtype=pl.Float64)
        )
        for scheme, own in scores.items()
    ]
    return pl.concat(parts).select(list(MEMBER_PREDICTIONS.columns))


def scores_text(member: pl.DataFrame, posts: pl.DataFrame) -> str:
    """A line with the member's scores on `forward`.

    Args:
        member: contract MEMBER_PREDICTIONS.
        posts: contract POSTS.
    """
    rows = member.filter(scheme=FORWARD).join(posts.select("pid", "label"), on="pid", how="left", validate="m:1")
    folds = rows["fold"].to_numpy().astype(np.int64)
    found = score(rows["label"].to_numpy(), rows["prediction"].to_numpy(), folds)
    src = "-" if found["src"] is None else f"{found['src']:.4f}"
    return f"{FORWARD}: SRC {src}  MAE {found['mae']:.4f}"


if __name__ == "__main__":
    run(main)
