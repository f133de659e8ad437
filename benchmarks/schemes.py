"""Which validation tells the truth? How each scheme ranks varied systems, and by how much it misses their later score.

    python -m benchmarks.schemes                       # of the run in this folder
    python -m benchmarks.schemes --folder ../run --systems metadata constant user_mean --csv schemes.csv

Each cut of `matched` in turn plays the test part: the data set is truncated to the posts that the cut fits on, with
labels, and those that it scores, without. The functions of the graph split it, make its features and fit every system
in every scheme; `final` then predicts what the schemes had to foretell. So a scheme sees only what is before the cut,
and the posts of `report` are in none. Over the systems, mean over the cuts:

    rank           Spearman's correlation of the promised scores with those that came; each cut's in brackets
    level          promised minus came: its mean, and the mean of its size
    regret         of the system that looked best: how much worse it was than the best

for SRC, for MAE, and for the value by which `select` and `tune` judge: MAE over that of the system `constant`, which is
always there, minus SRC. Finished predictions are kept in .state/benchmarks of the folder. Needs `dvc repro
embed_posts`.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from benchmarks import peers
from benchmarks.rows import (
    Change,
    Row,
    metadata_alone,
    peer_row,
    predicted,
    simple_row,
    stack_row,
    with_splits,
    without_histories,
)
from benchmarks.systems import METRICS, FoldData, Project
from benchmarks.tables import add_csv_flag, text_table, write_csv
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.contracts import FOLDS as SPLITS
from popularity.core.contracts import POSTS, read_table
from popularity.core.errors import DataError
from popularity.core.metrics import loss_of_scores, score, spearman
from popularity.core.stage import run
from popularity.features import FeaturizeParams
from popularity.validation import SplitParams, make_splits

logger = logging.getLogger(__name__)

CUTS, FOLDS = 3, 3  # of the schemes in a truncated data set
NOTHING = 1e-9  # share of `report` there: a single post, for validation may have all that is before the cut
LATE, PLAYED = "holdout", "refit"  # there the unmatched late slice bears the name of `report`
CAME = "came"
VALUE = "value"  # of both metrics; the less, the better
CONSTANT = "constant"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="project folder with data and params.yaml")
    parser.add_argument("--params", type=Path, help="by default the folder's params.yaml")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes; each fits on one thread")
    add_csv_flag(parser)
    args = parser.parse_args(argv)
    params = args.params or args.folder / PARAMS_FILE
    worlds = {cut: truncated(args.folder, params, cut) for cut in range(CUTS)}  # features are made once, then found
    logger.info("posts before each cut: %s", [world.posts["label"].count() for world in worlds.values()])
    work = partial(scores_of, args.folder, params)
    tasks = [(cut, name) for name in dict.fromkeys([*args.systems, CONSTANT]) for cut in worlds]
    with ExitStack() as exits:
        alike: Callable[..., Iterator[pl.DataFrame]] = map
        if args.workers > 1:
            alike = exits.enter_context(ProcessPoolExecutor(args.workers, get_context("spawn"))).map
        done = alike(work, *zip(*tasks, strict=True))
        table = with_value(pl.concat(tqdm(done, total=len(tasks), unit="system and cut")))
    ranked = [row for metric in (*METRICS, VALUE) for row in ranked_schemes(table, metric)]
    for metric in (*METRICS, VALUE):
        print(f"\n{metric.upper()}\n{printed([row for row in ranked if row['metric'] == metric])}")
    write_csv(ranked, args.csv)


@cache
def truncated(folder: Path, params: Path, cut: int) -> Project:
    """The run in `folder` as it was before a cut of `matched`."""
    project = Project.read(folder, params)
    split = replace(load_params("split", SplitParams, params), n_origins=CUTS)
    splits = make_splits(project.posts, split)[0].filter(scheme="forward")
    if splits["fold"].n_unique() < CUTS:
        raise DataError("too few posts for the cuts that take the test part's place", expected=f"{CUTS} of them")
    rows = splits.filter(pl.col("role") != "excluded", fold=cut).select("pid", "role")
    project = replace(project, params=replace(project.params, n_seeds=1, num_threads=1))
    return world_of(project, rows, split, load_params("featurize", FeaturizeParams, params))


def world_of(project: Project, rows: pl.DataFrame, split: SplitParams, features: FeaturizeParams) -> Project:
    """The data set whose training part are the fit rows of `rows` (pid, role), and whose test part the scored ones."""
    is_fit = pl.col("role") == "train"
    posts = project.posts.join(rows, on="pid", how="inner", validate="1:1").sort("pid")
    posts = posts.with_columns(
        split=pl.when(is_fit).then(pl.lit("train")).otherwise(pl.lit("test")), label=pl.when(is_fit).then("label")
    ).select(project.posts.columns)
    splits = make_splits(posts, replace(split, holdout_fraction=NOTHING, n_origins=CUTS, n_folds=FOLDS))[0]
    return with_splits(replace(project, posts=posts), with_late_slice(splits, posts), features)


def with_late_slice(splits: pl.DataFrame, posts: pl.DataFrame) -> pl.DataFrame:
    """The splits with the last cut of `matched`, no user dropped, under the name LATE."""
    last = splits.filter(scheme="forward").filter(pl.col("fold") == pl.col("fold").max())
    timed = last.join(posts.select("pid", "posted_at"), on="pid", how="left", validate="1:1")
    start = timed.filter(role="valid")["posted_at"].min()
    back = (pl.col("role") == "excluded") & (pl.col("posted_at") < start)
    late = timed.with_columns(
        scheme=pl.lit(LATE), fold=pl.lit(0, pl.Int32), role=pl.when(back).then(pl.lit("train")).otherwise("role")
    )
    others = splits.filter(pl.col("scheme") != LATE)
    return pl.concat([others, late.select(splits.columns)]).sort(SPLITS.key)


def scores_of(folder: Path, params: Path, cut: int, name: str) -> pl.DataFrame:
    """(cut, system, scheme, metric, promised, came) of a system before a cut, and at it."""
    world, row = truncated(folder, params, cut), {name: SYSTEMS[name]}
    labels = read_table(folder / "data/interim/posts.parquet", POSTS).select("pid", "label")
    with threadpool_limits(world.params.num_threads, user_api="blas"):  # several workers share the machine
        rows = {scheme: predicted(world, row, scheme) for scheme in ("forward", LATE, "group", "random", PLAYED)}
    known = {
        scheme: found.drop("label").join(labels, on="pid", how="left", validate="1:1", maintain_order="left")
        for scheme, found in rows.items()
    }
    found = promises(known, name)
    came = found.pop(CAME)
    lines = [
        {"cut": cut, "system": name, "scheme": scheme, "metric": metric, "promised": values[metric], CAME: came[metric]}
        for scheme, values in found.items()
        for metric in METRICS
    ]
    return pl.DataFrame(lines)


def promises(rows: Mapping[str, pl.DataFrame], name: str) -> dict[str, dict[str, float]]:
    """What each validation says of a system, by metric, and what came; no rank correlation counts as 0."""
    matched = rows["forward"]
    parts = {
        "matched, one cut": matched.filter(pl.col("cut") == pl.col("cut").max()),
        "matched, mean of cuts": matched,
        "late slice, unmatched": rows[LATE],
        "user folds": rows["group"],
        "random folds": rows["random"],
        CAME: rows[PLAYED],
    }
    found: dict[str, dict[str, float]] = {}
    for scheme, own in parts.items():
        labels, values, cuts = (own[column].to_numpy() for column in ("label", name, "cut"))
        found[scheme] = {metric: score(labels, values, cuts)[metric] or 0.0 for metric in METRICS}
    both = (found["matched, mean of cuts"], found["user folds"])
    found["cuts and user folds"] = {metric: (both[0][metric] + both[1][metric]) / 2 for metric in METRICS}
    return found


def with_value(table: pl.DataFrame) -> pl.DataFrame:
    """The scores of all systems, CONSTANT among them, and their values: MAE over the constant's MAE, minus SRC."""
    key = ["cut", "system", "scheme"]
    src, mae = (table.filter(metric=metric).drop("metric") for metric in METRICS)
    both = src.join(mae, on=key, suffix="_mae", validate="1:1", maintain_order="left")
    constant = mae.filter(system=CONSTANT).drop("system")
    both = both.join(constant, on=["cut", "scheme"], suffix="_constant", validate="m:1", maintain_order="left")
    losses = [
        pl.Series(name, loss_of_scores(both[f"{name}_mae"], both[f"{name}_constant"], both[name]))
        for name in ("promised", CAME)
    ]
    return pl.concat([table, both.select(*key, metric=pl.lit(VALUE)).with_columns(losses)])


def ranked_schemes(table: pl.DataFrame, metric: str) -> list[dict[str, Any]]:
    """A row a scheme: how it ranks the systems, misses their level, and what the choice by it costs.

    Keys: metric, scheme, rank (mean over the cuts), rank_<cut>, level, size and regret, as in the module's docstring.
    """
    lines = []
    for (scheme,), own in table.filter(metric=metric).group_by("scheme", maintain_order=True):
        ranks, regrets = {}, []
        for (cut,), part in own.sort("cut", "system").group_by("cut", maintain_order=True):
            promised, came = part["promised"].to_numpy(), part[CAME].to_numpy()
            sign = 1 if metric == "src" else -1
            ranks[f"rank_{cut}"] = spearman(promised, came) or 0.0
            regrets.append(float((sign * came).max() - sign * came[np.argmax(sign * promised)]))
        misses = (own["promised"] - own[CAME]).to_numpy()
        line = {"metric": metric, "scheme": scheme, "rank": float(np.mean(list(ranks.values()))), **ranks}
        line |= {"level": float(misses.mean()), "size": float(np.abs(misses).mean()), "regret": float(np.mean(regrets))}
        lines.append(line)
    return lines


def printed(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of one metric as a table, the ranks of the cuts in brackets."""
    lines = []
    for row in rows:
        each = " ".join(f"{row[name]:.2f}" for name in row if name.startswith("rank_"))
        shown = {"scheme": row["scheme"], "rank": f"{row['rank']:.3f} [{each}]", "level": f"{row['level']:+.4f}"}
        lines.append(shown | {name: row[name] for name in ("size", "regret")})
    return text_table(lines)


def changed(**changes: Any) -> Change:
    """The fold with other parameters of section stack."""
    return lambda data: replace(data, params=replace(data.params, **changes))


def of_blocks(*blocks: Any, **changes: Any) -> Change:
    """The fold whose stack sees no other block, with other parameters of its columns."""

    def change(data: FoldData) -> FoldData:
        heads = tuple(head for head in data.params.columns.oof_ridge if head in blocks)
        return changed(columns=replace(data.params.columns, feature_blocks=blocks, oof_ridge=heads, **changes))(data)

    return change


def with_trees(change: Change, **changes: Any) -> Change:
    """The fold, changed, with other trees."""
    return lambda data: changed(lightgbm=replace(data.params.lightgbm, **changes))(change(data))


def of_metadata(**changes: Any) -> Change:
    """The fold as the baseline `metadata` sees it, with other parameters."""
    return lambda data: changed(**changes)(metadata_alone(data))


SYSTEMS: Mapping[str, Row] = {
    "stack": stack_row(changed()),
    "stack, half life of a year": stack_row(changed(sample_weight_half_life_days=365.0)),
    "stack, without level": stack_row(changed(detrend="none")),
    "stack, linear": stack_row(changed(learners=("linear",))),
    "metadata": stack_row(metadata_alone),
    "metadata, half life of 120 days": stack_row(of_metadata(sample_weight_half_life_days=120.0)),
    "metadata, without level": stack_row(of_metadata(detrend="none")),
    "metadata, no histories": stack_row(lambda data: without_histories(metadata_alone(data))),
    "metadata, users as categories": stack_row(of_blocks("metadata", uid_category=True)),
    "metadata, large trees": stack_row(with_trees(metadata_alone, num_leaves=127, min_data_in_leaf=5)),
    "metadata, squared error": stack_row(with_trees(metadata_alone, objective="regression")),
    "metadata, CatBoost": stack_row(of_metadata(learners=("catboost",))),
    "metadata and text": stack_row(of_blocks("metadata", "text")),
    "text": stack_row(of_blocks("text")),
    "picture": stack_row(of_blocks("image")),
    "lightgbm_2020": peer_row("lightgbm_2020", peers.PEERS["lightgbm_2020"]),
    "user_mean": simple_row("user_mean"),
    CONSTANT: simple_row(CONSTANT),
}


if __name__ == "__main__":
    run(main)
