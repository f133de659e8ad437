"""Sections on the data, its drift, what the run cost, and where its artifacts come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from popularity.report import drawing
from popularity.report.document import Bar, Bars, Chart, Charts, Element, Section, Table, Text
from popularity.report.drawing import BLUE, ORANGE, Line
from popularity.report.inputs import Inputs
from popularity.report.wording import NONE, counted, number, percent
from popularity.schema import IMAGE_STATUSES, LEVELS, SPLITS

EXPECTED_MISSING = ("label",)  # of the test part


def quality_section(inputs: Inputs) -> Section:
    parts: Mapping[str, Any] = inputs.ingest["parts"]
    statuses: Mapping[str, Any] = inputs.pictures["statuses"]
    names = [name for name in SPLITS if name in parts]
    rows = [
        ["posts", *(f"{parts[name]['posts']:,}" for name in names)],
        ["users", *(f"{parts[name]['users']:,}" for name in names)],
        *(
            [f"classes by whole path, {level}", *(f"{parts[name]['classes'][level]:,}" for name in names)]
            for level in LEVELS
        ),
        ["first post", *(parts[name]["from"][:10] for name in names)],
        ["last post", *(parts[name]["to"][:10] for name in names)],
        *(
            [f"pictures {status.replace('_', ' ')}", *(f"{statuses[name][status]:,}" for name in names)]
            for status in IMAGE_STATUSES
        ),
    ]
    elements: list[Element] = [Table("Counts", ["", *names], rows)]
    if "test" not in parts:
        elements.append(
            Text("The data set has no test part, so nothing can be submitted and the drift towards it is unknown.")
        )
    missing = {
        field: [parts[name]["missing_share"][field] for name in names]
        for field in parts[names[0]]["missing_share"]
        if field not in EXPECTED_MISSING
    }
    lacking = [[field, *(percent(share) for share in shares)] for field, shares in missing.items() if any(shares)]
    if lacking:
        elements.append(Table("Share of posts without a value", ["field", *names], lacking))
    elements += [*_quarantine(inputs.ingest["quarantine"]), _schemes(inputs.split), _prototypes(inputs.prototypes)]
    return Section("quality", "Data quality", elements)


def _quarantine(quarantine: Mapping[str, Any]) -> list[Element]:
    if not quarantine["values"]:
        return [Text("No value was implausible: the quarantine is empty.")]
    rows = [[one["field"], one["reason"], one["action"], f"{one['values']:,}"] for one in quarantine["by_reason"]]
    title = f"Quarantine: {counted(quarantine['values'], 'value')} that could not be used"
    return [Table(title, ["field", "reason", "what became of it", "values"], rows, names=3)]


def _schemes(split: Mapping[str, Any]) -> Table:
    """One row a scheme: its folds, the posts of each on average, what was reached."""
    rows = []
    for scheme in dict.fromkeys(fold["scheme"] for fold in split["schemes"]):
        folds = [fold for fold in split["schemes"] if fold["scheme"] == scheme]
        shares = [fold["unseen_post_share"] for fold in folds if fold["unseen_post_share"] is not None]
        counts = (f"{np.mean([fold[role] for fold in folds]):,.0f}" for role in ("fit", "dropped", "score"))
        notes = "; ".join(dict.fromkeys(fold["note"] for fold in folds if fold["note"]))
        reached = percent(float(np.mean(shares))) if shares else NONE
        rows.append([scheme, f"{len(folds)}", *counts, reached, notes or NONE])
    wanted = f"{percent(split['wanted_unseen_post_share'])} wanted in report and matched, from {split['wanted_from']}"
    return Table(
        f"Posts a fold by scheme; scored posts by unseen users: {wanted}",
        ["scheme", "folds", "fit", "dropped", "scored", "by unseen users", "note"],
        rows,
    )


def _prototypes(report: Mapping[str, Any]) -> Table:
    rows = [
        [
            level,
            f"{found['classes']:,}",
            *(f"{found['representatives'][kind]:,}" for kind in ("visual", "text")),
            *(f"{len(found[f'classes_without_{kind}']):,}" for kind in ("pictures", "texts")),
            percent(found["test_share_unseen"]),
        ]
        for level, found in ((level, report["levels"][level]) for level in LEVELS)
    ]
    header = [
        "level",
        "classes",
        "pictures",
        "texts",
        "without pictures",
        "without texts",
        "test posts of unseen classes",
    ]
    return Table(f"Prototypes: representatives, at most {report['limit']} a class", header, rows)


def drift_section(inputs: Inputs) -> Section:
    posts = inputs.posts.with_columns(month=pl.col("posted_at").dt.strftime("%Y-%m"))
    names = _months(posts["month"])
    parts = {name: posts.filter(split=name) for name in SPLITS}
    predicted = parts["test"].join(inputs.final, on="pid", how="inner", validate="1:1")
    level = [
        _level(frame, column, names, name, colour, style)
        for frame, column, name, colour, style in (
            (parts["train"], "label", "label, training", BLUE, "-"),
            (predicted, "prediction", "prediction, test", ORANGE, "--"),
        )
        if len(frame)
    ]
    counts = [
        _by_month(parts[split], pl.len(), names, name, colour, style)
        for split, name, colour, style in (("train", "training", BLUE, "-"), ("test", "test", ORANGE, "--"))
        if len(parts[split])
    ]
    first = pl.col("month") == pl.col("month").min().over("uid")
    newcomers = _by_month(posts.with_columns(first=first), pl.mean("first"), names, "", BLUE, "-")
    charts = [
        _chart(level, "level (mean, middle half)", "Mean label by month, and the mean prediction of test posts", names),
        _chart(counts, "posts a month", "Number of posts by month and part", names, bottom=0),
        _chart(
            [newcomers],
            "share of posts by new users",
            "Share of each month's posts by users whose first post is of that month",
            names,
            bottom=0,
        ),
    ]
    unseen = inputs.ingest.get("unseen_in_training")
    said = (
        f"{percent(unseen['share_of_test_posts_by_unseen_users'])} of the test posts are by users without a training "
        "post."
        if unseen
        else "There is no test part to drift towards."
    )
    text = "The level of the label and who posts change with time; a model of old labels does not know the new level. "
    return Section("drift", "Drift", [Text(text + said), Charts(charts), _levels(inputs)])


def _months(found: pl.Series) -> list[str]:
    """Every month from the first to the last."""
    first, last = (int(month[:4]) * 12 + int(month[5:]) - 1 for month in (str(found.min()), str(found.max())))
    return [f"{month // 12:04d}-{month % 12 + 1:02d}" for month in range(first, last + 1)]


def _by_month(frame: pl.DataFrame, value: pl.Expr, names: list[str], name: str, colour: str, style: str) -> Line:
    """A value of each month that has posts."""
    found = frame.group_by("month").agg(value=value).sort("month")
    x = [names.index(month) for month in found["month"]]
    return Line(name, x, found["value"].to_list(), colour=colour, style=style, marker="o")


def _level(frame: pl.DataFrame, column: str, names: list[str], name: str, colour: str, style: str) -> Line:
    """The mean of a column by month, between its quartiles."""
    low, high = (
        _by_month(frame, pl.col(column).quantile(share, "linear"), names, "", colour, style).y for share in (0.25, 0.75)
    )
    return replace(_by_month(frame, pl.mean(column), names, name, colour, style), low=low, high=high)


def _chart(curves: list[Line], title: str, label: str, names: list[str], bottom: float | None = None) -> Chart:
    return Chart(drawing.lines(curves, title, label, names=names, bottom=bottom), label, label + ".")


def _levels(inputs: Inputs) -> Table:
    """Mean label of training, of the posts scored in report, and the mean prediction of the test part."""
    rows = [["training posts, label", number(inputs.ingest["label"]["mean"])]]
    if inputs.scored is not None:
        rows.append(["fit rows of report, label", number(inputs.scored.fit_means[0])])
        rows.append(["scored posts of report, label", number(float(np.mean(inputs.scored.rows["label"].to_numpy())))])
    if len(inputs.final):
        rows.append(["test posts, prediction", number(float(np.mean(inputs.final["prediction"].to_numpy())))])
    return Table("Mean level", ["posts", "mean"], rows)


def cost_section(inputs: Inputs) -> Section:
    most = max(record["seconds"] for record in inputs.costs) or 1
    total = sum(record["seconds"] for record in inputs.costs)
    rows = [
        Bar(one["stage"], [one["seconds"] / most], f"{one['seconds']:,.1f} s, {one['peak_mib']:,} MiB" + _child(one))
        for one in inputs.costs
    ]
    text = (
        f"The stages before this report took {total:,.0f} s in all, when each last ran. Memory is the peak of the "
        "stage's process, and after the plus that of its largest child."
    )
    return Section("cost", "Cost", [Text(text), Bars("Time and peak memory", rows)])


def _child(record: Mapping[str, Any]) -> str:
    return f" + {record['largest_child_mib']:,}" if record["largest_child_mib"] else ""


def provenance_section(inputs: Inputs) -> Section:
    elements: list[Element] = []
    if inputs.manifests:
        rows = [_origin(name, found) for name, found in inputs.manifests.items()]
        header = ["artifact", "code revision", "changes not committed", "inputs (first digits of their fingerprints)"]
        elements.append(Table("What the artifacts were made from", header, rows, names=4))
        libraries = next(iter(inputs.manifests.values()))["libraries"]
        if libraries:
            versions = ", ".join(f"{name} {version or NONE}" for name, version in sorted(libraries.items()))
            elements.append(Text(f"Libraries: {versions}."))
    else:
        elements.append(Text("The models of this run carry no manifest, so their code revision is not known."))
    files = [[name, digest] for name, digest in inputs.submissions.items()]
    elements.append(Table("Submission files", ["file", "sha256"], files, names=2))
    return Section("provenance", "Where it comes from", elements)


def _origin(name: str, manifest: Mapping[str, Any]) -> list[str]:
    code = manifest["code"]
    modified = {True: "yes", False: "no", None: NONE}[code["modified"]]
    inputs = ", ".join(f"{source} {mark[:8]}" for source, mark in sorted(manifest["inputs"].items()))
    return [name, (code["revision"] or NONE)[:12], modified, inputs or NONE]
