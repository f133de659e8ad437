"""Errors of the predictions: against the true labels, by month and group, and of single posts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from popularity.core import paths
from popularity.core.contracts import HOLDOUT, IMAGE_STATUS, MAIN_MODEL
from popularity.core.metrics import score
from popularity.evaluation.bootstrap import interval, resample
from popularity.evaluation.scores import EvaluateConfig, Scored
from popularity.report import drawing
from popularity.report.document import Chart, Charts, Element, Post, Posts, Section, Table, Text
from popularity.report.drawing import Line, XAxis
from popularity.report.run_folder import RunFolder
from popularity.report.score_cells import Metrics, by_metric, metric_cells
from popularity.report.wording import MINUS, class_label, counted, number, shortened

READS = (
    paths.POSTS,
    paths.SPLITS,
    paths.ENSEMBLE_PREDICTIONS,
    paths.SCORES_BY_GROUP,
    paths.IMAGES,
    paths.IMAGE_STATUS,
)
PREDICTION = f"prediction:{MAIN_MODEL}"
GROUPINGS = {
    "user": "User has a train post",
    "category": "First taxonomy level",
    "subcategory": "Second taxonomy level",
    "month": "Month",
}


def build(run: RunFolder) -> Section | None:
    """The section; None if no post of scheme HOLDOUT was scored."""
    if run.scored is None:
        return None
    text = (
        f"The validation posts of scheme {HOLDOUT}, predicted by the {MAIN_MODEL}, in label units: "
        f"log2({run.counted} + 1). Small groups have wide intervals: compare these, not the values. The largest "
        "classes are listed, the worst first."
    )
    groups = {name: _groups(run, name) for name in GROUPINGS}
    charts = [*_predicted_against_true(run.scored), _residual_by_month(groups["month"])]
    tables = [_group_table(GROUPINGS[name], rows) for name, rows in groups.items()]
    modalities = _group_table("Modalities of the post", modality_scores(run))
    return Section(
        "errors",
        "Errors",
        [Text(text), Charts(charts), _spread(run.scored), *tables, modalities, *_worst(run.scored, run)],
    )


def _groups(run: RunFolder, grouping: str) -> list[tuple[str, Metrics]]:
    """Name and scores of each group; classes by their MAE, the largest first."""
    own = run.group_scores.filter(scheme=HOLDOUT, model=MAIN_MODEL, grouping=grouping)
    found = by_metric(own, ["group"])
    if grouping not in ("category", "subcategory"):
        return [(str(group), metrics) for (group,), metrics in found]
    found.sort(key=lambda one: -one[1]["mae"]["value"])
    return [(class_label(group), metrics) for (group,), metrics in found]


def _predicted_against_true(scored: Scored) -> list[Chart]:
    values = scored.rows.select("label", PREDICTION).to_numpy()
    pad = 0.03 * float(np.ptp(values)) or 1.0
    limits = float(values.min()) - pad, float(values.max()) + pad
    charts = []
    for name, rows in _by_user(scored):
        label, prediction = (rows[column].to_numpy() for column in ("label", PREDICTION))
        description = f"Predicted against true label, {name}"
        drawn = drawing.predicted_against_true(label, prediction, limits, name, description)
        caption = (
            f"{counted(len(rows), 'post')}. The stronger the colour, the more posts. The line joins the mean label of "
            "each tenth of the predictions; for a calibrated model it lies on the diagonal."
        )
        charts.append(Chart(drawn, description, caption))
    return charts


def _by_user(scored: Scored) -> list[tuple[str, pl.DataFrame]]:
    parts = ((f"{name} users", scored.rows.filter(seen=seen)) for name, seen in (("seen", True), ("unseen", False)))
    return [(name, rows) for name, rows in parts if len(rows)]


def _spread(scored: Scored) -> Table:
    rows = []
    for name, part in _by_user(scored):
        columns = (part[column].to_numpy() for column in ("label", PREDICTION))
        rows.append([name, *(number(float(np.std(column, ddof=min(1, len(part) - 1))), 2) for column in columns)])
    return Table("Standard deviation", ["posts", "label", "prediction"], rows)


def _residual_by_month(groups: Sequence[tuple[str, Metrics]]) -> Chart:
    biases = [metrics["bias"] for _, metrics in groups]
    low, high = ([np.nan if row[name] is None else row[name] for row in biases] for name in ("low", "high"))
    line = Line("residual", list(range(len(groups))), [row["value"] for row in biases], low, high, marker="o")
    description = "Mean residual in each month, with intervals"
    title = f"residual (prediction {MINUS} label)"
    drawn = drawing.lines([line], title, description, x=XAxis(names=[month for month, _ in groups]), reference=0)
    caption = "Residual by month. Above the dashed line the predictions are too high; the band is the interval."
    return Chart(drawn, description, caption)


def _group_table(name: str, groups: Sequence[tuple[str, Metrics]]) -> Table:
    rows = [
        [
            group,
            *(f"{metrics['mae'][count]:,}" for count in ("posts", "users")),
            *metric_cells(metrics, ("mae", "src", "bias")),
        ]
        for group, metrics in groups
    ]
    return Table(name, ["group", "posts", "users", "MAE", "SRC", "bias"], rows)


def modality_scores(run: RunFolder) -> list[tuple[str, Metrics]]:
    """The main model's scores in scheme HOLDOUT by the modalities of a post; [] without a scored post."""
    if run.scored is None:
        return []
    text = (pl.col("title").str.strip_chars() != "") | (pl.col("tags").str.strip_chars() != "")
    statuses = run.table(paths.IMAGE_STATUS, IMAGE_STATUS)
    has = run.posts.select("pid", text=text).join(
        statuses.select("pid", image=pl.col("status") == "ok"), on="pid", how="left", validate="1:1"
    )
    names = {(True, True): "image and text", (True, False): "image only", (False, True): "text only"}
    rows = run.scored.rows.join(has, on="pid", how="left", validate="m:1")
    found = {}
    for (image, text_there), part in rows.group_by(pl.col("image").fill_null(value=False), "text"):
        found[names.get((bool(image), bool(text_there)), "neither")] = _score_rows(part, run.evaluation)
    return sorted(found.items())


def _score_rows(rows: pl.DataFrame, config: EvaluateConfig) -> Metrics:
    """Metric -> value, low, high, posts, users of the main model, as the evaluation scores a group."""
    rows = rows.sort("pid")
    label, prediction = rows["label"].to_numpy(), rows[PREDICTION].to_numpy()
    users = rows["uid"].rank("dense").to_numpy().astype(np.int64) - 1
    draws = resample(label, prediction[:, None], users, resamples=config.n_resamples, seed=config.seed)
    found: dict[str, dict[str, Any]] = {}
    for metric, value in score(label, prediction).items():
        known = value is not None and users.max() > 0
        low, high = interval(draws[metric][:, 0], config.confidence_level) if known else (None, None)
        counts = {"posts": rows["pid"].n_unique(), "users": int(users.max()) + 1}
        found[metric] = {"value": value, "low": low, "high": high, **counts}
    return found


def _worst(scored: Scored, run: RunFolder) -> list[Element]:
    """The posts with the largest errors, by direction."""
    shown = run.shown.worst_posts
    if not shown:
        return []
    rows = (
        scored.rows.unique("pid", keep="first", maintain_order=True)
        .with_columns(error=pl.col(PREDICTION) - pl.col("label"))
        .join(run.posts.select("pid", "title", "tags", "posted_at"), on="pid", validate="1:1")
    )
    high = rows.sort("error", "pid", descending=[True, False]).head(shown)
    low = rows.sort("error", "pid").head(shown)
    return [
        Posts("Predicted far too high", [_worst_post(row, run) for row in high.iter_rows(named=True)]),
        Posts("Predicted far too low", [_worst_post(row, run) for row in low.iter_rows(named=True)]),
    ]


def _worst_post(row: Mapping[str, Any], run: RunFolder) -> Post:
    return Post(
        run.thumbnails.data_uri(row["pid"]),
        shortened(row["title"], 160),
        shortened(row["tags"], 160),
        [
            f"true {number(row['label'], 2)}, predicted {number(row[PREDICTION], 2)} ({number(row['error'], 2, True)})",
            class_label(row["subcategory"]),
            f"{row['posted_at']:%Y-%m-%d}, {'seen' if row['seen'] else 'unseen'} user {row['uid']}",
        ],
    )
