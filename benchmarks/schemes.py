"""How well each validation scheme predicts the test scores of varied systems, and their order.

    python -m benchmarks.schemes                       # of the run in this folder
    python -m benchmarks.schemes --folder ../run --systems metadata constant user_mean --csv schemes.csv

Each forward split in turn plays the test part: the data set is truncated to the split's train posts, with labels, and
its valid posts, without. The functions of the graph split it, compute its features and fit every system in every
scheme; scheme `refit` then predicts the valid posts, which gives the test scores. So a scheme sees only posts before
the split, and no post of `holdout` is used. Over the systems, mean over the splits:

    rank           Spearman's correlation of validation and test scores; that of each split in brackets
    bias           validation minus test score: its mean, and the mean of its absolute value
    regret         how much worse the system with the best validation score is than the best system

for SRC, for MAE, and for the selection loss of stage `tune`: MAE over that of the system `constant`, which is
always included, minus SRC. Predictions are cached in .state/benchmarks of the folder. Needs `dvc repro embed_posts`.
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
    without_target_statistics,
)
from benchmarks.systems import METRICS, FoldData, Project
from benchmarks.tables import add_csv_flag, text_table, write_csv
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.contracts import FOLDS as SPLITS
from popularity.core.contracts import POSTS, read_table
from popularity.core.errors import DataError
from popularity.core.metrics import loss_of_scores, score, spearman
from popularity.core.stage import run
from popularity.ensemble.members import CONSTANT
from popularity.features import FeaturizeParams
from popularity.validation import SplitParams, make_splits

logger = logging.getLogger(__name__)

N_SPLITS, N_FOLDS = 3, 3  # of the schemes in a truncated data set
HOLDOUT_FRACTION = 1e-9  # there: a single post, so that validation has everything before the split
LATE, TEST_SCHEME = "holdout", "refit"  # there scheme holdout is the last forward split with all its users
VALIDATION, TEST = "validation", "test"  # columns of scores
LOSS = "loss"  # the selection loss, next to METRICS


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="project folder with data and params.yaml")
    parser.add_argument("--params", type=Path, help="by default the folder's params.yaml")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of one thread each")
    add_csv_flag(parser)
    args = parser.parse_args(argv)
    params = args.params or args.folder / PARAMS_FILE
    worlds = {split: truncated(args.folder, params, split) for split in range(N_SPLITS)}  # caches the features
    logger.info("posts before each split: %s", [world.posts["label"].count() for world in worlds.values()])
    work = partial(scores_of, args.folder, params)
    tasks = [(split, name) for name in dict.fromkeys([*args.systems, CONSTANT]) for split in worlds]
    with ExitStack() as exits:
        map_tasks: Callable[..., Iterator[pl.DataFrame]] = map
        if args.workers > 1:
            map_tasks = exits.enter_context(ProcessPoolExecutor(args.workers, get_context("spawn"))).map
        done = map_tasks(work, *zip(*tasks, strict=True))
        table = with_loss(pl.concat(tqdm(done, total=len(tasks), unit="fit")))
    ranked = [row for metric in (*METRICS, LOSS) for row in ranked_schemes(table, metric)]
    for metric in (*METRICS, LOSS):
        print(f"\n{metric.upper()}\n{printed([row for row in ranked if row['metric'] == metric])}")
    write_csv(ranked, args.csv)


@cache
def truncated(folder: Path, params: Path, index: int) -> Project:
    """The run in `folder` as it was before the forward split of that index."""
    project = Project.read(folder, params)
    split = replace(load_params("split", SplitParams, params), span="fractions", n_origins=N_SPLITS)
    splits = make_splits(project.posts, split)[0].filter(scheme="forward")
    if splits["fold"].n_unique() < N_SPLITS:
        raise DataError("too few posts for the forward splits", expected=f"{N_SPLITS} splits")
    rows = splits.filter(pl.col("role") != "excluded", fold=index).select("pid", "role")
    project = replace(project, params=replace(project.params, n_seeds=1, num_threads=1))
    return world_of(project, rows, split, load_params("featurize", FeaturizeParams, params))


def world_of(project: Project, rows: pl.DataFrame, split: SplitParams, features: FeaturizeParams) -> Project:
    """The data set whose training part are the train rows of `rows` (pid, role), and whose test part the valid rows."""
    is_train = pl.col("role") == "train"
    posts = project.posts.join(rows, on="pid", how="inner", validate="1:1").sort("pid")
    posts = posts.with_columns(
        split=pl.when(is_train).then(pl.lit("train")).otherwise(pl.lit("test")), label=pl.when(is_train).then("label")
    ).select(project.posts.columns)
    splits = make_splits(posts, replace(split, holdout_fraction=HOLDOUT_FRACTION, n_origins=N_SPLITS, n_folds=N_FOLDS))[
        0
    ]
    return with_splits(replace(project, posts=posts), with_late_slice(splits, posts), features)


def with_late_slice(splits: pl.DataFrame, posts: pl.DataFrame) -> pl.DataFrame:
    """The splits, where scheme LATE is the last forward split without excluded users."""
    last = splits.filter(scheme="forward").filter(pl.col("fold") == pl.col("fold").max())
    timed = last.join(posts.select("pid", "posted_at"), on="pid", how="left", validate="1:1")
    start = timed.filter(role="valid")["posted_at"].min()
    excluded_before = (pl.col("role") == "excluded") & (pl.col("posted_at") < start)
    late = timed.with_columns(
        scheme=pl.lit(LATE),
        fold=pl.lit(0, pl.Int32),
        role=pl.when(excluded_before).then(pl.lit("train")).otherwise("role"),
    )
    others = splits.filter(pl.col("scheme") != LATE)
    return pl.concat([others, late.select(splits.columns)]).sort(SPLITS.key)


def scores_of(folder: Path, params: Path, split: int, name: str) -> pl.DataFrame:
    """(split, system, scheme, metric, validation, test): the scores of a system before a split, and on it."""
    world, row = truncated(folder, params, split), {name: SYSTEMS[name]}
    labels = read_table(folder / "data/interim/posts.parquet", POSTS).select("pid", "label")
    with threadpool_limits(world.params.num_threads, user_api="blas"):  # several workers share the machine
        rows = {scheme: predicted(world, row, scheme) for scheme in ("forward", LATE, "group", "random", TEST_SCHEME)}
    known = {
        scheme: found.drop("label").join(labels, on="pid", how="left", validate="1:1", maintain_order="left")
        for scheme, found in rows.items()
    }
    found = scheme_scores(known, name)
    test = found.pop(TEST)
    lines = [
        {
            "split": split,
            "system": name,
            "scheme": scheme,
            "metric": metric,
            VALIDATION: values[metric],
            TEST: test[metric],
        }
        for scheme, values in found.items()
        for metric in METRICS
    ]
    return pl.DataFrame(lines)


def scheme_scores(rows: Mapping[str, pl.DataFrame], name: str) -> dict[str, dict[str, float]]:
    """Scores of a system by scheme and metric, and its TEST scores; an undefined rank correlation counts as 0."""
    forward = rows["forward"]
    parts = {
        "forward, last split": forward.filter(pl.col("fold") == pl.col("fold").max()),
        "forward, mean of splits": forward,
        "last split with all users": rows[LATE],
        "group": rows["group"],
        "random": rows["random"],
        TEST: rows[TEST_SCHEME],
    }
    found: dict[str, dict[str, float]] = {}
    for scheme, own in parts.items():
        labels, values, splits = (own[column].to_numpy() for column in ("label", name, "fold"))
        found[scheme] = {metric: score(labels, values, splits)[metric] or 0.0 for metric in METRICS}
    both = (found["forward, mean of splits"], found["group"])
    found["forward and group"] = {metric: (both[0][metric] + both[1][metric]) / 2 for metric in METRICS}
    return found


def with_loss(table: pl.DataFrame) -> pl.DataFrame:
    """The scores of all systems, CONSTANT among them, with rows of their selection loss."""
    key = ["split", "system", "scheme"]
    src, mae = (table.filter(metric=metric).drop("metric") for metric in METRICS)
    both = src.join(mae, on=key, suffix="_mae", validate="1:1", maintain_order="left")
    constant = mae.filter(system=CONSTANT).drop("system")
    both = both.join(constant, on=["split", "scheme"], suffix="_constant", validate="m:1", maintain_order="left")
    losses = [
        pl.Series(name, loss_of_scores(both[f"{name}_mae"], both[f"{name}_constant"], both[name]))
        for name in (VALIDATION, TEST)
    ]
    return pl.concat([table, both.select(*key, metric=pl.lit(LOSS)).with_columns(losses)])


def ranked_schemes(table: pl.DataFrame, metric: str) -> list[dict[str, Any]]:
    """A row a scheme: how well it ranks the systems, the bias of its scores, and the regret of a choice by them.

    Keys: metric, scheme, rank (mean over the splits), rank_<split>, bias, absolute_bias and regret, as in the module's
    docstring.
    """
    lines = []
    for (scheme,), own in table.filter(metric=metric).group_by("scheme", maintain_order=True):
        ranks, regrets = {}, []
        for (split,), part in own.sort("split", "system").group_by("split", maintain_order=True):
            validation, test = part[VALIDATION].to_numpy(), part[TEST].to_numpy()
            sign = 1 if metric == "src" else -1
            ranks[f"rank_{split}"] = spearman(validation, test) or 0.0
            regrets.append(float((sign * test).max() - sign * test[np.argmax(sign * validation)]))
        biases = (own[VALIDATION] - own[TEST]).to_numpy()
        line = {"metric": metric, "scheme": scheme, "rank": float(np.mean(list(ranks.values()))), **ranks}
        line |= {"bias": float(biases.mean()), "absolute_bias": float(np.abs(biases).mean())}
        line["regret"] = float(np.mean(regrets))
        lines.append(line)
    return lines


def printed(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of one metric as a table, the ranks of the splits in brackets."""
    lines = []
    for row in rows:
        each = " ".join(f"{row[name]:.2f}" for name in row if name.startswith("rank_"))
        shown = {"scheme": row["scheme"], "rank": f"{row['rank']:.3f} [{each}]", "bias": f"{row['bias']:+.4f}"}
        lines.append(shown | {name: row[name] for name in ("absolute_bias", "regret")})
    return text_table(lines)


def changed(**changes: Any) -> Change:
    """The fold with other parameters of section stack."""
    return lambda data: replace(data, params=replace(data.params, **changes))


def of_blocks(*blocks: Any, **changes: Any) -> Change:
    """The fold whose stack has these blocks alone, with other parameters of its columns."""

    def change(data: FoldData) -> FoldData:
        oof_ridge = tuple(name for name in data.params.columns.oof_ridge if name in blocks)
        return changed(columns=replace(data.params.columns, feature_blocks=blocks, oof_ridge=oof_ridge, **changes))(
            data
        )

    return change


def with_lightgbm(change: Change, **changes: Any) -> Change:
    """The changed fold, with other parameters of LightGBM."""
    return lambda data: changed(lightgbm=replace(data.params.lightgbm, **changes))(change(data))


def of_metadata(**changes: Any) -> Change:
    """The fold of the stage's baseline `metadata`, with other parameters."""
    return lambda data: changed(**changes)(metadata_alone(data))


SYSTEMS: Mapping[str, Row] = {
    "stack": stack_row(changed()),
    "stack, half-life of a year": stack_row(changed(sample_weight_half_life_days=365.0)),
    "stack, no detrending": stack_row(changed(detrend="none")),
    "stack, linear": stack_row(changed(learners=("linear",))),
    "metadata": stack_row(metadata_alone),
    "metadata, half-life of 120 days": stack_row(of_metadata(sample_weight_half_life_days=120.0)),
    "metadata, no detrending": stack_row(of_metadata(detrend="none")),
    "metadata, no target statistics": stack_row(lambda data: without_target_statistics(metadata_alone(data))),
    "metadata, users as categories": stack_row(of_blocks("metadata", uid_category=True)),
    "metadata, large trees": stack_row(with_lightgbm(metadata_alone, num_leaves=127, min_data_in_leaf=5)),
    "metadata, squared error": stack_row(with_lightgbm(metadata_alone, objective="regression")),
    "metadata, CatBoost": stack_row(of_metadata(learners=("catboost",))),
    "metadata and text": stack_row(of_blocks("metadata", "text")),
    "text": stack_row(of_blocks("text")),
    "image": stack_row(of_blocks("image")),
    "lightgbm_2020": peer_row("lightgbm_2020", peers.PEERS["lightgbm_2020"]),
    "user_mean": simple_row("user_mean"),
    CONSTANT: simple_row(CONSTANT),
}


if __name__ == "__main__":
    run(main)
