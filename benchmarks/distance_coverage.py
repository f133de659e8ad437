"""Coverage of the prediction intervals by distance: how many days after the last train row of its split a post lies.

    python -m benchmarks.distance_coverage                          # of the run in this folder
    python -m benchmarks.distance_coverage ../memes ../series --nominal .8 --csv coverage.csv

A folder is a project in which stage `ensemble` has run. The intervals of a forward split are calibrated on the other
forward splits, those of `holdout` on all of them, as stage `evaluate` calibrates. The bins hold equal numbers of posts.
The bounds of a coverage are those of a 95 % bootstrap over users. `bias` is the mean of prediction - label: where it
grows with the distance, the forecast of the trend leaves the labels, and no width of the intervals mends that.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.tables import add_csv_flag, text_table, write_csv
from popularity.core import paths
from popularity.core.contracts import FOLDS, FORWARD, HOLDOUT, MAIN_MODEL, POSTS, PREDICTIONS, TIME_SCHEMES, read_table
from popularity.core.errors import DataError
from popularity.core.stage import run
from popularity.evaluation.bootstrap import interval, resample_means
from popularity.evaluation.conformal import calibrate
from popularity.evaluation.scores import collect

PREDICTION = f"prediction:{MAIN_MODEL}"
CONFIDENCE = 0.95


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", default=[Path()], help="project folders")
    parser.add_argument("--nominal", type=float, default=0.9, help="coverage that the intervals should have")
    parser.add_argument("--bins", type=int, default=4, help="of the distance, in each scheme")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap draws of users")
    add_csv_flag(parser)
    args = parser.parse_args(argv)
    table = [row for folder in args.folders for row in coverage_rows(folder, args.nominal, args.bins, args.resamples)]
    print(text_table(table, digits=3))
    write_csv(table, args.csv)


def valid_rows(folder: Path) -> pl.DataFrame:
    """(scheme, fold, pid, uid, days, label, prediction, error_scale) of the valid posts of the splits in time.

    Raises:
        DataError: stage ensemble has not run.
    """
    file = folder / paths.ENSEMBLE_PREDICTIONS
    if not file.is_file():
        raise DataError("missing", file=file, expected="the predictions of a finished run", fix="dvc repro ensemble")
    posts = read_table(folder / paths.POSTS, POSTS)
    in_time = pl.col("scheme").is_in(TIME_SCHEMES)
    splits = read_table(folder / paths.SPLITS, FOLDS).filter(in_time)
    predictions = read_table(file, PREDICTIONS).filter(in_time, model=MAIN_MODEL)
    train = splits.filter(role="train").join(posts, on="pid", how="left", validate="m:1")
    last = train.group_by("scheme", "fold").agg(last=pl.max("posted_at"))
    scored = [one.rows.with_columns(scheme=pl.lit(one.scheme)) for one in collect(posts, splits, predictions)]
    rows = pl.concat(scored).join(last, on=["scheme", "fold"], how="left", validate="m:1")
    days = (pl.col("posted_at") - pl.col("last")).dt.total_seconds() / 86_400
    return rows.select("scheme", "fold", "pid", "uid", "label", "error_scale", days=days, prediction=PREDICTION)


def coverage_rows(folder: Path, nominal: float, bins: int, resamples: int) -> Iterator[dict[str, Any]]:
    """A row a scheme and bin of the distance."""
    rows = valid_rows(folder)
    for scheme in (FORWARD, HOLDOUT):
        own = pl.concat(
            _with_intervals(part, rows.filter((pl.col("scheme") == FORWARD) & ~_same_split(part)), nominal)
            for part in rows.filter(scheme=scheme).partition_by("fold", maintain_order=True)
        )
        edges = np.unique(np.quantile(own["days"].to_numpy(), np.linspace(0, 1, bins + 1)))
        index = np.searchsorted(edges[1:-1], own["days"].to_numpy(), side="left")
        for number, part in enumerate(own.filter(pl.Series(index == number)) for number in range(len(edges) - 1)):
            users = np.unique(part["uid"].to_numpy().astype(str), return_inverse=True)[1].astype(np.int64)
            inside = part["inside"].cast(pl.Float64).to_numpy()
            drawn = resample_means(inside, users, resamples=resamples, seed=0)
            low, high = interval(drawn, CONFIDENCE) if users.any() else (None, None)
            yield {
                "run": folder.resolve().name, "scheme": scheme,
                "days ahead": f"{edges[number]:.0f} to {edges[number + 1]:.0f}",
                "posts": part.height, "users": part["uid"].n_unique(), "nominal": nominal,
                "coverage": float(inside.mean()), "low": low, "high": high,
                "width": float(part["width"].mean()),  # type: ignore[arg-type]
                "bias": float((part["prediction"] - part["label"]).mean()),  # type: ignore[arg-type]
            }  # fmt: skip


def _same_split(part: pl.DataFrame) -> pl.Expr:
    return pl.col("scheme").eq(part["scheme"][0]) & pl.col("fold").eq(part["fold"][0])


def _with_intervals(part: pl.DataFrame, others: pl.DataFrame, nominal: float) -> pl.DataFrame:
    """The rows with `inside` and `width` of their intervals, calibrated on other rows; on the own ones without others.

    The interval is infinite, and holds the label, where there are too few rows for the coverage.
    """
    used = others if others.height else part
    label, prediction, scale = (used[name].to_numpy() for name in ("label", "prediction", "error_scale"))
    half = calibrate(label, prediction, scale, coverages=(nominal,)).half_width(nominal, part["error_scale"].to_numpy())
    widths = np.full(part.height, np.inf) if half is None else half
    error = np.abs((part["label"] - part["prediction"]).to_numpy())
    return part.with_columns(inside=pl.Series(error <= widths), width=pl.Series(2 * widths))


if __name__ == "__main__":
    run(main)
