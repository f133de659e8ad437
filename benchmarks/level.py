"""Which choices of level and learners pay, each by itself, for MAE and for SRC apart.

    python -m benchmarks.level                                       # of the run in this folder, at params.yaml
    python -m benchmarks.level --folder ../run --seeds 1 --only "level residual" linear --out level.csv

Every row is one change to the plain stack (no level, weights that halve in a year, LightGBM alone) or, below, to the
stack whose level is `residual`. They are scored on the cuts of `matched`, all before `report` begins; a score is the
mean over the cuts, and an interval is over users, of the difference on the same draws. Splits and features are made
here from the parameters; finished predictions are kept in .state/benchmarks of the folder. Needs `dvc repro
embed_posts`, and rows with CatBoost the optional extra.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import polars as pl

from benchmarks.cuts import Kept, stack_row, with_splits
from benchmarks.systems import METRICS, FoldData, Project, compare
from popularity.config import PARAMS_FILE, load_params
from popularity.errors import ConfigError
from popularity.features import FeaturizeParams
from popularity.files import atomic_path
from popularity.splits import SplitParams, make_splits
from popularity.stack import StackParams
from popularity.stage import run

PLAIN, LEVEL = "plain", "level residual"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="project folder with data and params.yaml")
    parser.add_argument("--params", type=Path, help="by default the folder's params.yaml")
    parser.add_argument("--seeds", type=int, help="instead of stack.seeds")
    parser.add_argument("--only", nargs="+", help="rows beside the two references; by default all")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="the table as CSV")
    args = parser.parse_args(argv)
    file = args.params or args.folder / PARAMS_FILE
    project = Project.read(args.folder, file)
    project = replace(project, params=replace(project.params, seeds=args.seeds or project.params.seeds))
    systems = choices(project.params)
    if unknown := set(args.only or ()) - set(systems):
        raise ConfigError(f"--only {' '.join(sorted(unknown))}: expected of {', '.join(systems)}")
    chosen = {name: params for name, params in systems.items() if name in {PLAIN, LEVEL, *(args.only or systems)}}
    splits = make_splits(project.posts, load_params("split", SplitParams, file))[0].filter(
        pl.col("scheme") == "matched"
    )
    project = with_splits(project, splits, load_params("featurize", FeaturizeParams, file))
    kept = Kept.below(args.folder)
    rows = project.run(
        {name: partial(kept, stack_row(partial(_with, params=params))) for name, params in chosen.items()}, "matched"
    )
    table = told(rows, args.resamples)
    if args.out:
        with atomic_path(args.out) as partial_out:
            table.write_csv(partial_out)
    with pl.Config(
        tbl_rows=-1, tbl_cols=-1, tbl_width_chars=200, fmt_str_lengths=60, float_precision=4,
        tbl_hide_dataframe_shape=True, tbl_hide_column_data_types=True,
    ):  # fmt: skip
        for metric in METRICS:
            print(metric.upper())
            print(table.filter(metric=metric).drop("metric"))


def choices(params: StackParams) -> Mapping[str, StackParams]:
    """The stack with each choice by itself, by name."""
    plain = replace(
        params, level="none", half_life_days=365.0, learners=("lightgbm",),
        target="raw",
    )  # fmt: skip
    level = replace(plain, level="residual")
    rows = {
        PLAIN: plain,
        "normal scores": replace(plain, target="normal"),
        LEVEL: level,
        "residual, normal scores": replace(level, target="normal"),
        "residual, no recency": replace(level, half_life_days=0.0),
        "linear": replace(level, learners=("linear",)),
        "lightgbm + linear": replace(level, learners=("lightgbm", "linear")),
    }
    if find_spec("catboost") is not None:
        rows |= {
            "catboost": replace(level, learners=("catboost",)),
            "lightgbm + catboost": replace(level, learners=("lightgbm", "catboost")),
            "catboost + linear": replace(level, learners=("catboost", "linear")),
            "all three": replace(level, learners=("lightgbm", "catboost", "linear")),
        }
    return rows


def told(rows: pl.DataFrame, resamples: int) -> pl.DataFrame:
    """A line a metric and system: its score in each cut and their mean, and that minus each of the two references."""
    table = compare(rows, PLAIN, resamples=resamples).select("metric", "system", pl.col("score").alias("mean"))
    for cut in rows["cut"].unique().sort():
        own = compare(rows.filter(cut=cut), PLAIN, resamples=1).select("metric", "system", "score")
        table = table.join(own.rename({"score": f"cut {cut}"}), on=["metric", "system"], validate="1:1")
    for reference in (PLAIN, LEVEL):
        differences = compare(rows, reference, resamples=resamples)
        table = table.join(
            differences.select(
                "metric",
                "system",
                pl.format("{} [{}, {}]", *(_signed(name) for name in (f"minus {reference}", "low", "high"))).alias(
                    f"minus {reference}"
                ),
            ),
            on=["metric", "system"],
            validate="1:1",
        )
    return table


def _signed(column: str) -> pl.Expr:
    """A difference as text, with its sign."""
    return pl.col(column).map_elements(lambda value: f"{value:+.4f}", return_dtype=pl.String)


def _with(data: FoldData, params: StackParams) -> FoldData:
    return replace(data, params=params)


if __name__ == "__main__":
    run(main)
