"""Which groups of signals pay: the stack with each group of `stack.columns.signals`, on the cuts before `report`.

    python -m benchmarks.signals                                     # of the run in this folder
    python -m benchmarks.signals --folder ../run --only history rhythm+picture --shapes whole --out signals.csv

Three shapes of the data set: whole; users relabelled, ten in one; a random half of the second-level classes. Each has
cuts of its own (scheme `matched` with at least CUTS, all before the run's `report` begins) and features made anew. A
score is the mean over the cuts, an interval is over users, of the difference to the stack without any group, on the
same draws. Every fit is cached below .state/benchmarks: remove that after a change of code. Needs `dvc repro
embed_posts`.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl

from benchmarks.systems import Array, FoldData, Project, System, compare, ours
from popularity.config import PARAMS_FILE, load_params
from popularity.errors import ConfigError
from popularity.features import FeaturizeParams, featurize
from popularity.files import STATE_ROOT, atomic_directory, atomic_path, fingerprint, write_text
from popularity.schema import IMAGES, USERS, read_table
from popularity.splits import SplitParams, make_splits
from popularity.stack.matrix import Signal
from popularity.stage import run

logger = logging.getLogger(__name__)

SCHEME = "matched"
CUTS = 3
MERGED = 10  # users in one
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


def whole(posts: pl.DataFrame) -> pl.DataFrame:
    return posts


def coarse_users(posts: pl.DataFrame) -> pl.DataFrame:
    """The posts with MERGED users, drawn at random, under one name."""
    users = posts["uid"].unique().sort()
    group = np.random.default_rng(0).permutation(len(users)) // MERGED
    names = dict(zip(users.to_list(), (f"{number}@N00" for number in group), strict=True))
    return posts.with_columns(uid=pl.col("uid").replace_strict(names))


def half_classes(posts: pl.DataFrame) -> pl.DataFrame:
    """The posts of a random half of the second-level classes."""
    kept = posts["subcategory"].unique().sort().sample(fraction=0.5, shuffle=True, seed=0)
    return posts.filter(pl.col("subcategory").is_in(kept.implode()))


SHAPES: Mapping[str, Callable[[pl.DataFrame], pl.DataFrame]] = {
    "whole": whole,
    "coarse users": coarse_users,
    "half the classes": half_classes,
}


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
    images = read_table(args.folder / "data/interim/images.parquet", IMAGES)
    systems = {name: groups_of(name) for name in (REFERENCE, *args.only)}
    if not any(column.startswith("picture.") for column in project.blocks.scalars.columns):
        logger.warning("no data/embeddings/image/statistics.parquet: rows with the group picture are left out")
        systems = {name: groups for name, groups in systems.items() if "picture" not in groups}
    tables: list[pl.DataFrame] = []
    for name in args.shapes:
        shape = _shape(SHAPES[name](project.posts), images, project, args.params)
        scored = shape.run({system: _system(shape, groups) for system, groups in systems.items()}, SCHEME)
        tables.append(compare(scored, REFERENCE, resamples=args.resamples).with_columns(scheme=pl.lit(name)))
    table = pl.concat(tables).rename({"scheme": "shape"})
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=170, tbl_hide_dataframe_shape=True, float_precision=4):
        print(table)
    if args.out is not None:
        write_text(args.out, table.write_csv())


def _shape(posts: pl.DataFrame, images: pl.DataFrame, project: Project, params: Path) -> Project:
    """The project of `posts`: its cuts alone, and their features, which are made once."""
    split = load_params("split", SplitParams, params)
    reported = project.splits.filter((pl.col("scheme") == "report") & (pl.col("role") == "score")).select("pid")
    start = reported.join(project.posts, on="pid", how="left", validate="1:1")["posted_at"].min()
    train = posts.filter(split="train")
    later = train.filter(pl.col("posted_at") >= start).height  # a shape's `report` begins where the run's does
    wanted = replace(split, cuts=max(CUTS, split.cuts), report_share=later / train.height)
    splits = make_splits(posts, wanted)[0].filter(pl.col("scheme") == SCHEME)
    featurized = load_params("featurize", FeaturizeParams, params)
    key = fingerprint(asdict(featurized), posts.write_json(), splits.write_json())
    folder = STATE_ROOT / "benchmarks/signals" / key
    if not folder.exists():
        with atomic_directory(folder) as out:
            pictures = images.join(posts.select("pid"), on="pid", how="semi", maintain_order="left")
            users = read_table(project.folder / "data/interim/users.parquet", USERS)
            featurize(posts, pictures, splits, featurized, out, users)
    return replace(project, posts=posts, splits=splits, features=folder)


def _system(shape: Project, signals: tuple[Signal, ...]) -> System:
    """The stack with those groups, its predictions kept beside the features of the shape."""
    params = replace(shape.params, columns=replace(shape.params.columns, signals=signals))

    def predict(data: FoldData) -> Array:
        path = shape.features / "fits" / f"{fingerprint(asdict(params), data.fold.fold)}.parquet"
        if not path.exists():
            with atomic_path(path) as partial:
                pl.DataFrame({"prediction": ours(replace(data, params=params))}).write_parquet(partial)
        return pl.read_parquet(path)["prediction"].to_numpy()

    return predict


if __name__ == "__main__":
    run(main)
