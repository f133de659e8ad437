"""The parts of `benchmarks.full_scale` from published files to features. They load no torch: memory counts."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import polars as pl

from benchmarks import plain_pandas
from benchmarks.measuring import REPOSITORY, Clock, Part, execute, run_part
from benchmarks.scale import scaled
from popularity.config import PARAMS_FILE, load_params
from popularity.demo import generate
from popularity.features import FeaturizeParams, compare_target_statistics, featurize, fold_path
from popularity.features.build import fold_label_features, label_inputs
from popularity.features.context import count_features
from popularity.features.rows import row_features
from popularity.features.text_components import TEXT_COMPONENTS, TextReducer
from popularity.schema import FEATURES, FOLDS, IMAGES, POSTS, read_table, write_table
from popularity.splits import SplitParams, make_splits
from stages import ingest

PRIOR = 3.0
PICTURE_SIDE, POOL = 32, 16  # pixels and number of the pictures of data sets in which they are only counted


def part_generate(root: Path, posts: str, form: str) -> None:
    generate(scaled(int(posts), form, side=PICTURE_SIDE), root / "data", root / "truth", POOL)


def part_ingest(root: Path) -> None:
    names = ("posts", "users", "quarantine")
    tables = [word for name in names for word in (f"--{name}", str(root / f"{name}.parquet"))]
    reports = ["--report", str(root / "ingest.json"), "--resources", str(root / "resources.json")]
    ingest.main(["--root", str(root / "data"), *tables, *reports])


def part_split(root: Path) -> None:
    posts = read_table(root / "posts.parquet", POSTS)
    splits, _ = make_splits(posts, load_params("split", SplitParams, REPOSITORY / PARAMS_FILE))
    write_table(splits, root / "splits.parquet", FOLDS)


def part_features_final(root: Path) -> None:
    """Row features, and context and label features of `final`, from the published files on."""
    part_ingest(root)
    posts = read_table(root / "posts.parquet", POSTS)
    write_table(row_features(posts.lazy(), missing_images(root).lazy()).collect(), root / "row.parquet", FEATURES)
    write_table(count_features(posts), root / "context.parquet", FEATURES)
    roles = posts.select("pid", role=pl.when(pl.col("split") == "train").then(pl.lit("fit")).otherwise(pl.lit("score")))
    found = fold_label_features(roles, label_inputs(posts), without_text(), timedelta(days=1))
    write_table(found, root / "label.parquet", FEATURES)


def part_features_all(root: Path) -> dict[str, float]:
    """The stages ingest and featurize without fitted text components; `part_split` has been run."""
    clock = Clock()
    part_ingest(root)
    before = clock.read()
    posts = read_table(root / "posts.parquet", POSTS)
    none = TextReducer(pl.DataFrame(schema={name: rule.dtype for name, rule in TEXT_COMPONENTS.columns.items()}))
    clock = Clock()
    splits = read_table(root / "splits.parquet", FOLDS)
    (root / "features").mkdir(exist_ok=True)
    with mock.patch.object(TextReducer, "fit", lambda *_: none):
        featurize(posts, missing_images(root), splits, without_text(), root / "features")
    compare_target_statistics(splits, root / "features", without_text().target_statistics)
    return {name: before[name] + value for name, value in clock.read().items()}


def part_features_pandas(root: Path) -> dict[str, float]:
    """What `part_features_all` makes, of the same splits."""
    shown = read_table(root / "splits.parquet", FOLDS).filter(pl.col("role") != "dropped")
    splits = pd.DataFrame({name: shown[name].to_list() for name in shown.columns})
    clock = Clock()
    posts = plain_pandas.read_posts(root / "data")
    row, (context, label) = plain_pandas.row_features(posts), plain_pandas.features_of_folds(posts, splits)
    cost = clock.read()
    for name, frame in (("row", row), ("context", context), ("label", label)):
        columns = {column: frame[column].to_list() for column in frame.columns}
        pl.DataFrame(columns, strict=False).write_parquet(root / f"pandas_{name}.parquet")
    return cost


def missing_images(root: Path) -> pl.DataFrame:
    """Contract IMAGES of posts without pictures: indexing them is no part of this."""
    pids = pl.read_parquet(root / "posts.parquet", columns=["pid"])
    fixed = {"shard": "", "offset": 0, "bytes": 0, "width": None, "height": None, "mode": None, "status": "missing"}
    return pids.with_columns(
        pl.lit(value, dtype=IMAGES.columns[name].dtype).alias(name) for name, value in fixed.items()
    )


def without_text() -> FeaturizeParams:
    return FeaturizeParams(
        seed=0, text_components=0, target_statistics=("uid", "subcategory", "concept"), target_statistics_prior=PRIOR
    )


def differences(root: Path) -> float:
    """The largest difference between ours and pandas, over 1 or the value where that is larger.

    Raises:
        RuntimeError: a table has other posts, or a value is missing in one of both only.
    """
    features, fold = root / "features", list(FOLDS.key[:-1])
    pairs = [(features / "row.parquet", pl.read_parquet(root / "pandas_row.parquet"))]
    for name in ("context", "label"):
        parts = pl.read_parquet(root / f"pandas_{name}.parquet").partition_by(fold, as_dict=True)
        pairs += [(fold_path(features / name, *key), part) for key, part in parts.items()]
    return max(difference(pl.read_parquet(path).sort("pid"), other.sort("pid"), path.name) for path, other in pairs)


def difference(ours: pl.DataFrame, other: pl.DataFrame, name: str) -> float:
    """As `differences`, of one table `name`, sorted alike."""
    if not ours["pid"].equals(other["pid"]):
        raise RuntimeError(f"{name}: other posts than with pandas")
    worst = 0.0
    for column, dtype in ours.schema.items():
        if not dtype.is_numeric() or column.startswith("picture_"):
            continue
        mine, theirs = (frame[column].cast(pl.Float64).fill_null(float("nan")).to_numpy() for frame in (ours, other))
        if (np.isnan(mine) != np.isnan(theirs)).any():
            raise RuntimeError(f"{name}: {column} is missing in other rows than with pandas")
        gap = np.abs(mine - theirs) / np.maximum(np.abs(mine), 1)
        worst = max(worst, float(np.nanmax(gap, initial=0.0)))
    return worst


def part_differences(root: Path) -> dict[str, float]:
    """In a process of its own: the next ones would inherit its peak of memory."""
    return {"worst": differences(root)}


def part_repro(clone: Path) -> dict[str, int]:
    """`dvc repro` in a clone of the repository: how many stages it ran."""
    return {"ran": execute(clone, "dvc", "repro").count("Running stage")}


PARTS: dict[str, Part] = {
    "generate": part_generate,
    "ingest": part_ingest,
    "split": part_split,
    "final": part_features_final,
    "all": part_features_all,
    "pandas": part_features_pandas,
    "differences": part_differences,
    "repro": part_repro,
}

if __name__ == "__main__":
    run_part(PARTS, sys.argv[1:])
