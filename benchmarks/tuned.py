"""Is the tuned stack better than the one of params.yaml where neither was chosen: on the scheme `report`?

Both are fitted with the same seeds. A score is the mean over the seeds; the interval of the difference is over users
and seeds, on the same draws.

    python -m benchmarks.tuned
    python -m benchmarks.tuned --folder ../other --seeds 5
    python -m benchmarks.tuned --schemes report matched user     # the last two chose: they flatter the tuned one
    python -m benchmarks.tuned --tuned elsewhere/best_params.yaml

Needs `dvc repro tune`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from popularity.config import PARAMS_FILE, load_params
from popularity.errors import DataError
from popularity.evaluation.metrics import FloatArray, score
from popularity.evaluation.probes import Estimate, paired_interval
from popularity.schema import FOLDS, POSTS, read_table
from popularity.splits import rows_of
from popularity.stack import Blocks, StackParams, read_blocks
from popularity.stack.fit import fit_and_predict, load_fold
from popularity.stack.parallel import in_order
from popularity.stack.scores import cuts_of
from popularity.stage import run
from popularity.tuning.stack import StackInputs

SCHEMES = ("report", "matched", "user")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="project folder with data and params.yaml")
    parser.add_argument("--tuned", type=Path, help="best_params.yaml; by default that of the project's stage tune")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=["report"])
    parser.add_argument("--resamples", type=int, default=1000)
    args = parser.parse_args(argv)
    tuned = args.tuned or args.folder / "models/tuning/best_params.yaml"
    if not tuned.is_file():
        raise DataError("no tuned parameters", file=tuned, fix="dvc repro tune")
    inputs = StackInputs.below(args.folder)
    posts, blocks = read_table(inputs.posts, POSTS), read_blocks(inputs.image, inputs.text, inputs.prototype)
    stacks = [
        replace(load_params("stack", StackParams, args.folder / PARAMS_FILE, patch), seeds=args.seeds)
        for patch in (None, tuned)
    ]
    rows: list[dict[str, object]] = []
    for scheme in args.schemes:
        default, best = (_predict(scheme, posts, inputs, blocks, stack) for stack in stacks)
        facts = default.select("pid").join(posts, on="pid", how="left", validate="m:1", maintain_order="left")
        matrices = [frame.drop("repeat", "fold", "pid").to_numpy() for frame in (default, best)]
        labels, users, cuts = facts["label"].to_numpy(), facts["uid"].to_numpy(), cuts_of(scheme, default["fold"])
        rows += _compare(scheme, labels, users, matrices, cuts, args.resamples)
    with pl.Config(tbl_rows=-1, tbl_cols=-1, fmt_str_lengths=60, tbl_width_chars=140, tbl_hide_dataframe_shape=True):
        print(pl.DataFrame(rows))


def _predict(scheme: str, posts: pl.DataFrame, inputs: StackInputs, blocks: Blocks, stack: StackParams) -> pl.DataFrame:
    """Repeat, fold, pid, and a column of predictions a seed."""
    splits = read_table(inputs.splits, FOLDS)
    folds = (load_fold(key, rows, posts, inputs.features) for key, rows in rows_of(splits, [scheme]))
    fit = partial(fit_and_predict, blocks=blocks, params=stack)
    parts = list(in_order(fit, folds, at_once=stack.at_once, threads=stack.threads))
    key = ["repeat", "fold", "pid"]
    long = pl.concat(parts).select(*key, "seed", "prediction")
    return long.pivot("seed", index=key, values="prediction", sort_columns=True).sort("repeat", "pid")


def _compare(
    scheme: str,
    labels: FloatArray,
    users: FloatArray,
    matrices: list[FloatArray],
    cuts: npt.NDArray[np.int64] | None,
    resamples: int,
) -> list[dict[str, object]]:
    """A row a metric: default, tuned, and the difference with its interval."""
    default, tuned = matrices
    found: list[dict[str, object]] = []
    for metric in ("src", "mae"):
        difference: Estimate = paired_interval(
            labels, tuned, default, users,
            metric="src" if metric == "src" else "mae", resamples=resamples, confidence=0.95, seed=0, cuts=cuts,
        )  # fmt: skip
        means = [
            float(np.mean([score(labels, column, cuts)[metric] or 0.0 for column in matrix.T])) for matrix in matrices
        ]
        low, high = (np.nan if bound is None else bound for bound in (difference.low, difference.high))
        better = np.sign(low) * (1 if metric == "src" else -1)
        found.append(
            {
                "scheme": scheme,
                "metric": metric.upper(),
                "default": means[0],
                "tuned": means[1],
                "tuned - default": f"{difference.value:+.4f} [{low:+.4f}, {high:+.4f}]",
                "verdict": "" if not low * high > 0 else "better" if better > 0 else "worse",
            }
        )
    return found


if __name__ == "__main__":
    run(main)
