"""Scores of every model in every scheme, overall and by group, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field
from tqdm import tqdm

from popularity.core.arrays import Float64Array, Int64Array, rounded
from popularity.core.config import Section
from popularity.core.contracts import HOLDOUT, MAIN_MODEL, REFIT, SCHEMES, TIME_SCHEMES
from popularity.core.errors import ContractError
from popularity.core.metrics import METRICS, score
from popularity.evaluation.bootstrap import interval, resample

MODELS = (MAIN_MODEL, "metadata", "user_mean", "constant")
COMPARED = ("src", "mae")  # the metrics that rank a team
MAX_CLASSES = 10  # scored of each level, those of most valid posts: intervals of small classes say nothing
DIGITS = 6  # of a score: the last bits depend on the machine

SCORES = {
    "scheme": pl.String,
    "fold": pl.Int32,  # null: the mean over the folds of a scheme in time, or the only score
    "used_in_selection": pl.String,
    "model": pl.String,
    "minus": pl.String,  # null: the score of `model`; else the difference `model` - `minus`
    "metric": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "posts": pl.Int64,
    "users": pl.Int64,
}
GROUPS = {name: kind for name, kind in SCORES.items() if name != "fold"} | {"grouping": pl.String, "group": pl.String}


@dataclass(frozen=True)
class EvaluateConfig(Section):
    """Section `evaluate` of params.yaml.

    Args:
        seed: of the draws of users and of the plotted sample.
        n_resamples: number of draws.
        confidence_level: share of the draws inside an interval.
    """

    seed: Annotated[int, Field(ge=0)]
    n_resamples: Annotated[int, Field(ge=1)]
    confidence_level: Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True)
class Scored:
    """The valid posts of one scheme, with their predictions.

    Args:
        scheme: its name.
        models: the main model first.
        rows: one a post and split, sorted by pid: pid, fold (0 in a scheme whose folds are scored together), uid,
            label, seen, posted_at, category, subcategory, month, `prediction:<model>` (mean over the seeds) for each
            model, and `error_scale`, the main model's. A post may be valid in several splits of `forward`.
        train_means: mean label of the train rows of each fold.
    """

    scheme: str
    models: tuple[str, ...]
    rows: pl.DataFrame
    train_means: Mapping[int, float]

    @property
    def folds(self) -> list[int]:
        """The folds in order of time; [0] of a scheme whose folds are scored together."""
        return self.rows["fold"].unique().sort().to_list()


def check_predictions(splits: pl.DataFrame, predictions: pl.DataFrame) -> None:
    """Raises ContractError unless every (model, seed) of a scheme predicts each valid (fold, pid) exactly once."""
    key = ["scheme", "fold", "pid"]
    runs = predictions.select("scheme", "model", "seed").unique()
    wanted = splits.filter(pl.col("role") == "valid").select(key).join(runs, on="scheme")
    found = predictions.group_by([*key, "model", "seed"]).len("found")
    both = wanted.with_columns(wanted=1).join(found, on=[*key, "model", "seed"], how="full", coalesce=True)
    problems = {
        "missing": both.filter(pl.col("found").is_null()),
        "surplus": both.filter(pl.col("wanted").is_null() | (pl.col("found") > 1)),
    }
    if any(len(rows) for rows in problems.values()):
        examples = [
            f"{len(rows)} {name}, for example {rows.sort(pl.all()).select(*key, 'model', 'seed').row(0, named=True)}"
            for name, rows in problems.items()
            if len(rows)
        ]
        raise ContractError(
            f"predictions: expected one for each valid row, model and seed ({len(wanted)} in all); "
            + "; ".join(examples)
        )


def collect(posts: pl.DataFrame, splits: pl.DataFrame, predictions: pl.DataFrame) -> list[Scored]:
    """Returns the valid posts of every labelled scheme that has predictions, `holdout` first.

    Raises:
        ContractError: predictions are missing or surplus, `holdout` or the main model is absent, or a
            valid post has no label.
    """
    check_predictions(splits, predictions)
    present = set(predictions["scheme"]) - {REFIT}
    if HOLDOUT not in present:
        raise ContractError(f"predictions: none for scheme '{HOLDOUT}', found {sorted(present)}")
    return [
        _collect_scheme(
            scheme, posts, splits.filter(pl.col("scheme") == scheme), predictions.filter(pl.col("scheme") == scheme)
        )
        for scheme in SCHEMES
        if scheme in present
    ]


def _collect_scheme(scheme: str, posts: pl.DataFrame, splits: pl.DataFrame, predictions: pl.DataFrame) -> Scored:
    found = set(predictions["model"])
    if MAIN_MODEL not in found:
        raise ContractError(f"predictions: scheme '{scheme}' has no model '{MAIN_MODEL}', found {sorted(found)}")
    models = (*(model for model in MODELS if model in found), *sorted(found - set(MODELS)))
    month = pl.col("posted_at").dt.strftime("%Y-%m").alias("month")
    columns = posts.select("pid", "uid", "label", "posted_at", "category", "subcategory", month)
    scored_fold = pl.col("fold") if scheme in TIME_SCHEMES else pl.lit(0, pl.Int32)
    roles = splits.join(columns, on="pid", how="left", validate="m:1").with_columns(scored_fold=scored_fold)
    train = roles.filter(pl.col("role") == "train")
    valid = roles.filter(pl.col("role") == "valid").join(
        train.select("fold", "uid", seen=pl.lit(True)).unique(), on=["fold", "uid"], how="left", validate="m:1"
    )
    unlabelled = valid.filter(pl.col("label").is_null())
    if len(unlabelled):
        raise ContractError(
            f"splits: {len(unlabelled)} valid posts of '{scheme}' have no label, for example {unlabelled['pid'][0]}"
        )
    means = (
        predictions.with_columns(model=pl.format("prediction:{}", "model"))
        .sort("seed")
        .group_by("fold", "pid", "model", maintain_order=True)
        .agg(pl.col("prediction").mean())
        .pivot(on="model", index=["fold", "pid"], values="prediction")
    )
    # The error_scale is that of the mean over the seeds; each seed's row repeats it.
    of_main = predictions.filter(pl.col("model") == MAIN_MODEL)
    error_scales = of_main.sort("seed").group_by("fold", "pid").agg(pl.first("error_scale"))
    rows = (
        valid.with_columns(pl.col("seen").fill_null(value=False))
        .join(means, on=["fold", "pid"], how="left", validate="1:1")
        .join(error_scales, on=["fold", "pid"], how="left", validate="1:1")
        .drop("scheme", "role", "fold")
        .rename({"scored_fold": "fold"})
        .sort("pid", "fold")
    )
    train_means = train.group_by("scored_fold").agg(pl.col("label").mean()).sort("scored_fold")
    return Scored(scheme, models, rows, dict(train_means.iter_rows()))


def score_overall(scored: list[Scored], config: EvaluateConfig) -> pl.DataFrame:
    """Returns scores of models and differences of pairs, by scheme and in each of its folds: columns SCORES."""
    rows: list[dict[str, Any]] = []
    for one in scored:
        rows += _score_rows(one, one.rows, config, one.rows["fold"].to_numpy().astype(np.int64))
        if len(one.folds) > 1:
            for fold in one.folds:
                rows += [{**row, "fold": fold} for row in _score_rows(one, one.rows.filter(fold=fold), config)]
    return pl.DataFrame(rows, schema=SCORES, orient="row")


def score_groups(scored: list[Scored], config: EvaluateConfig) -> pl.DataFrame:
    """Returns the same within groups of posts: columns GROUPS. Folds are pooled, because a group may be small."""
    groups = [(one, *group) for one in scored for group in _groups(one.rows)]
    rows = [
        {**row, "grouping": grouping, "group": group}
        for one, grouping, group, posts in tqdm(groups, desc="scores by group", unit="group")
        for row in _score_rows(one, posts, config)
    ]
    return pl.DataFrame(rows, schema=GROUPS).select(
        "scheme", "grouping", "group", pl.exclude("scheme", "grouping", "group")
    )


def _groups(rows: pl.DataFrame) -> Iterator[tuple[str, str, pl.DataFrame]]:
    for seen, group in ((True, "seen"), (False, "unseen")):
        if len(posts := rows.filter(pl.col("seen") == seen)):
            yield "user", group, posts
    for level in ("category", "subcategory"):
        counts = rows.group_by(level).len().sort(["len", level], descending=[True, False])
        for group in counts[level].head(MAX_CLASSES):
            yield level, group, rows.filter(pl.col(level) == group)
    for month in rows["month"].unique().sort():
        yield "month", month, rows.filter(pl.col("month") == month)


def _score_rows(
    one: Scored, rows: pl.DataFrame, config: EvaluateConfig, folds: Int64Array | None = None
) -> Iterator[dict[str, Any]]:
    """Yields rows of the score table for some of a scheme's posts; means over their `folds` (n,), if given."""
    labels = rows["label"].to_numpy()
    predictions = rows.select(f"prediction:{model}" for model in one.models).to_numpy()
    users = rows["uid"].rank("dense").to_numpy().astype(np.int64) - 1
    n_users = int(users.max()) + 1
    draws = resample(labels, predictions, users, resamples=config.n_resamples, seed=config.seed, folds=folds)
    values = [score(labels, predictions[:, column], folds) for column in range(len(one.models))]

    def row(model: str, minus: str | None, metric: str, value: float | None, column: Float64Array) -> dict[str, Any]:
        # All draws of one user are equal: no interval, rather than one of width 0.
        known = value is not None and n_users > 1
        low, high = interval(column, config.confidence_level) if known else (None, None)
        return {
            "scheme": one.scheme,
            "fold": None,
            "used_in_selection": "no" if one.scheme == HOLDOUT else "yes",
            "model": model,
            "minus": minus,
            "metric": metric,
            "value": rounded(value, DIGITS),
            "low": rounded(low, DIGITS),
            "high": rounded(high, DIGITS),
            "posts": rows["pid"].n_unique(),
            "users": n_users,
        }

    for column, model in enumerate(one.models):
        for metric in METRICS:
            yield row(model, None, metric, values[column][metric], draws[metric][:, column])
    for left, right in combinations(range(len(one.models)), 2):
        for metric in COMPARED:
            mine, other = values[left][metric], values[right][metric]
            difference = mine - other if mine is not None and other is not None else None
            yield row(
                one.models[left],
                one.models[right],
                metric,
                difference,
                draws[metric][:, left] - draws[metric][:, right],
            )
