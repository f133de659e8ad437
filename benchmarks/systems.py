"""A system is a function of one fold: ours, ours with a change, a competitor's. Benchmarks compare systems.

    project = Project.read(Path("../run"))
    for data in project.folds(["forward"]):
        predictions = system(data)                       # (m,) for the rows of data.fold.valid
        labels = project.labels(data)                    # (m,) true labels, which no system receives

The folder is a project in which `dvc repro embed_posts` has run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from tqdm import tqdm

from popularity.core.arrays import Float64Array, Int64Array
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.contracts import FOLDS, POSTS, TIME_SCHEMES, read_table
from popularity.core.errors import ContractError
from popularity.core.metrics import score
from popularity.core.parallel import ordered_map
from popularity.evaluation.bootstrap import interval, resample
from popularity.stack import StackParams, read_blocks
from popularity.stack.feature_blocks import Blocks
from popularity.stack.fit import fit_and_predict
from popularity.tuning.objective import StackInputs
from popularity.validation import SplitParams, make_splits, rows_of
from popularity.validation.folds import Fold, load_fold

Metric = Literal["src", "mae"]
METRICS: tuple[Metric, ...] = ("src", "mae")
POST_COLUMNS = ("scheme", "fold", "pid", "uid", "label")


@dataclass(frozen=True)
class FoldData:
    """Everything that a system may read of one fold.

    Args:
        fold: features of the train and valid rows (each sorted by pid), labels of the train rows.
        posts: contract POSTS, sorted by pid: the train and valid rows alone, the labels of the valid rows null.
        blocks: vectors and scalars of all posts, computed without labels.
        params: section stack.
    """

    fold: Fold
    posts: pl.DataFrame
    blocks: Blocks
    params: StackParams


System = Callable[[FoldData], Float64Array]


def block_folders(folder: Path) -> tuple[Path, Path, Path]:
    """The folders of vectors that the stack of the project in `folder` reads: image, text and prototype."""
    inputs = StackInputs.below(folder)
    return inputs.image, inputs.text, inputs.prototype


@dataclass(frozen=True)
class Project:
    """A run up to the embed stages: posts, splits, features, vectors and the parameters of the stack.

    Args:
        posts: contract POSTS.
        splits: contract FOLDS.
        features: folder that featurize wrote.
        blocks: vectors and scalars of the embed stages.
        params: section stack.
        folder: the project folder of the run.
    """

    posts: pl.DataFrame
    splits: pl.DataFrame
    features: Path
    blocks: Blocks
    params: StackParams
    folder: Path

    @classmethod
    def read(cls, folder: Path, params: Path | None = None) -> Project:
        """The run in `folder`, with section stack of the file `params`, by default the folder's params.yaml."""
        data = folder / "data"
        return cls(
            read_table(data / "interim/posts.parquet", POSTS),
            read_table(data / "interim/splits.parquet", FOLDS),
            data / "features",
            read_blocks(*block_folders(folder)),
            load_params("stack", StackParams, params or folder / PARAMS_FILE),
            folder,
        )

    def folds(self, schemes: Sequence[str]) -> Iterator[FoldData]:
        """The folds of the schemes in the order of stage `stack`; those of `forward` are in order of time."""
        for key, rows in rows_of(self.splits, list(schemes)):  # rows: pid, role (train or valid)
            shown = rows.join(self.posts, on="pid", how="left", validate="1:1").sort("pid")
            hidden = shown.with_columns(label=pl.when(pl.col("role") == "train").then(pl.col("label")))
            fold = load_fold(key, rows, self.posts, self.features)
            yield FoldData(fold, hidden.select(self.posts.columns), self.blocks, self.params)

    def scored(self, data: FoldData) -> pl.DataFrame:
        """(pid, uid, label) of the fold's valid rows, in its row order."""
        labels = self.posts.select("pid", "uid", "label")
        return data.fold.valid.select("pid").join(labels, on="pid", how="left", validate="1:1", maintain_order="left")

    def labels(self, data: FoldData) -> Float64Array:
        """(m,) true labels of the fold's valid rows, in its row order."""
        return self.scored(data)["label"].to_numpy()

    def run(self, systems: Mapping[str, System], scheme: str, workers: int = 1) -> pl.DataFrame:
        """(POST_COLUMNS, a column a system) of all valid rows of a scheme.

        `fold` is the split of a scheme in time, where every split has its own score; in other schemes, where all folds
        make one score, it is 0.

        Args:
            systems: by the name of their column.
            scheme: of the splits.
            workers: folds at a time, each in a process of its own.
        """

        def predictions(data: FoldData) -> pl.DataFrame:
            posts = self.scored(data).with_columns(
                scheme=pl.lit(scheme), fold=pl.lit(data.fold.key.fold if scheme in TIME_SCHEMES else 0, pl.Int64)
            )
            found = (pl.Series(name, system(data)) for name, system in systems.items())
            return posts.select(POST_COLUMNS).with_columns(found)

        folds = list(self.folds([scheme]))
        done = ordered_map(predictions, folds, parallel=min(workers, len(folds)), threads=self.params.num_threads)
        found: list[pl.DataFrame] = list(tqdm(done, desc=scheme, total=len(folds), unit="fold"))
        return pl.concat(found)


def ours(data: FoldData) -> Float64Array:
    """(m,) the predictions of stage `stack` for the valid rows: the mean over its seeds."""
    each = fit_and_predict(data.fold, data.blocks, data.params)
    means = each.sort("seed").group_by("pid", maintain_order=True).agg(pl.col("prediction").mean())
    return means.sort("pid")["prediction"].to_numpy()


def compare(
    rows: pl.DataFrame, against: str, *, resamples: int, others: Mapping[str, str] | None = None
) -> pl.DataFrame:
    """(metric, system, score, difference, low, high, splits, posts, users): a row a metric and system.

    Args:
        rows: of `Project.run`.
        against: the system whose score is subtracted.
        others: systems, by name, from which the score of another system is subtracted.
        resamples: number of bootstrap draws of users for the 95 % interval of a difference; both systems are scored on
            the same draws.
    """
    labels, users, splits = (rows[name].to_numpy() for name in ("label", "uid", "fold"))
    sizes = {"splits": len(np.unique(splits)), "posts": len(rows), "users": len(np.unique(users))}
    table = []
    for metric in METRICS:
        for name in (column for column in rows.columns if column not in POST_COLUMNS):
            mine, other = (rows[column].to_numpy() for column in (name, (others or {}).get(name, against)))
            found = paired_interval(
                Scored(labels, users, splits), mine[:, None], other[:, None], metric, resamples=resamples
            )
            named = {"metric": metric, "system": name, "score": score(labels, mine, splits)[metric]}
            table.append(named | {"difference": found.value, "low": found.low, "high": found.high} | sizes)
    return pl.DataFrame(table, schema_overrides=dict.fromkeys(("score", "difference", "low", "high"), pl.Float64))


@dataclass(frozen=True)
class Scored:
    """Valid posts: labels (n,), users (n,), and the split of each post (n,); None: all posts make one score."""

    label: Float64Array
    user: npt.NDArray[Any]
    split: Int64Array | None = None


@dataclass(frozen=True)
class Estimate:
    """A value and its percentile interval; None where undefined."""

    value: float | None
    low: float | None
    high: float | None


def paired_interval(
    posts: Scored,
    first: Float64Array,
    second: Float64Array,
    metric: Metric,
    *,
    resamples: int,
    confidence: float = 0.95,
) -> Estimate:
    """The metric of `first` minus that of `second`, mean over seeds, with an interval over users and seeds.

    A draw takes users with replacement, each with all posts, and seeds with replacement; both are scored on the same
    draw. The value is None where a metric is undefined; one user alone has no interval.

    Args:
        posts: n posts; a score is the mean over their splits.
        first: (n, seeds) predictions.
        second: (n, seeds) predictions by the same seeds; one column stands for all seeds, in `first` too.
        metric: src or mae.
        resamples: number of draws.
        confidence: fraction of the draws inside the interval.

    Raises:
        ContractError: `first` and `second` have different numbers of seeds.
    """
    seeds = max(first.shape[1], second.shape[1])
    if {first.shape[1], second.shape[1]} - {1, seeds}:
        raise ContractError(f"paired interval: {first.shape[1]} seeds against {second.shape[1]}")
    predictions = np.hstack([np.broadcast_to(side, (len(posts.label), seeds)) for side in (first, second)])
    values = [score(posts.label, column, posts.split)[metric] for column in predictions.T]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return Estimate(None, None, None)
    difference = float(np.mean(known[:seeds]) - np.mean(known[seeds:]))
    user = np.unique(posts.user, return_inverse=True)[1]
    if not user.any():
        return Estimate(difference, None, None)
    drawn = resample(posts.label, predictions, user, resamples=resamples, seed=0, folds=posts.split)[metric]
    picked = np.random.default_rng([0, seeds]).integers(seeds, size=(resamples, seeds))
    left, right = (
        np.take_along_axis(part, picked, axis=1).mean(axis=1) for part in (drawn[:, :seeds], drawn[:, seeds:])
    )
    return Estimate(difference, *interval(left - right, confidence))


USERS_PER_NAME = 10  # of shape "coarse users"


def coarse_users(posts: pl.DataFrame) -> pl.DataFrame:
    """The posts with USERS_PER_NAME users, drawn at random, under each name."""
    users = posts["uid"].unique().sort()
    group = np.random.default_rng(0).permutation(len(users)) // USERS_PER_NAME
    names = dict(zip(users.to_list(), (f"{index}@N00" for index in group), strict=True))
    return posts.with_columns(uid=pl.col("uid").replace_strict(names))


def half_classes(posts: pl.DataFrame) -> pl.DataFrame:
    """The posts of a random half of the second-level classes."""
    return _of_some(posts, "subcategory", 1 / 2)


def third_of_users(posts: pl.DataFrame) -> pl.DataFrame:
    """The posts of a random third of the users: a small data set."""
    return _of_some(posts, "uid", 1 / 3)


def _of_some(posts: pl.DataFrame, column: str, fraction: float) -> pl.DataFrame:
    kept = posts[column].unique().sort().sample(fraction=fraction, shuffle=True, seed=0)
    return posts.filter(pl.col(column).is_in(kept.implode()))


# Other data sets made from the posts of one: a gain on a single data set may be chance.
WHOLE = "whole"
SHAPES: Mapping[str, Callable[[pl.DataFrame], pl.DataFrame]] = {
    WHOLE: lambda posts: posts,
    "coarse users": coarse_users,
    "half the classes": half_classes,
    "a third of the users": third_of_users,
}


def reshaped(project: Project, shape: str, split: SplitParams) -> Project:
    """The project with the posts of a shape, and splits whose `holdout` begins at the same time as before.

    Its features are still those of the run; benchmarks.rows.with_splits computes the new ones.
    """
    posts = SHAPES[shape](project.posts)
    holdout = project.splits.filter(scheme="holdout", role="valid").select("pid")
    start = holdout.join(project.posts, on="pid", how="left", validate="1:1")["posted_at"].min()
    train = posts.filter(split="train")
    later = train.filter(pl.col("posted_at") >= start).height
    wanted = replace(split, span="fractions", holdout_fraction=later / train.height)
    return replace(project, posts=posts, splits=make_splits(posts, wanted)[0])
