"""Does a blend of several networks pay? Runs with another seed or encoder, each with its own stack, on the cuts.

    python -m benchmarks.ensemble --runs ../seed1 ../seed2 ../lite2
    python -m benchmarks.ensemble --folder ../run --runs ../seed1 --out ensemble.csv

A run is a folder in which `dvc repro embed_posts` ended on the same data set; its vectors go through the stack with the
parameters, splits and features of the first run. Rows beside the runs, scored as in benchmarks.cuts:

    as many boosters    the first run with the boosters of all: what an ensemble must beat, for it costs no network
    mean                of the runs' predictions
    weighted            as `python -m popularity.blend` fits them, but for each cut on the other cuts
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import polars as pl

from benchmarks.cuts import OURS, Change, Kept, cut_table, printed, stack_row, with_splits
from benchmarks.systems import METRICS, FoldData, Project
from popularity.blend import fitted
from popularity.config import PARAMS_FILE, load_params
from popularity.errors import DataError
from popularity.features import FeaturizeParams
from popularity.files import atomic_path
from popularity.splits import SplitParams, make_splits
from popularity.stage import run

SCHEME = "matched"
MORE = "as many boosters"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="project folder with data and params.yaml")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="folders of further networks")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="CSV of everything")
    args = parser.parse_args(argv)
    params = args.folder / PARAMS_FILE
    project = Project.read(args.folder)
    splits = make_splits(project.posts, load_params("split", SplitParams, params))[0].filter(scheme=SCHEME)
    project = with_splits(project, splits, load_params("featurize", FeaturizeParams, params))
    rows = _predicted(project, args.folder, {OURS: _as_it_is, MORE: partial(_more_boosters, 1 + len(args.runs))})
    for folder in args.runs:
        other = Project.read(folder)
        if not other.posts["pid"].equals(project.posts["pid"]):
            raise DataError("other posts than those of the first run", file=folder, expected="the same data set")
        found = _predicted(replace(project, blocks=other.blocks), folder, {f"{folder}": _as_it_is})
        rows = rows.join(found.select("cut", "pid", f"{folder}"), on=["cut", "pid"], validate="1:1")
    networks = [OURS, *map(str, args.runs)]
    rows = rows.with_columns(pl.mean_horizontal(networks).alias("mean"))
    rows = with_blend(rows, networks, "weighted")
    table = cut_table(rows, args.resamples)
    for metric in METRICS:
        print(f"\n{metric.upper()}\n{printed(table, metric)}")
    if args.out:
        with atomic_path(args.out) as partial_out:
            table.write_csv(partial_out)


def with_blend(rows: pl.DataFrame, networks: Sequence[str], name: str) -> pl.DataFrame:
    """`rows` of Project.run with the column `name`: a blend of `networks`, weighted for each cut by the other cuts."""
    parts = []
    for cut in rows["cut"].unique().sort():
        here = rows.filter(cut=cut)
        others = rows.filter(pl.col("cut") != cut).sort("cut", maintain_order=True)
        blend = fitted(others.select(pl.col("cut").alias("fold"), "pid", "label", *networks))
        each = here.select(networks).to_numpy().T
        parts.append(here.with_columns(pl.Series(name, blend.apply(each))))
    return pl.concat(parts)


def _predicted(project: Project, folder: Path, changes: dict[str, Change]) -> pl.DataFrame:
    kept = Kept.below(folder)
    return project.run({name: partial(kept, stack_row(change)) for name, change in changes.items()}, SCHEME)


def _as_it_is(data: FoldData) -> FoldData:
    return data


def _more_boosters(times: int, data: FoldData) -> FoldData:
    return replace(data, params=replace(data.params, seeds=times * data.params.seeds))


if __name__ == "__main__":
    run(main)
