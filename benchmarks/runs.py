"""Compares finished runs on the same data set: SRC and MAE of `stack`, and the interval of each difference.

    python -m benchmarks.runs ../before .                        # the first folder is the reference
    python -m benchmarks.runs ../before . --schemes holdout --model metadata --csv runs.csv

A folder is a project in which stage `stack` has run. An interval is over users, of the difference on the same draws.
Posts and labels must be the same; splits too, so the posts of a scheme are those of the reference.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from benchmarks.systems import METRICS, POST_COLUMNS, compare
from benchmarks.tables import add_csv_flag, signed_interval, text_table, verdict, write_csv
from popularity.core import paths
from popularity.core.contracts import FORWARD, HOLDOUT, MAIN_MODEL, POSTS, PREDICTIONS, TIME_SCHEMES, read_table
from popularity.core.errors import DataError
from popularity.core.stage import run


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="project folders, the reference first")
    parser.add_argument("--schemes", nargs="+", default=[HOLDOUT, FORWARD], help="that all runs have fitted")
    parser.add_argument("--model", default=MAIN_MODEL, help="in predictions.parquet")
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap draws of users")
    add_csv_flag(parser)
    args = parser.parse_args(argv)
    first = str(args.folders[0])
    table = []
    for scheme in args.schemes:
        rows = predictions_of(args.folders, scheme, args.model)
        found = compare(rows, first, resamples=args.resamples)
        for metric in METRICS:
            for one in found.filter(metric=metric).iter_rows(named=True):
                reference = one["system"] == first
                table.append(
                    {
                        "scheme": scheme,
                        "run": one["system"],
                        "metric": metric,
                        "score": one["score"],
                        f"minus {first}": "" if reference else signed_interval(*(one[name] for name in BOUNDS)),
                        "verdict": "" if reference else verdict(metric, one["low"], one["high"]),
                        "posts": one["posts"],
                        "users": one["users"],
                    }
                )
    print(text_table(table))
    write_csv(table, args.csv)


BOUNDS = ("difference", "low", "high")


def predictions_of(folders: Sequence[Path], scheme: str, model: str) -> pl.DataFrame:
    """(POST_COLUMNS, a column a folder) of a scheme: predictions are means over seeds.

    Args:
        folders: project folders.
        scheme: of the splits.
        model: in predictions.parquet.

    Raises:
        DataError: a run has not fitted the scheme or model, or its posts are others than those of the first.
    """
    posts = read_table(folders[0] / paths.POSTS, POSTS).select("pid", "uid", "label")
    rows: pl.DataFrame | None = None
    for folder in folders:
        own = read_table(folder / paths.ENSEMBLE_PREDICTIONS, PREDICTIONS).filter(scheme=scheme, model=model)
        own = own.group_by("pid", "fold").agg(pl.mean("prediction").alias(str(folder))).sort("fold", "pid")
        if own.is_empty() or (rows is not None and not own.select("pid", "fold").equals(rows.select("pid", "fold"))):
            raise DataError(
                f"{folder / paths.ENSEMBLE_PREDICTIONS}: no prediction of {model} in {scheme} or other posts than in "
                f"{folders[0]}\n  expected: runs on the same data set and splits\n  next: `dvc repro ensemble` in both"
            )
        rows = own if rows is None else rows.with_columns(own[str(folder)])
    assert rows is not None
    keyed = rows.join(posts, on="pid", how="left", validate="m:1", maintain_order="left").with_columns(
        scheme=pl.lit(scheme), fold=pl.col("fold").cast(pl.Int64) if scheme in TIME_SCHEMES else pl.lit(0, pl.Int64)
    )
    return keyed.select(*POST_COLUMNS, *map(str, folders))


if __name__ == "__main__":
    run(main)
