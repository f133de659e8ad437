"""What the order of collection is worth on generated data whose labels fall along it (demo.trend_along: collection).

For each seed a data set is generated, whose test posts come late in the collection. The metadata alone are fitted, by
LightGBM, without and with each part of overlay smpd. Scores are those of splits in time as they are and matched
(split.match_collection_order), and of the test part, whose labels only the generator knows; means over the seeds.

    python -m benchmarks.collection_order
    python -m benchmarks.collection_order --seeds 1 --posts 900 --csv collection.csv
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from benchmarks.tables import add_csv_flag, text_table, write_csv
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.contracts import FORWARD, IMAGES, REFIT, empty_table
from popularity.core.metrics import score
from popularity.core.stage import run
from popularity.dataset import ingest
from popularity.demo.generator import generate
from popularity.demo.params import DemoParams
from popularity.ensemble.members import CONSTANT
from popularity.features import FeaturizeParams, featurize
from popularity.stack import Blocks, StackParams
from popularity.stack.fit import fit_and_predict, metadata_alone, predict_simple
from popularity.validation import SplitParams, make_splits, rows_of
from popularity.validation.folds import load_fold

MATCHED, TEST = "forward, matched", "test"
PER_SEED = ("system", "posts", "metric")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the generator")
    parser.add_argument("--posts", type=int, help="per data set, with users in proportion; default: demo.posts")
    add_csv_flag(parser)
    args = parser.parse_args(argv)
    demo = load_params("demo", DemoParams, args.params)
    posts = args.posts or demo.posts
    demo = replace(demo, posts=posts, users=round(demo.users * posts / demo.posts), trend_along="collection")
    found = [line for seed in tqdm(args.seeds, unit="seed") for line in scores(replace(demo, seed=seed), args.params)]
    table = pl.DataFrame(found).group_by(PER_SEED, maintain_order=True).agg(pl.col("score").mean())
    print(f"Means over seeds {args.seeds}, {posts:,} posts each: metadata alone\n{printed(table)}")
    write_csv(table.to_dicts(), args.csv)


def systems(base: StackParams) -> Mapping[str, StackParams]:
    """Section stack of each row of the table: one LightGBM on the metadata."""
    plain = replace(metadata_alone(base), n_seeds=1, learners=("lightgbm",), target_transform="none")
    grouped = replace(plain, columns=replace(plain.columns, feature_groups=("collection_order",)))
    return {
        "default": plain,
        "numbers of Pid and Uid": grouped,
        "trend along the Pids": replace(plain, detrend="collection_order"),
        "both": replace(grouped, detrend="collection_order"),
    }


def scores(demo: DemoParams, params: Path) -> list[dict[str, Any]]:
    """(system, posts, metric, score) of one data set."""
    base, split = load_params("stack", StackParams, params), load_params("split", SplitParams, params)
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="collection.") as name:
        folder = Path(name)
        generate(demo, folder / "data", folder / "truth", drawn=0)
        posts = ingest(folder / "data").posts
        test = pl.read_parquet(folder / "truth/test_labels.parquet")
        label = pl.concat([posts.select("pid", "label").drop_nulls(), test])
        for matched, wanted in ((False, {FORWARD: FORWARD, REFIT: TEST}), (True, {FORWARD: MATCHED})):
            splits, _ = make_splits(posts, replace(split, match_collection_order=matched))
            splits = splits.filter(pl.col("scheme").is_in(list(wanted)))
            features = folder / f"features-{matched}"
            features.mkdir()
            featurize(posts, _no_images(posts), splits, load_params("featurize", FeaturizeParams, params), features)
            for scheme, shown in wanted.items():
                lines += _scheme_scores(posts, splits.filter(scheme=scheme), features, label, base, shown)
    return lines


def _scheme_scores(
    posts: pl.DataFrame, splits: pl.DataFrame, features: Path, label: pl.DataFrame, base: StackParams, shown: str
) -> list[dict[str, Any]]:
    """Scores of all systems on the folds of one scheme, means over the folds."""
    predicted: dict[str, list[pl.DataFrame]] = {}
    for key, rows in rows_of(splits, splits["scheme"].unique().to_list()):
        fold = load_fold(key, rows, posts, features)
        for system, params in systems(base).items():
            predicted.setdefault(system, []).append(fit_and_predict(fold, Blocks({}, posts.select("pid")), params))
        predicted.setdefault(CONSTANT, []).append(predict_simple(fold, base, CONSTANT))
    lines = []
    for system, tables in predicted.items():
        rows = pl.concat(tables).join(label, on="pid", how="left", validate="m:1").sort("fold", "pid")
        columns = (rows[name].to_numpy() for name in ("label", "prediction", "fold"))
        found = score(*columns)
        lines += [
            {"system": system, "posts": shown, "metric": metric, "score": found[metric]} for metric in ("src", "mae")
        ]
    return lines


def _no_images(posts: pl.DataFrame) -> pl.DataFrame:
    """Contract IMAGES: every image is missing."""
    missing = {"shard": "", "offset": 0, "bytes": 0, "status": "missing"}
    table = pl.concat([empty_table(IMAGES), posts.select("pid")], how="diagonal")
    return table.with_columns(pl.lit(value).cast(table.schema[name]).alias(name) for name, value in missing.items())


def printed(table: pl.DataFrame) -> str:
    """A line a system, a column for each kind of posts and metric."""
    names = table.select((pl.col("metric").str.to_uppercase() + " " + pl.col("posts")).alias("column"))
    return text_table(table.hstack(names).pivot(on="column", index="system", values="score").to_dicts())


if __name__ == "__main__":
    run(main)
