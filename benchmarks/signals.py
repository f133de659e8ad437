"""Which groups of signals pay: the stack with each group of `stack.columns.signals`, on the cuts before `report`.

    python -m benchmarks.signals                                     # of the run in this folder
    python -m benchmarks.signals --folder ../run --only history rhythm+image --shapes whole --out signals.csv

Shapes of the data set: whole; users relabelled, ten in one; a random half of the second-level classes; a random third
of the users. Each has cuts of its own (scheme `matched` with at least CUTS, all before the run's `report` begins) and
features made anew. A score is the mean over the cuts, an interval is over users, of the difference to the stack without
any group, on the same draws. Finished predictions are kept in .state/benchmarks of the folder. Needs `dvc repro
embed_posts`.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import polars as pl

from benchmarks.cuts import Change, Kept, stack_row, with_splits
from benchmarks.shapes import SHAPES, reshaped
from benchmarks.systems import Project, compare
from popularity.config import PARAMS_FILE, load_params
from popularity.errors import ConfigError
from popularity.features import FeaturizeParams
from popularity.files import write_text
from popularity.splits import SplitParams
from popularity.stack.matrix import Signal
from popularity.stage import run

logger = logging.getLogger(__name__)

SCHEME = "matched"
CUTS = 3
GROUPS: tuple[Signal, ...] = get_args(Signal)
REFERENCE = "none"
DEFAULT = (*GROUPS, "all", *(f"all-{group}" for group in GROUPS))


def groups_of(system: str) -> tuple[Signal, ...]:
    """What a row's name says: `none`, `all`, `all-<group>`, or groups joined by +."""
    if system in (REFERENCE, "all"):
        return () if system == REFERENCE else GROUPS
    named = system.removeprefix("all-").split("+")
    if not set(named) <= set(GROUPS):
        raise ConfigError(f"{system}: expected all, all-<group>, or some of {', '.join(GROUPS)} joined by +")
    return tuple(group for group in GROUPS if (group in named) != system.startswith("all-"))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="project folder with data")
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    parser.add_argument("--only", nargs="+", default=list(DEFAULT), help="rows: groups joined by +, all, all-<group>")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--blocks", nargs="+", help="instead of stack.columns.blocks")
    parser.add_argument("--threads", type=int, help="instead of stack.threads")
    parser.add_argument("--seeds", type=int, help="boosters per fit, instead of stack.seeds: steadier rows")
    parser.add_argument("--out", type=Path, help="CSV of the table")
    parser.add_argument("--resamples", type=int, default=1000)
    args = parser.parse_args(argv)
    project = Project.read(args.folder, args.params)
    columns = replace(project.params.columns, blocks=tuple(args.blocks or project.params.columns.blocks))
    threads, seeds = args.threads or project.params.threads, args.seeds or project.params.seeds
    params = replace(project.params, columns=columns, threads=threads, seeds=seeds)
    project = replace(project, params=params)
    systems = {name: groups_of(name) for name in (REFERENCE, *args.only)}
    if not any(column.startswith("picture.") for column in project.blocks.scalars.columns):
        logger.warning("no data/embeddings/image/statistics.parquet: rows with the group image are left out")
        systems = {name: groups for name, groups in systems.items() if "image" not in groups}
    kept = Kept.below(args.folder)
    chosen = {system: partial(kept, stack_row(with_signals(groups))) for system, groups in systems.items()}
    tables: list[pl.DataFrame] = []
    for name in args.shapes:
        scored = shape_of(project, name, args.params).run(chosen, SCHEME)
        tables.append(compare(scored, REFERENCE, resamples=args.resamples).with_columns(scheme=pl.lit(name)))
    table = pl.concat(tables).rename({"scheme": "shape"})
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=170, tbl_hide_dataframe_shape=True, float_precision=4):
        print(table)
    if args.out is not None:
        write_text(args.out, table.write_csv())


def shape_of(project: Project, shape: str, params: Path) -> Project:
    """The cuts of a shape of the run, all before its `report`, and their features."""
    split = load_params("split", SplitParams, params)
    shaped = reshaped(project, shape, replace(split, cuts=max(CUTS, split.cuts)))
    splits = shaped.splits.filter(scheme=SCHEME)
    return with_splits(shaped, splits, load_params("featurize", FeaturizeParams, params))


def with_signals(signals: tuple[Signal, ...]) -> Change:
    """The fold whose stack has those groups."""
    return lambda data: replace(
        data, params=replace(data.params, columns=replace(data.params.columns, signals=signals))
    )


if __name__ == "__main__":
    run(main)
