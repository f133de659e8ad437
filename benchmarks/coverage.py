"""Coverage of the prediction intervals on the demo's test labels, which only the generator knows.

For each seed two data sets are generated, which differ in the trend of the label alone. Without a trend, later posts
are like the calibration posts and coverage should be nominal; with a trend they are not, and coverage falls. The stages
of dvc.yaml run on both, with the parameters of params.yaml and no search; stages that read no label run once.

Coverage is measured on the test part with the quantiles of reports/calibration.json. Its interval is that of Clopper
and Pearson for the effective number of independent posts, as users have several posts (Korn and Graubard 1998): first
with the variance of the test posts alone, then with that of the calibration posts too.

    python -m benchmarks.coverage
    python -m benchmarks.coverage --seeds 1 --posts 600 --work .state/coverage --csv coverage.csv
"""

from __future__ import annotations

import argparse
import copy
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.stats import beta

from benchmarks.demo_ladder import (
    POSTS_FILE,
    PREDICTIONS_FILE,
    SPLITS_FILE,
    TRUTH,
    params_of,
    run_stages,
    stage_folder,
    stages_until,
)
from benchmarks.tables import add_csv_flag, text_table, write_csv
from popularity.core.arrays import Float64Array
from popularity.core.atomic import atomic_directory
from popularity.core.config import PARAMS_FILE, load_params, read_yaml
from popularity.core.contracts import FOLDS, HOLDOUT, MAIN_MODEL, POSTS, PREDICTIONS, REFIT, read_table
from popularity.core.stage import run
from popularity.evaluation.conformal import CALIBRATED_ON, Calibration
from popularity.evaluation.scores import EvaluateConfig, collect

# Without the trend the generator changes labels alone: images, texts and their network stay.
READ_LABELS = (
    "demo_data", "ingest", "split", "featurize", "tune", "text_model", "stack", "ensemble", "evaluate",
)  # fmt: skip
WITH, WITHOUT = "with trend", "without trend"
TABLE = {
    "data": pl.String,
    "seed": pl.String,
    "users are": pl.String,
    "nominal": pl.Float64,
    "posts": pl.Int64,
    "users": pl.Int64,
    "width": pl.Float64,
    "coverage": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "verdict": pl.String,
    "low, both": pl.Float64,
    "high, both": pl.Float64,
    "verdict, both": pl.String,
}


@dataclass(frozen=True)
class Group:
    """Posts: |label - prediction| (n,), error_scale (n,) and user (n,)."""

    error: Float64Array
    scale: Float64Array
    user: npt.NDArray[np.str_]

    def inside(self, quantile: float) -> Float64Array:
        """(n,) 1 where the label is in the interval."""
        return (self.error <= quantile * self.scale).astype(np.float64)


@dataclass(frozen=True)
class Measured:
    """One data set: its calibration, the calibration posts, and the test posts by kind of user."""

    calibration: Calibration
    calibrating: Group
    test: Mapping[str, Group]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="of the generator")
    parser.add_argument("--posts", type=int, help="per data set, with users in proportion; default: demo.posts")
    parser.add_argument("--work", type=Path, help="folder of the data sets; finished stages do not run again")
    add_csv_flag(parser)
    args = parser.parse_args(argv)
    confidence = load_params("evaluate", EvaluateConfig, args.params).confidence_level
    seeds = sorted(set(args.seeds))
    measured: dict[str, dict[str, Measured]] = {WITH: {}, WITHOUT: {}}
    with ExitStack() as stack:
        work = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coverage.")))
        for seed in seeds:
            for name, folder in run_both(seed, args.posts, args.params, work.resolve()):
                measured[name][str(seed)] = measure(folder)
    table = pl.DataFrame(
        [row for name, by_seed in measured.items() for row in coverage(name, by_seed, confidence)], schema=TABLE
    )
    print(f"Coverage of the demo's test labels, seeds {seeds}, {confidence:.0%} intervals clustered by user")
    print(text_table(table.to_dicts(), digits=3))
    write_csv(table.to_dicts(), args.csv)
    for name in measured:
        pooled = table.filter((pl.col("data") == name) & (pl.col("seed") == "all") & (pl.col("users are") == "any"))
        for column in ("verdict", "verdict, both"):
            missed = pooled.filter(pl.col(column) != INSIDE)
            levels = ", ".join(
                f"{nominal:.0%} ({found})" for nominal, found in missed.select("nominal", column).iter_rows()
            )
            by = "test posts" if column == "verdict" else "test and calibration posts"
            print(f"{name}, interval of the {by}: nominal coverage outside at {levels or 'no level'}")


INSIDE, LESS, MORE, INFINITE = "inside", "OUTSIDE: covers less", "OUTSIDE: covers more", "infinite"


def run_both(seed: int, posts: int | None, file: Path, work: Path) -> Iterator[tuple[str, Path]]:
    """The finished folders of a seed with the trend of `file` and without."""
    stages = stages_until("evaluate")
    params = params_of(seed, posts, file)
    params["stack"]["schemes"] = [HOLDOUT, CALIBRATED_ON]
    first = run_stages(stages, params, work)
    yield WITH, first
    params_without_trend: dict[str, Any] = copy.deepcopy(params)
    params_without_trend["demo"]["trend"] = 0.0
    folder = stage_folder(stages, params_without_trend, work)
    if not folder.exists():
        with atomic_directory(folder) as partial:
            copy_tree(first, partial)
    yield WITHOUT, run_stages(stages, params_without_trend, work)


def copy_tree(first: Path, folder: Path) -> None:
    """Copies all outs but those of stages that read labels, which run again."""
    graph = read_yaml(Path("dvc.yaml"))["stages"]
    for name, stage in graph.items():
        if name in READ_LABELS:
            continue
        for (out,) in stage["outs"]:  # each a path with its options
            source = first / out
            if source.is_dir():
                shutil.copytree(source, folder / out)
            elif source.exists():
                (folder / out).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, folder / out)


def measure(folder: Path) -> Measured:
    """Errors and error scales of the calibration posts and of the test part of a data set."""
    posts, splits = read_table(folder / POSTS_FILE, POSTS), read_table(folder / SPLITS_FILE, FOLDS)
    predictions = read_table(folder / PREDICTIONS_FILE, PREDICTIONS)
    (forward,) = (one.rows for one in collect(posts, splits, predictions) if one.scheme == CALIBRATED_ON)
    truth = pl.read_parquet(folder / TRUTH / "test_labels.parquet")
    known = posts.filter(pl.col("split") == "train").select("uid", seen=pl.lit(True)).unique()
    rows = (
        predictions.filter((pl.col("scheme") == REFIT) & (pl.col("model") == MAIN_MODEL))
        .group_by("pid")
        .agg(pl.mean("prediction").alias(f"prediction:{MAIN_MODEL}"), pl.first("error_scale"))
        .join(truth, on="pid", validate="1:1")
        .join(posts.select("pid", "uid"), on="pid", validate="1:1")
        .join(known, on="uid", how="left", validate="m:1")
        .with_columns(pl.col("seen").fill_null(value=False))
        .sort("pid")
    )
    test = {
        "any": group_of(rows),
        "seen": group_of(rows.filter(pl.col("seen"))),
        "unseen": group_of(rows.filter(~pl.col("seen"))),
    }
    return Measured(Calibration.read(folder / "reports/calibration.json"), group_of(forward), test)


def group_of(rows: pl.DataFrame) -> Group:
    """The posts of a table with columns label, prediction, error_scale and uid."""
    error = np.abs(rows["label"].to_numpy() - rows[f"prediction:{MAIN_MODEL}"].to_numpy())
    return Group(error, rows["error_scale"].to_numpy(), rows["uid"].to_numpy().astype(np.str_))


def coverage(name: str, by_seed: Mapping[str, Measured], confidence: float) -> Iterator[dict[str, Any]]:
    """Rows TABLE: each seed for users of any kind, then all seeds together, also by kind of user."""
    chosen = [([seed], seed, "any") for seed in by_seed]
    chosen += [(list(by_seed), "all", kind) for kind in ("any", "seen", "unseen")]
    for seeds, called, kind in chosen:
        for nominal in next(iter(by_seed.values())).calibration.quantiles:
            yield {"data": name, "seed": called, "users are": kind, "nominal": nominal} | coverage_at(
                nominal, [by_seed[seed] for seed in seeds], kind, confidence
            )


def coverage_at(nominal: float, parts: Sequence[Measured], kind: str, confidence: float) -> dict[str, Any]:
    """Coverage at a nominal coverage over several data sets, whose users are different people."""
    groups = [part.test[kind] for part in parts]
    posts = sum(len(group.error) for group in groups)
    users = sum(len(np.unique(group.user)) for group in groups)
    result: dict[str, Any] = {"posts": posts, "users": users}
    quantiles = [part.calibration.quantiles[nominal] for part in parts]
    if not posts or any(quantile is None for quantile in quantiles):
        return result | {"verdict": INFINITE, "verdict, both": INFINITE}
    known = [quantile for quantile in quantiles if quantile is not None]
    inside = [group.inside(quantile) for group, quantile in zip(groups, known, strict=True)]
    found = float(np.concatenate(inside).mean())
    clusters = np.concatenate([np.char.add(f"{index} ", group.user) for index, group in enumerate(groups)])
    test = clustered_variance(np.concatenate(inside), clusters)
    # A quantile that is too low or high by chance changes the coverage of all posts of its data set together.
    calibrating = sum(
        (len(group.error) / posts) ** 2 * clustered_variance(part.calibrating.inside(quantile), part.calibrating.user)
        for group, part, quantile in zip(groups, parts, known, strict=True)
    )
    width = (
        sum(float((2 * quantile * group.scale).sum()) for group, quantile in zip(groups, known, strict=True)) / posts
    )
    low, high = binomial_interval(found, test, posts, confidence)
    wide_low, wide_high = binomial_interval(found, test + calibrating, posts, confidence)
    return result | {
        "width": width,
        "coverage": found,
        "low": low,
        "high": high,
        "verdict": verdict(nominal, low, high),
        "low, both": wide_low,
        "high, both": wide_high,
        "verdict, both": verdict(nominal, wide_low, wide_high),
    }


def clustered_variance(inside: Float64Array, users: npt.NDArray[np.str_]) -> float:
    """Variance of the mean of `inside` (n,) over draws of users with all their posts; 0 for a single user."""
    indices = np.unique(users, return_inverse=True)[1]
    sums = np.bincount(indices, weights=inside - inside.mean())
    count = len(sums)
    return float(count / (count - 1) * (sums**2).sum() / len(inside) ** 2) if count > 1 else 0.0


def binomial_interval(fraction: float, variance: float, posts: int, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson's interval of a fraction, for the number of independent posts that gives `variance`.

    Without variance every post counts as independent. Korn and Graubard's correction for few clusters is left out:
    there are hundreds.
    """
    count = fraction * (1 - fraction) / variance if variance > 0 and 0 < fraction < 1 else float(posts)
    hits, tail = fraction * count, (1 - confidence) / 2
    low = float(beta.ppf(tail, hits, count - hits + 1)) if fraction > 0 else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, count - hits)) if fraction < 1 else 1.0
    return low, high


def verdict(nominal: float, low: float, high: float) -> str:
    """Whether the nominal coverage lies in the interval of the measured one."""
    if low <= nominal <= high:
        return INSIDE
    return LESS if high < nominal else MORE


if __name__ == "__main__":
    run(main)
