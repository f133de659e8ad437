"""Scores of each model in each validation scheme, with intervals."""

from __future__ import annotations

import polars as pl

from popularity.core import paths
from popularity.core.contracts import HOLDOUT, MAIN_MODEL
from popularity.evaluation.promise import CONFIDENCE, TEST
from popularity.report import drawing
from popularity.report.document import Chart, Charts, Element, Section, Table, Text
from popularity.report.drawing import Interval
from popularity.report.run_folder import RunFolder
from popularity.report.score_cells import by_metric, differences, metric_cells, overall, single_splits, verdict
from popularity.report.wording import MINUS, NONE, estimate, number, percent

READS = (paths.SCORES, paths.PROMISE)
METRIC_HEADER = ("posts", "users", "SRC", "MAE", "MAPE", "bias")
MODELS = (
    f"Models: {MAIN_MODEL} is the mean of the ensemble's members; metadata uses no images, texts or network; "
    "user_mean is the mean label of the user's train rows, shrunk to the mean of all; constant is the median of the "
    "train rows."
)


def build(run: RunFolder) -> Section | None:
    """The section; None if no score was written."""
    scores = overall(run.scores)
    if scores.is_empty():
        return None
    text = (
        "SRC is Spearman's rank correlation (higher is better). MAE is the mean absolute error in label units, log2 of "
        f"{run.counted} (lower is better). MAPE is the mean error as a share of the label. Bias is the mean of "
        f"prediction {MINUS} label. Brackets hold {percent(run.evaluation.confidence_level, 0)} intervals from a "
        "bootstrap over users: they show how the score varies with the users, not how it varies with the training data."
    )
    elements: list[Element] = [
        Text(text),
        Charts([_chart(scores, "src", "Further right is better."), _chart(scores, "mae", "Further left is better.")]),
        _table("All scores", scores, ["scheme", "model"]),
    ]
    if len(single := single_splits(run.scores)):
        elements.append(_table("Each split in time, from the first to the last", single, ["scheme", "fold", "model"]))
    if run.has(paths.PROMISE) and len(run.promise):
        elements.append(_promise(run.promise))
    if len(compared := differences(run.scores).filter(scheme=HOLDOUT, model=MAIN_MODEL)):
        elements.append(_differences(compared))
    return Section("scores", "Scores", [*elements, Text(MODELS)])


def _chart(scores: pl.DataFrame, metric: str, caption: str) -> Chart:
    title = metric.upper()
    rows = [
        Interval(row["scheme"], row["model"], row["value"], row["low"], row["high"])
        for row in scores.filter(metric=metric).iter_rows(named=True)
    ]
    if any(row.value is None for row in rows):
        caption += " A constant prediction has no rank correlation."
    drawn = drawing.intervals(rows, title, f"{title} of each model in each scheme, with intervals", strong=HOLDOUT)
    return Chart(drawn, f"{title} by scheme and model", caption)


def _table(title: str, scores: pl.DataFrame, names: list[str]) -> Table:
    """A row for each combination of `names`."""
    rows = [
        [*map(str, key), f"{metrics['src']['posts']:,}", f"{metrics['src']['users']:,}", *metric_cells(metrics)]
        for key, metrics in by_metric(scores, names)
    ]
    header = ["split" if name == "fold" else name for name in names]
    return Table(title, [*header, *METRIC_HEADER], rows, names=len(names))


def _promise(promise: pl.DataFrame) -> Table:
    """A row for each part and metric: what the other splits promised, and the result."""
    rows = [
        [
            row["part"],
            row["metric"].upper(),
            f"{row['splits']}",
            percent(row["shared"], 0),
            estimate(row["promise"], row["low"], row["high"]),
            number(row["width"]),
            number(row["result"]),
            NONE if row["inside"] is None else "yes" if row["inside"] else "no",
            number(row["members_differ_by"]),
        ]
        for row in promise.iter_rows(named=True)
    ]
    title = (
        f"Promise with a {percent(CONFIDENCE, 0)} interval: a forward split by the others, {HOLDOUT} by the forward "
        f"splits, {TEST} by all"
    )
    header = ["for", "metric", "splits", "shared posts", "promise", "width", "result", "inside", "members differ by"]
    return Table(title, header, rows, names=2)


def _differences(compared: pl.DataFrame) -> Table:
    rows = [
        [
            f"{row['model']} {MINUS} {row['minus']}",
            row["metric"].upper(),
            estimate(row["value"], row["low"], row["high"], sign=True),
            verdict(row),
        ]
        for row in compared.iter_rows(named=True)
    ]
    title = f"The {MAIN_MODEL} against each baseline on {HOLDOUT}: the same draws of users for both"
    return Table(title, ["difference", "metric", "value", "verdict"], rows, names=2)
