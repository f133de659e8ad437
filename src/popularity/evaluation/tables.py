"""The files that evaluate writes: metrics, score tables, data of the plots, and a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from popularity.core.atomic import atomic_directory, atomic_path, write_json, write_text
from popularity.core.contracts import HOLDOUT, MAIN_MODEL
from popularity.core.csv_cells import plain_cells
from popularity.core.errors import ContractError
from popularity.core.metrics import METRICS
from popularity.evaluation.conformal import CALIBRATED_ON, Calibration, calibrate_on, coverage_table
from popularity.evaluation.distance import HEADER, distance_rows, distance_sentences
from popularity.evaluation.promise import CONFIDENCE, TEST, promise_sentences, promise_table, promises
from popularity.evaluation.scores import EvaluateConfig, Scored, collect, score_groups, score_overall

MAX_SCATTER_ROWS = 2_000  # a sample that a browser draws quickly
EACH_FOLD = "Each split of 'forward', from the first to the last; the scores above are their means"
IMPORTANCE = {"block": pl.String, "feature": pl.String, "gain": pl.Float64}

Metrics = dict[str, dict[str, dict[str, float | None]]]


@dataclass(frozen=True)
class Evaluation:
    """The results of evaluate.

    Args:
        metrics: scheme -> model -> metric -> value or None.
        scores: long table, columns SCORES.
        groups: long table, columns GROUPS.
        calibration: of the intervals.
        coverage: of the intervals in `holdout`, columns COVERAGE.
        promise: of the splits in time, columns PROMISES.
        plots: file stem -> data of one plot.
        table: fixed-width text for people.
    """

    metrics: Metrics
    scores: pl.DataFrame
    groups: pl.DataFrame
    calibration: Calibration
    coverage: pl.DataFrame
    promise: pl.DataFrame
    plots: dict[str, pl.DataFrame]
    table: str


@dataclass(frozen=True)
class EvaluationInputs:
    """What is scored.

    Args:
        posts: contract POSTS.
        splits: contract FOLDS.
        predictions: contract PREDICTIONS.
        trends: contract TRENDS.
        importance: (block, feature, gain) of the stack.
        split_summary: reports/split.json.
    """

    posts: pl.DataFrame
    splits: pl.DataFrame
    predictions: pl.DataFrame
    trends: pl.DataFrame
    importance: pl.DataFrame
    split_summary: Mapping[str, Any]


def evaluate(inputs: EvaluationInputs, config: EvaluateConfig) -> Evaluation:
    """Returns scores of every model in every labelled scheme and coverage of the intervals, with tables and plot data.

    Args:
        inputs: tables of earlier stages.
        config: section evaluate.

    Raises:
        ContractError: predictions do not match the valid rows one to one, see `collect`, or lack an error_scale.
    """
    scored = collect(inputs.posts, inputs.splits, inputs.predictions)
    calibration = calibrate_on(scored)
    coverage = coverage_table(scored[0], calibration, config)
    scores, groups = score_overall(scored, config), score_groups(scored, config)
    overall = scores.filter(pl.col("fold").is_null())
    promise = promise_table(promises(scored, scores, inputs.trends, config.confidence_level))
    if inputs.split_summary["interleaved"]:  # a part that lies elsewhere in time than the splits
        promise = promise.filter(pl.col("part") != TEST)
    plots = {
        "predicted_true": _predicted_true(scored[0], config.seed),
        "residual_by_month": _residual_by_month(groups),
        "importance_by_block": _importance_by_block(inputs.importance),
        "score_by_scheme": _score_by_scheme(overall),
    }
    table = "\n\n".join(
        [
            _table(scored, scores, groups, config.confidence_level),
            _coverage_table(calibration, coverage),
            _distance_table(inputs.split_summary),
            _promise_table(promise),
        ]
    )
    return Evaluation(_metrics(overall), scores, groups, calibration, coverage, promise, plots, table)


def read_importance(path: Path) -> pl.DataFrame:
    """Returns the gain of each feature of the stack: columns block, feature, gain."""
    frame = pl.read_csv(path, schema_overrides=IMPORTANCE)
    if frame.columns != list(IMPORTANCE):
        raise ContractError(f"{path}: expected columns {list(IMPORTANCE)}, found {frame.columns}")
    return frame


@dataclass(frozen=True)
class EvaluationPaths:
    """Where the results of evaluate are written: a folder `plots`, and one file each."""

    metrics: Path
    table: Path
    scores: Path
    groups: Path
    calibration: Path
    coverage: Path
    promise: Path
    promise_metrics: Path
    plots: Path


def write_evaluation(evaluation: Evaluation, paths: EvaluationPaths) -> None:
    """Writes metrics and calibration (JSON), the table for people, four tables and the data of each plot (CSV)."""
    write_json(paths.metrics, evaluation.metrics)
    write_json(paths.promise_metrics, _promise_metrics(evaluation.promise))
    write_text(paths.table, evaluation.table + "\n")
    evaluation.calibration.write(paths.calibration)
    for name in ("scores", "groups", "coverage", "promise"):
        with atomic_path(getattr(paths, name)) as partial:
            plain_cells(getattr(evaluation, name)).write_csv(partial)
    with atomic_directory(paths.plots) as partial:
        for name, frame in evaluation.plots.items():
            frame.write_csv(partial / f"{name}.csv")


def _metrics(scores: pl.DataFrame) -> Metrics:
    result: Metrics = {}
    for row in scores.filter(pl.col("minus").is_null()).iter_rows(named=True):
        result.setdefault(row["scheme"], {}).setdefault(row["model"], {})[row["metric"]] = row["value"]
    return result


def _promise_metrics(promise: pl.DataFrame) -> dict[str, dict[str, dict[str, float | None]]]:
    """Part -> metric -> promise, low, high, width and result: for dvc metrics."""
    result: dict[str, dict[str, dict[str, float | None]]] = {}
    for row in promise.iter_rows(named=True):
        numbers = {name: row[name] for name in ("promise", "low", "high", "width", "result")}
        result.setdefault(row["part"].replace(" ", "_"), {})[row["metric"]] = numbers
    return result


def _predicted_true(holdout: Scored, seed: int) -> pl.DataFrame:
    rows = holdout.rows.select(
        pl.col(f"prediction:{MAIN_MODEL}").round(6).alias("prediction"),
        "label",
        pl.when("seen").then(pl.lit("seen user")).otherwise(pl.lit("unseen user")).alias("seen"),
    )
    chosen = np.random.default_rng(seed).permutation(len(rows))[:MAX_SCATTER_ROWS]
    return rows[np.sort(chosen)]


def _residual_by_month(groups: pl.DataFrame) -> pl.DataFrame:
    """Mean of prediction - label of the main model. `year` is the middle of the month as a number, for the axis."""
    year, month = pl.col("month").str.slice(0, 4).cast(pl.Int64), pl.col("month").str.slice(5, 2).cast(pl.Int64)
    return (
        groups.filter(
            (pl.col("scheme") == HOLDOUT)
            & (pl.col("grouping") == "month")
            & (pl.col("model") == MAIN_MODEL)
            & (pl.col("metric") == "bias")
        )
        .select(pl.col("group").alias("month"), pl.col("value").alias("residual"), "low", "high", "posts")
        .with_columns(year=(year + (month - 0.5) / 12).round(4))
    )


def _importance_by_block(importance: pl.DataFrame) -> pl.DataFrame:
    blocks = importance.group_by("block").agg(pl.col("gain").sum()).sort(["gain", "block"], descending=[True, False])
    total = blocks["gain"].sum()
    share = pl.col("gain") / total if total else pl.lit(0.0)  # trees without a split have no gain
    return blocks.select("block", share=share.round(6))


def _score_by_scheme(scores: pl.DataFrame) -> pl.DataFrame:
    """`score_of` names a bar: a DVC bar plot has one label per bar."""
    return (
        scores.filter(pl.col("minus").is_null())
        .pivot(on="metric", index=["scheme", "model"], values="value")
        .select("scheme", "model", "src", "mae", score_of=pl.format("{} {}", "scheme", "model"))
    )


def _table(scored: list[Scored], scores: pl.DataFrame, groups: pl.DataFrame, confidence: float) -> str:
    """Scores, those of each fold, seen against unseen users, differences and mean labels; `holdout` first in each."""
    metrics = ["SRC", "MAE", "MAPE", "bias"]
    overall, by_fold = scores.filter(pl.col("fold").is_null()), scores.filter(pl.col("fold").is_not_null())
    by_user = groups.filter((pl.col("scheme") == HOLDOUT) & (pl.col("grouping") == "user"))
    differences = [
        [f"{row['model']} - {row['minus']}", row["metric"].upper(), _with_interval(row, sign="+")]
        for row in overall.filter((pl.col("scheme") == HOLDOUT) & pl.col("minus").is_not_null()).iter_rows(named=True)
    ]
    mean_labels = []
    for one in scored:
        for fold in one.folds:
            valid, train = one.rows.filter(fold=fold).select(pl.col("label").mean()).item(), one.train_means[fold]
            means = (f"{train:.3f}", f"{valid:.3f}", f"{valid - train:+.3f}")
            mean_labels.append([one.scheme, f"{fold}" if len(one.folds) > 1 else "-", *means])
    sections = {
        f"Scores with {confidence:.0%} intervals (bootstrap over users)": _fixed_width(
            ["scheme", "used in selection", "model", "posts", "users", *metrics],
            _score_lines(overall, ["scheme", "used_in_selection", "model"]),
        ),
        EACH_FOLD: _fixed_width(
            ["scheme", "fold", "model", "posts", "users", *metrics], _score_lines(by_fold, ["scheme", "fold", "model"])
        ),
        f"'{HOLDOUT}' by whether the user has a train row": _fixed_width(
            ["user", "model", "posts", "users", *metrics], _score_lines(by_user, ["group", "model"])
        ),
        f"Differences in '{HOLDOUT}', draw by draw": _fixed_width(["models", "metric", "difference"], differences),
        "Mean label: a model that knows the train rows alone misses the mean by the shift": _fixed_width(
            ["scheme", "fold", "train rows", "valid rows", "shift"], mean_labels
        ),
    }
    if by_fold.is_empty():
        del sections[EACH_FOLD]
    return "\n\n".join(f"{title}\n{text}" for title, text in sections.items())


def _coverage_table(calibration: Calibration, coverage: pl.DataFrame) -> str:
    """Nominal coverage and coverage in `holdout`; an infinite interval is named."""
    title = f"Intervals in '{HOLDOUT}', calibrated on {calibration.posts:,} posts of '{calibration.scheme}'"
    if not calibration.posts:
        return f"No intervals: they need predictions of '{CALIBRATED_ON}', which is not among stack.schemes"
    lines = [
        [
            f"{row['nominal']:.0%}",
            row["group"],
            *(f"{row[count]:,}" for count in ("posts", "users")),
            "infinite: too few posts to calibrate" if row["coverage"] is None else _with_interval(row, of="coverage"),
            "-" if row["width"] is None else f"{row['width']:.3f}",
        ]
        for row in coverage.iter_rows(named=True)
    ]
    header = ["nominal", "users are", "posts", "users", "coverage", "mean width"]
    return f"{title}\n{_fixed_width(header, lines)}"


def _distance_table(split_summary: Mapping[str, Any]) -> str:
    """How far each scheme looks ahead, next to the test part."""
    table = _fixed_width(list(HEADER), distance_rows(split_summary))
    title = "How far each split looks ahead; a past is an older label of the user"
    return "\n".join([title, *distance_sentences(split_summary), table])


def _promise_table(promise: pl.DataFrame) -> str:
    """What the other splits promised for each part, next to the result."""
    lines = [
        [
            row["part"],
            row["metric"].upper(),
            f"{row['splits']}",
            f"{row['shared']:.0%}",
            f"{row['promise']:.4f} [{row['low']:.3f}, {row['high']:.3f}]",
            f"{row['width']:.3f}",
            "-" if row["result"] is None else f"{row['result']:.4f}",
            "-" if row["inside"] is None else "yes" if row["inside"] else "no",
            "-" if row["members_differ_by"] is None else f"{row['members_differ_by']:.3f}",
        ]
        for row in promise.iter_rows(named=True)
    ]
    title = (
        f"Promise of '{MAIN_MODEL}' with a {CONFIDENCE:.0%} interval: a forward split by the others, '{HOLDOUT}' by "
        f"the forward splits, '{TEST}' by all"
    )
    if not lines:
        return f"{title}\nNone: a split in time has no score with an interval"
    header = ["for", "metric", "splits", "shared posts", "promise", "width", "result", "inside", "members differ by"]
    return "\n".join([title, *promise_sentences(promise), _fixed_width(header, lines)])


def _score_lines(scores: pl.DataFrame, names: list[str]) -> list[list[str]]:
    """One line per combination of `names`, in the order of the table."""
    lines = []
    for group in scores.filter(pl.col("minus").is_null()).partition_by(names, maintain_order=True):
        rows = {row["metric"]: row for row in group.iter_rows(named=True)}
        first = rows[METRICS[0]]
        lines.append(
            [
                *(f"{first[name]}" for name in names),
                *(f"{first[count]:,}" for count in ("posts", "users")),
                *(_with_interval(rows[metric], "+" if metric == "bias" else "") for metric in METRICS),
            ]
        )
    return lines


def _with_interval(row: dict[str, Any], sign: str = "", of: str = "value") -> str:
    if row[of] is None:
        return "-"
    value = f"{row[of]:{sign}.4f}"
    return value if row["low"] is None else f"{value} [{row['low']:{sign}.3f}, {row['high']:{sign}.3f}]"


def _fixed_width(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, rule, *rows)
    )
