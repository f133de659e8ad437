"""Sections on how good the predictions are, and where they fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from popularity.evaluation.bootstrap import interval, resample
from popularity.evaluation.metrics import METRICS, score
from popularity.evaluation.scores import MAIN_MODEL, REPORT, EvaluateConfig, Scored
from popularity.report import drawing
from popularity.report.document import Chart, Charts, Element, Post, Posts, Section, Table, Text
from popularity.report.drawing import Interval, Line
from popularity.report.inputs import Inputs
from popularity.report.wording import MINUS, NONE, class_label, counted, estimate, number, percent, shortened

PREDICTION = f"prediction:{MAIN_MODEL}"
CONSTANTS = "A constant prediction has no rank correlation; where folds are pooled, each has a constant of its own."
SCHEME_SAYS = {
    "report": (
        "yes",
        "The last posts in time, with the test part's share of posts by unseen users. Nothing was chosen on it: this "
        "is the score to quote.",
    ),
    "matched": (
        "slightly flattering",
        "Cuts in time made like report, from earlier posts; its scores are means over them. Used to choose between "
        "trials: what was chosen on it looks a little better there than it is.",
    ),
    "user": ("flattering", "Users never seen before, but of the same time as the fit rows: no drift of the level."),
    "random": ("flattering", "Random folds: the model knows most users, and their future. Flatters every model."),
}
MODEL_SAYS = {
    "stack": "the chosen blocks, on the kept fit rows, and the share of the fine-tuned text model",
    "metadata": "without pictures, texts and network, on all fit rows",
    "user_mean": "mean label of the user's fit rows, shrunk to that of all",
    "constant": "median of the fit rows",
}

Metrics = Mapping[str, Mapping[str, Any]]


def by_metric(scores: pl.DataFrame, names: Sequence[str]) -> list[tuple[tuple[Any, ...], Metrics]]:
    """The rows of a score table, gathered: ((values of `names`), metric -> row), in the order of the table."""
    parts = scores.partition_by(names, maintain_order=True, as_dict=True)
    return [(key, {row["metric"]: row for row in part.iter_rows(named=True)}) for key, part in parts.items()]


def metric_cells(metrics: Metrics, wanted: Iterable[str] = METRICS) -> list[str]:
    """SRC, MAE, MAPE and bias with their intervals."""
    return [
        estimate(row["value"], row["low"], row["high"], sign=metric == "bias")
        for metric in wanted
        for row in [metrics[metric]]
    ]


def verdict(row: Mapping[str, Any]) -> str:
    """What the interval of a difference `model` - `minus` lets one say."""
    low, high = row["low"], row["high"]
    if low is None or high is None:
        return NONE
    if low <= 0 <= high:
        return "not told apart"
    return "better" if (low > 0) == (row["metric"] == "src") else "worse"


def scores_section(inputs: Inputs) -> Section:
    scores, confidence = inputs.scores, inputs.evaluation.confidence
    schemes = scores["scheme"].unique(maintain_order=True).to_list()
    shares = _unseen_shares(inputs.split)
    rows, drawn = [], {"src": list[Interval](), "mae": list[Interval]()}
    for (scheme, model), metrics in by_metric(scores, ["scheme", "model"]):
        first = metrics["src"]
        rows.append([scheme, model, f"{first['posts']:,}", f"{first['users']:,}", *metric_cells(metrics)])
        for metric, intervals in drawn.items():
            row = metrics[metric]
            intervals.append(Interval(scheme, model, row["value"], row["low"], row["high"]))
    differences = [
        [f"{row['model']} {MINUS} {row['minus']}", row["metric"].upper(), _difference(row), verdict(row)]
        for row in inputs.differences.filter(scheme=REPORT, model=MAIN_MODEL).iter_rows(named=True)
    ]
    return Section(
        "scores",
        "Scores",
        [
            Text(
                f"SRC is Spearman's rank correlation (higher is better), MAE the mean absolute error in label units, "
                f"log2 of views (lower is better), MAPE the mean error as a share of the label, and bias the mean of "
                f"prediction {MINUS} label. Brackets hold {percent(confidence, 0)} intervals from a bootstrap over "
                "users. They tell what other users would have given, not what other training data would have."
            ),
            Table(
                "What each scheme says",
                ["scheme", "posts by unseen users", "honest?", "why"],
                [[scheme, percent(shares.get(scheme)), *SCHEME_SAYS.get(scheme, (NONE, NONE))] for scheme in schemes],
                names=4,
            ),
            Charts(
                [
                    Chart(
                        drawing.intervals(
                            drawn[metric],
                            title,
                            f"{title} of each model in each scheme, with intervals",
                            strong=REPORT,
                        ),
                        f"{title} by scheme and model",
                        caption,
                    )
                    for metric, title, caption in (
                        ("src", "SRC", f"Further right is better. {CONSTANTS}"),
                        ("mae", "MAE", "Further left is better."),
                    )
                ]
            ),
            Table(
                "All scores",
                ["scheme", "model", "posts", "users", "SRC", "MAE", "MAPE", "bias"],
                rows,
                names=2,
            ),
            *_cuts(inputs.cuts),
            Table(
                f"The stack against each baseline on {REPORT}, on the same draws of users",
                ["difference", "metric", "value", "verdict"],
                differences,
                names=2,
            ),
            Text(
                "Models: " + "; ".join(f"{name}: {says}" for name, says in MODEL_SAYS.items()) + ". A difference is "
                "told apart where its interval lies on one side of 0."
            ),
        ],
    )


def _cuts(cuts: pl.DataFrame) -> list[Element]:
    """The scores of single cuts, if a scheme has several."""
    if cuts.is_empty():
        return []
    rows = [
        [scheme, f"{cut}", model, f"{first['posts']:,}", f"{first['users']:,}", *metric_cells(metrics)]
        for (scheme, cut, model), metrics in by_metric(cuts, ["scheme", "cut", "model"])
        for first in [metrics["src"]]
    ]
    header = ["scheme", "cut", "model", "posts", "users", "SRC", "MAE", "MAPE", "bias"]
    return [Table("Each cut in time, from the first to the last", header, rows, names=3)]


def _difference(row: Mapping[str, Any]) -> str:
    return estimate(row["value"], row["low"], row["high"], sign=True)


def _unseen_shares(split: Mapping[str, Any]) -> dict[str, float | None]:
    """Mean share of scored posts by unseen users of each scheme's folds."""
    found: dict[str, list[float]] = {}
    for fold in split["schemes"]:
        if fold["unseen_post_share"] is not None:
            found.setdefault(fold["scheme"], []).append(fold["unseen_post_share"])
    return {scheme: float(np.mean(shares)) for scheme, shares in found.items()}


def predicted_section(inputs: Inputs) -> Section:
    title = "Predicted against true"
    if inputs.scored is None:
        return _without_report("predicted", title)
    values = inputs.scored.rows.select("label", PREDICTION).to_numpy()
    pad = 0.03 * float(np.ptp(values)) or 1.0
    limits = float(values.min()) - pad, float(values.max()) + pad
    charts = []
    for name, rows in _by_user(inputs.scored):
        label, prediction = (rows[column].to_numpy() for column in ("label", PREDICTION))
        description = f"Predicted against true label, {name}"
        charts.append(
            Chart(
                drawing.predicted_against_true(label, prediction, limits, name, description),
                description,
                f"{counted(len(rows), 'post')}. The stronger the colour, the more posts. The line joins the mean "
                "label of each tenth of the predictions; a calibrated model keeps it on the diagonal.",
            )
        )
    spread = [
        [name, *(number(float(rows[column].std() or 0), 2) for column in ("label", PREDICTION))]  # type: ignore[arg-type]
        for name, rows in _by_user(inputs.scored)
    ]
    return Section(
        "predicted",
        title,
        [
            Text(f"The posts of scheme {REPORT}, in label units: log2(views + 1)."),
            Charts(charts),
            Table("Standard deviation", ["posts", "of the label", "of the prediction"], spread),
        ],
    )


def _by_user(scored: Scored) -> list[tuple[str, pl.DataFrame]]:
    parts = ((f"{name} users", scored.rows.filter(seen=seen)) for name, seen in (("seen", True), ("unseen", False)))
    return [(name, rows) for name, rows in parts if len(rows)]


def _without_report(anchor: str, title: str) -> Section:
    return Section(
        anchor, title, [Text(f"No labelled post was scored in scheme {REPORT}, so there is nothing to show.")]
    )


def failures_section(inputs: Inputs, picture: Callable[[str], str | None]) -> Section:
    title = "Where it fails"
    if inputs.scored is None:
        return _without_report("failures", title)
    own = inputs.groups.filter(scheme=REPORT, model=MAIN_MODEL)
    elements: list[Element] = [
        Text(
            f"Scheme {REPORT}, model {MAIN_MODEL}. Groups are small: compare intervals, not values. Of classes, the "
            "largest are listed, worst first."
        )
    ]
    for grouping, name in (
        ("user", "User has a post in the fit rows"),
        ("category", "First-level class"),
        ("subcategory", "Second-level class"),
        ("month", "Month"),
    ):
        gathered = by_metric(own.filter(grouping=grouping), ["group"])
        if grouping in ("category", "subcategory"):
            gathered.sort(key=lambda one: -one[1]["mae"]["value"])
        label = class_label if grouping in ("category", "subcategory") else str
        elements.append(_group_table(name, [(label(group), metrics) for (group,), metrics in gathered]))
        if grouping == "month":
            elements.append(_bias_by_month(gathered))
    modalities = score_modalities(inputs)
    elements.append(_group_table("What the post has", modalities))
    if len(modalities) == 1:
        elements.append(Text(f"All scored posts are alike in this: {modalities[0][0]}."))
    elements += _worst(inputs.scored, inputs, picture)
    return Section("failures", title, elements)


def _group_table(name: str, groups: Sequence[tuple[str, Metrics]]) -> Table:
    rows = [
        [group, f"{metrics['mae']['posts']:,}", f"{metrics['mae']['users']:,}",
         *metric_cells(metrics, ("mae", "src", "bias"))]
        for group, metrics in groups
    ]  # fmt: skip
    return Table(name, ["group", "posts", "users", "MAE", "SRC", "bias"], rows)


def _bias_by_month(groups: Sequence[tuple[tuple[Any, ...], Metrics]]) -> Charts:
    biases = [metrics["bias"] for _, metrics in groups]
    months = [group for (group,), _ in groups]
    line = Line(
        "bias", list(range(len(months))), [row["value"] for row in biases],
        [np.nan if row["low"] is None else row["low"] for row in biases],
        [np.nan if row["high"] is None else row["high"] for row in biases], marker="o",
    )  # fmt: skip
    description = "Mean of prediction minus label in each month, with intervals"
    drawn = drawing.lines([line], f"bias (prediction {MINUS} label)", description, names=months, level=0)
    return Charts(
        [Chart(drawn, description, "Above the dashed line the level is overestimated; the band is the interval.")]
    )


def modality_groups(inputs: Inputs, scored: Scored) -> pl.DataFrame:
    """The scored rows with a column `modality`: what of picture and text the post has."""
    text = inputs.posts.select(
        "pid", has_text=(pl.col("title").str.strip_chars() != "") | (pl.col("tags").str.strip_chars() != "")
    )
    picture = inputs.statuses.select("pid", has_picture=pl.col("status") == "ok")
    name = (
        pl.when(pl.col("has_picture") & pl.col("has_text"))
        .then(pl.lit("picture and text"))
        .when("has_picture")
        .then(pl.lit("picture only"))
        .when("has_text")
        .then(pl.lit("text only"))
        .otherwise(pl.lit("neither"))
    )
    joined = scored.rows.join(text, on="pid", validate="m:1").join(picture, on="pid", how="left", validate="m:1")
    return joined.with_columns(pl.col("has_picture").fill_null(value=False)).with_columns(modality=name)


def score_modalities(inputs: Inputs) -> list[tuple[str, Metrics]]:
    """The main model's scores on report by what a post has of picture and text; empty without scored posts."""
    if inputs.scored is None:
        return []
    rows = modality_groups(inputs, inputs.scored)
    names = rows["modality"].unique().sort().to_list()
    return [(name, score_rows(rows.filter(modality=name), inputs.evaluation)) for name in names]


def score_rows(rows: pl.DataFrame, config: EvaluateConfig) -> Metrics:
    """Metric -> value, low, high, posts, users of the main model, as evaluate scores a group."""
    label, prediction = rows["label"].to_numpy(), rows[PREDICTION].to_numpy()
    users = rows["uid"].rank("dense").to_numpy().astype(np.int64) - 1
    draws = resample(label, prediction[:, None], users, resamples=config.bootstrap, seed=config.seed)
    found: dict[str, dict[str, Any]] = {}
    for metric, value in score(label, prediction).items():
        known = value is not None and users.max() > 0
        low, high = interval(draws[metric][:, 0], config.confidence) if known else (None, None)
        counts = {"posts": rows["pid"].n_unique(), "users": int(users.max()) + 1}
        found[metric] = {"value": value, "low": low, "high": high, **counts}
    return found


def _worst(scored: Scored, inputs: Inputs, picture: Callable[[str], str | None]) -> list[Element]:
    """The posts with the largest errors, by direction."""
    facts = inputs.posts.select("pid", "title", "tags", "posted_at")
    rows = (
        scored.rows.unique("pid", keep="first", maintain_order=True)
        .with_columns(error=pl.col(PREDICTION) - pl.col("label"))
        .join(facts, on="pid", validate="1:1")
    )
    found: list[Element] = []
    for name, descending in (("Overestimated the most", True), ("Underestimated the most", False)):
        worst = rows.sort("error", "pid", descending=[descending, False]).head(inputs.shown.worst_posts)
        found.append(Posts(name, [_worst_post(row, picture) for row in worst.iter_rows(named=True)]))
    return found if inputs.shown.worst_posts else []


def _worst_post(row: Mapping[str, Any], picture: Callable[[str], str | None]) -> Post:
    return Post(
        picture(row["pid"]),
        shortened(row["title"], 160),
        shortened(row["tags"], 160),
        [
            f"true {number(row['label'], 2)}, predicted {number(row[PREDICTION], 2)} ({number(row['error'], 2, True)})",
            class_label(row["subcategory"]),
            f"{row['posted_at']:%Y-%m-%d}, {'seen' if row['seen'] else 'unseen'} user {row['uid']}",
        ],
    )


def coverage_section(inputs: Inputs) -> Section:
    title = "Intervals of single predictions"
    if inputs.coverage is None:
        return Section(
            "intervals", title, [Text("This run wrote no table of the intervals' coverage (reports/coverage.csv).")]
        )
    elements: list[Element] = [
        Text(
            "Around each prediction lies an interval that should hold the true label as often as it states: split "
            "conformal, calibrated on the scored posts of scheme matched and scaled by the expected error of the post. "
            "Coverage is lost where posts differ from those of the calibration, above all by drift, and where a search "
            "chose parameters by the calibrating posts."
        )
    ]
    for (scheme,), table in inputs.coverage.partition_by("scheme", maintain_order=True, as_dict=True).items():
        records = table.sort("level", maintain_order=True).to_dicts()
        drawn = [
            Interval(
                f"stated {percent(row['level'], 0)}", f"{row['group']} users", *(_points(row, name) for name in BOUNDS)
            )
            for row in records
        ]
        label = f"Coverage less the stated level by level and users, scheme {scheme}"
        name = f"percentage points off ({scheme})"
        caption = "Left of the dashed line the intervals hold fewer labels than they state."
        rows = [
            [
                percent(row["level"], 0),
                f"{row['group']} users",
                f"{row['posts']:,}",
                _covered(row),
                number(row["width"], 2),
            ]
            for row in records
        ]
        header = ["stated", "users", "posts", "coverage", "mean width"]
        elements += [
            Charts([Chart(drawing.intervals(drawn, name, label, zero=True), label, caption)]),
            Table(f"Coverage on {scheme}; the width is in label units", header, rows, names=2),
        ]
    return Section("intervals", title, elements)


BOUNDS = ("coverage", "low", "high")


def _covered(row: Mapping[str, Any]) -> str:
    if row["coverage"] is None:
        return "too few posts to calibrate"
    bounds = "" if row["low"] is None else f" [{percent(row['low'])}, {percent(row['high'])}]"
    return percent(row["coverage"]) + bounds


def _points(row: Mapping[str, Any], name: str) -> float | None:
    """How far a coverage is from the stated level, in percentage points."""
    return None if row[name] is None else 100 * (row[name] - row["level"])
