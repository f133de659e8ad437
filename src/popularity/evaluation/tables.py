"""What evaluate hands on: the metrics file, the plots' data and the table that a person reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from popularity.core.atomic import atomic_directory, atomic_path, write_json, write_text
from popularity.core.errors import ContractError
from popularity.core.metrics import METRICS
from popularity.evaluation.conformal import CALIBRATED_ON, Calibration, calibrate_on, coverage_table
from popularity.evaluation.scores import (
    HOLDOUT,
    MAIN_MODEL,
    EvaluateConfig,
    Scored,
    collect,
    score_groups,
    score_overall,
)

SCATTER_ROWS = 2_000  # a sample that a browser still draws at once
CUTS = "Each cut in time, from the first to the last; above stands their mean"
IMPORTANCE = {"block": pl.String, "feature": pl.String, "gain": pl.Float64}

Metrics = dict[str, dict[str, dict[str, float | None]]]


@dataclass(frozen=True)
class Evaluation:
    """Everything that evaluate finds.

    Args:
        metrics: scheme -> model -> metric -> value or None.
        scores: long table, columns SCORES.
        groups: long table, columns GROUPS.
        calibration: of the intervals.
        coverage: of the intervals in `report`, columns COVERAGE.
        plots: file stem -> data of one plot.
        table: fixed-width text for people.
    """

    metrics: Metrics
    scores: pl.DataFrame
    groups: pl.DataFrame
    calibration: Calibration
    coverage: pl.DataFrame
    plots: dict[str, pl.DataFrame]
    table: str


def evaluate(
    posts: pl.DataFrame,
    splits: pl.DataFrame,
    predictions: pl.DataFrame,
    importance: pl.DataFrame,
    config: EvaluateConfig,
) -> Evaluation:
    """Scores of every model in every labelled scheme and coverage of the intervals, with tables and plot data.

    Raises:
        ContractError: predictions do not match the scored rows one to one, see `collect`, or lack a scale.
    """
    scored = collect(posts, splits, predictions)
    calibration = calibrate_on(scored)
    coverage = coverage_table(scored[0], calibration, config)
    scores, groups = score_overall(scored, config), score_groups(scored, config)
    overall = scores.filter(pl.col("cut").is_null())
    plots = {
        "predicted_true": _predicted_true(scored[0], config.seed),
        "residual_by_month": _residual_by_month(groups),
        "importance_by_block": _importance_by_block(importance),
        "score_by_scheme": _score_by_scheme(overall),
    }
    table = "\n\n".join(
        [_table(scored, scores, groups, config.confidence_level), _coverage_table(calibration, coverage)]
    )
    return Evaluation(_metrics(overall), scores, groups, calibration, coverage, plots, table)


def read_importance(path: Path) -> pl.DataFrame:
    """The gain of each feature of the stack: columns block, feature, gain."""
    frame = pl.read_csv(path, schema_overrides=IMPORTANCE)
    if frame.columns != list(IMPORTANCE):
        raise ContractError(f"{path}: expected columns {list(IMPORTANCE)}, found {frame.columns}")
    return frame


def write_evaluation(
    evaluation: Evaluation,
    *,
    metrics: Path,
    table: Path,
    scores: Path,
    groups: Path,
    calibration: Path,
    coverage: Path,
    plots: Path,
) -> None:
    """Writes metrics.json, the table for people, the score tables, calibration.json, coverage and one CSV per plot."""
    write_json(metrics, evaluation.metrics)
    write_text(table, evaluation.table + "\n")
    evaluation.calibration.write(calibration)
    tables = ((evaluation.scores, scores), (evaluation.groups, groups), (evaluation.coverage, coverage))
    for frame, path in tables:
        with atomic_path(path) as partial:
            frame.write_csv(partial)
    with atomic_directory(plots) as partial:
        for name, frame in evaluation.plots.items():
            frame.write_csv(partial / f"{name}.csv")


def _metrics(scores: pl.DataFrame) -> Metrics:
    result: Metrics = {}
    for row in scores.filter(pl.col("minus").is_null()).iter_rows(named=True):
        result.setdefault(row["scheme"], {}).setdefault(row["model"], {})[row["metric"]] = row["value"]
    return result


def _predicted_true(report: Scored, seed: int) -> pl.DataFrame:
    rows = report.rows.select(
        pl.col(f"prediction:{MAIN_MODEL}").round(6).alias("prediction"),
        "label",
        pl.when("seen").then(pl.lit("seen user")).otherwise(pl.lit("unseen user")).alias("seen"),
    )
    chosen = np.random.default_rng(seed).permutation(len(rows))[:SCATTER_ROWS]
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
    share = pl.col("gain") / total if total else pl.lit(0.0)  # a stack of trees without a split has no gain
    return blocks.select("block", share=share.round(6))


def _score_by_scheme(scores: pl.DataFrame) -> pl.DataFrame:
    """`score_of` names a bar: a DVC bar plot has one label per bar."""
    return (
        scores.filter(pl.col("minus").is_null())
        .pivot(on="metric", index=["scheme", "model"], values="value")
        .select("scheme", "model", "src", "mae", score_of=pl.format("{} {}", "scheme", "model"))
    )


def _table(scored: list[Scored], scores: pl.DataFrame, groups: pl.DataFrame, confidence: float) -> str:
    """Scores, those of each cut, seen against unseen users, differences and label levels; `report` first in each."""
    metrics = ["SRC", "MAE", "MAPE", "bias"]
    overall, by_cut = scores.filter(pl.col("cut").is_null()), scores.filter(pl.col("cut").is_not_null())
    by_user = groups.filter((pl.col("scheme") == HOLDOUT) & (pl.col("grouping") == "user"))
    differences = [
        [f"{row['model']} - {row['minus']}", row["metric"].upper(), _with_interval(row, sign="+")]
        for row in overall.filter((pl.col("scheme") == HOLDOUT) & pl.col("minus").is_not_null()).iter_rows(named=True)
    ]
    levels = []
    for one in scored:
        for cut in one.cuts:
            scored_mean, fit_mean = one.rows.filter(cut=cut).select(pl.col("label").mean()).item(), one.fit_means[cut]
            means = (f"{fit_mean:.3f}", f"{scored_mean:.3f}", f"{scored_mean - fit_mean:+.3f}")
            levels.append([one.scheme, f"{cut}" if len(one.cuts) > 1 else "-", *means])
    parts = {
        f"Scores with {confidence:.0%} intervals (bootstrap over users)": _fixed_width(
            ["scheme", "used in selection", "model", "posts", "users", *metrics],
            _score_lines(overall, ["scheme", "used_in_selection", "model"]),
        ),
        CUTS: _fixed_width(
            ["scheme", "cut", "model", "posts", "users", *metrics], _score_lines(by_cut, ["scheme", "cut", "model"])
        ),
        f"'{HOLDOUT}' by whether the user has a post in the fit rows": _fixed_width(
            ["user", "model", "posts", "users", *metrics], _score_lines(by_user, ["group", "model"])
        ),
        f"Differences in '{HOLDOUT}', draw by draw": _fixed_width(["models", "metric", "difference"], differences),
        "Mean label: a model that knows only the fit rows misses the level by the shift": _fixed_width(
            ["scheme", "cut", "fit rows", "scored rows", "shift"], levels
        ),
    }
    if by_cut.is_empty():
        del parts[CUTS]
    return "\n\n".join(f"{title}\n{part}" for title, part in parts.items())


def _coverage_table(calibration: Calibration, coverage: pl.DataFrame) -> str:
    """Stated against found coverage; says so where a level could not be stated."""
    title = f"Intervals in '{HOLDOUT}', calibrated on {calibration.posts:,} posts of '{calibration.scheme}'"
    if not calibration.posts:
        return f"No intervals: '{CALIBRATED_ON}' is not among stack.schemes, and nothing else calibrates them"
    lines = [
        [
            f"{row['level']:.0%}",
            row["group"],
            *(f"{row[count]:,}" for count in ("posts", "users")),
            "infinite: too few posts to calibrate" if row["coverage"] is None else _with_interval(row, of="coverage"),
            "-" if row["width"] is None else f"{row['width']:.3f}",
        ]
        for row in coverage.iter_rows(named=True)
    ]
    header = ["stated", "users are", "posts", "users", "coverage", "mean width"]
    return f"{title}\n{_fixed_width(header, lines)}"


def _score_lines(scores: pl.DataFrame, names: list[str]) -> list[list[str]]:
    """One line per combination of `names`, in the order of the table."""
    lines = []
    for part in scores.filter(pl.col("minus").is_null()).partition_by(names, maintain_order=True):
        rows = {row["metric"]: row for row in part.iter_rows(named=True)}
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
