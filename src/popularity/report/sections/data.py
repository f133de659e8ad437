"""The data set: counts, missing values, quarantine, and changes of posts and labels over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from popularity.core import paths
from popularity.core.contracts import HOLDOUT, IMAGE_STATUSES, LEVELS, SPLITS
from popularity.report import drawing
from popularity.report.document import Chart, Charts, Element, Section, Table, Tables, Text
from popularity.report.drawing import BLUE, ORANGE, Line, XAxis
from popularity.report.months import all_months
from popularity.report.run_folder import RunFolder
from popularity.report.wording import counted, number, percent

READS = (paths.INGEST_SUMMARY, paths.IMAGE_SUMMARY, paths.POSTS, paths.SPLITS, paths.ENSEMBLE_PREDICTIONS)
EXPECTED_MISSING = ("label",)  # in the test part


def build(run: RunFolder) -> Section:
    """The section."""
    summary = run.json(paths.INGEST_SUMMARY)
    statuses = run.json(paths.IMAGE_SUMMARY)["statuses"]
    unseen = summary.get("unseen_in_training")
    text = (
        f"{percent(unseen['share_of_test_posts_by_unseen_users'])} of the test posts are by users without a training "
        "post."
        if unseen
        else "The data set has no test part, so nothing can be submitted."
    )
    trend = "The mean label and the users change with time: a model of old labels does not know the new trend."
    return Section(
        "data",
        "Data",
        [
            Text(text),
            *_table_notes(summary.get("table")),
            Tables([_counts(summary["parts"], statuses), *_missing_values(summary["parts"])]),
            *_quarantine(summary["quarantine"]),
            *_clipped(summary["label"]),
            Text(trend),
            Charts(_charts_by_month(run)),
            _mean_labels(run, summary["label"]["mean"]),
        ],
    )


def _table_notes(table: Mapping[str, Any] | None) -> list[Element]:
    """What the columns of a user's own table are, and what was done with them."""
    if table is None:
        return []
    columns = table["columns"]
    roles = [f"{role}: {name}" for role, name in columns.items() if isinstance(name, str) and name]
    further = [*columns["numbers"], *columns["categories"]]
    found = f"The posts are rows of {table['file']} ({', '.join(roles)})."
    if columns["count"]:
        found += f" Popularity is log2({columns['count']} + 1)."
    if further:
        found += f" Further columns are features: {', '.join(further)}."
    notes = [f"{note[0].upper()}{note[1:]}." for note in table["notes"]]
    return [Text(" ".join([found, *notes]))]


def _counts(parts: Mapping[str, Any], statuses: Mapping[str, Any]) -> Table:
    names = [name for name in SPLITS if name in parts]
    rows = [
        ["posts", *(f"{parts[name]['posts']:,}" for name in names)],
        ["users", *(f"{parts[name]['users']:,}" for name in names)],
        *([f"classes, {level}", *(f"{parts[name]['classes'][level]:,}" for name in names)] for level in LEVELS),
        ["first post", *(parts[name]["from"][:10] for name in names)],
        ["last post", *(parts[name]["to"][:10] for name in names)],
        *(
            [f"images {status.replace('_', ' ')}", *(f"{statuses[name][status]:,}" for name in names)]
            for status in IMAGE_STATUSES
        ),
    ]
    return Table("Counts", ["", *names], rows)


def _missing_values(parts: Mapping[str, Any]) -> list[Table]:
    names = [name for name in SPLITS if name in parts]
    rows = []
    for field in parts[names[0]]["missing_share"]:
        shares = [parts[name]["missing_share"][field] for name in names]
        if any(shares) and field not in EXPECTED_MISSING:
            rows.append([field, *map(percent, shares)])
    return [Table("Share of posts without a value", ["field", *names], rows)] if rows else []


def _quarantine(quarantine: Mapping[str, Any]) -> list[Element]:
    if not quarantine["values"]:
        return [Text("No value was implausible: the quarantine is empty.")]
    rows = [[one["field"], one["reason"], one["action"], f"{one['values']:,}"] for one in quarantine["by_reason"]]
    title = f"Quarantine: {counted(quarantine['values'], 'value')} that could not be used"
    return [Table(title, ["field", "reason", "action", "values"], rows, names=3)]


def _clipped(label: Mapping[str, Any]) -> list[Element]:
    if not label["clipped"]:
        return []
    lie = "lies" if label["clipped"] == 1 else "lie"
    text = f"{counted(label['clipped'], 'label')} {lie} far from all others and count as nearer ones in every fit."
    return [Text(text)]


@dataclass(frozen=True)
class _PostsOfCurve:
    """Posts of one curve, and the curve's style."""

    name: str
    posts: pl.DataFrame
    colour: str = BLUE
    style: str = "-"

    def curve(self, value: pl.Expr, months: Sequence[str]) -> Line:
        """A value for each month that has posts."""
        found = self.posts.group_by("month").agg(value=value).sort("month")
        x = [months.index(month) for month in found["month"]]
        return Line(self.name, x, found["value"].to_list(), colour=self.colour, style=self.style, marker="o")


def _charts_by_month(run: RunFolder) -> list[Chart]:
    posts = run.posts.with_columns(month=pl.col("posted_at").dt.strftime("%Y-%m"))
    months = all_months(posts["month"])
    train, test = (posts.filter(split=split) for split in SPLITS)
    predicted = test.join(run.test_predictions, on="pid", how="inner", validate="1:1")
    labels = [
        _PostsOfCurve("label, training", train.with_columns(value="label")),
        _PostsOfCurve("prediction, test", predicted.with_columns(value="prediction"), ORANGE, "--"),
    ]
    counts = [_PostsOfCurve("training", train), _PostsOfCurve("test", test, ORANGE, "--")]
    first = _PostsOfCurve("", posts.with_columns(first=pl.col("month") == pl.col("month").min().over("uid")))
    means = [_with_quartiles(one, months) for one in labels if len(one.posts)]
    numbers = [one.curve(pl.len(), months) for one in counts if len(one.posts)]
    shares = [first.curve(pl.mean("first"), months)]
    mean = "Mean label by month, and the mean prediction of test posts"
    share = "Share of each month's posts by users whose first post is of that month"
    return [
        Chart(
            drawing.lines(means, "mean label", mean, x=XAxis(names=months)),
            mean,
            f"{mean}; the band is the middle half.",
        ),
        _chart(numbers, "posts", "Posts by month", months),
        _chart(shares, "share of posts by new users", share, months),
    ]


def _chart(curves: Sequence[Line], title: str, label: str, months: Sequence[str]) -> Chart:
    return Chart(drawing.lines(curves, title, label, x=XAxis(names=months), bottom=0), label, f"{label}.")


def _with_quartiles(curve: _PostsOfCurve, months: Sequence[str]) -> Line:
    """The mean of column `value` by month, with a band between the quartiles."""
    low, high = (curve.curve(pl.col("value").quantile(quantile, "linear"), months).y for quantile in (0.25, 0.75))
    return replace(curve.curve(pl.mean("value"), months), low=low, high=high)


def _mean_labels(run: RunFolder, training: float) -> Table:
    rows = [["training posts, label", number(training)]]
    if run.scored is not None:
        rows.append([f"train rows of {HOLDOUT}, label", number(run.scored.train_means[0])])
        validation = float(np.mean(run.scored.rows["label"].to_numpy()))
        rows.append([f"validation rows of {HOLDOUT}, label", number(validation)])
    if len(run.test_predictions):
        rows.append(["test posts, prediction", number(float(np.mean(run.test_predictions["prediction"].to_numpy())))])
    return Table("Mean label, and mean prediction of the test part", ["posts", "mean"], rows)
