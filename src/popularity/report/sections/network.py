"""The prototype network: losses and class accuracy by epoch, and the attention of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from popularity.core import paths
from popularity.core.contracts import ATTENTION_MASS
from popularity.prototypes.classes import level_keys
from popularity.report import drawing
from popularity.report.document import Bar, Bars, Chart, Charts, Element, Section, Text
from popularity.report.drawing import SERIES, Line, XAxis
from popularity.report.run_folder import RunFolder

READS = (
    paths.TRAINING_PLOTS,
    paths.ATTENTION_MASS,
    paths.POSTS,
    paths.PROTOTYPE_CLASSES,
    paths.PROTOTYPE_CLUSTERS,
    paths.PROTOTYPE_SUMMARY,
)
HEADS = {"global_prompt": "global prompt", "local_prompt": "local prompt", "attention": "attention", "mean": "mean"}
COLOURS = dict(zip(HEADS, SERIES, strict=True))
ATTENDED = {
    "visual": "visual prototypes",
    "text": "text prototypes",
    "image": "the image itself",
    "other_levels": "prototypes of other taxonomy levels",
}
CLASSES_SHOWN = 20

Curve = Sequence[tuple[int, float]]


def build(run: RunFolder) -> Section | None:
    """The section; None without curves and attention."""
    charts = _training_charts(read_curves(run.folder / paths.TRAINING_PLOTS))
    attention = _attention(run)
    elements: list[Element] = []
    if charts:
        text = "The network learns to tell classes apart and never sees a label. Validation posts are not trained on."
        elements += [Text(text), Charts(charts)]
    if attention is not None:
        text = (
            "Attention of a post's image token to itself and to the prototypes of all classes: mean over layers, heads "
            "and posts, in percent. The largest classes are listed."
        )
        elements += [Text(text), attention]
    return Section("network", "Prototype network", elements) if elements else None


def read_curves(folder: Path) -> dict[str, Curve]:
    """(step, value) by metric name, from DVCLive's metrics/<name>.tsv with columns step and value."""
    curves: dict[str, Curve] = {}
    for file in sorted((folder / "metrics").rglob("*.tsv")):
        name = file.relative_to(folder / "metrics").with_suffix("").as_posix()
        curves[name] = [(int(step), float(value)) for step, value in pl.read_csv(file, separator="\t").iter_rows()]
    return curves


def _training_charts(curves: dict[str, Curve]) -> list[Chart]:
    losses = [
        _line(HEADS[head] if part == "train" else "", curves[f"{part}/{head}"], head, style)
        for head in HEADS
        for part, style in (("train", "-"), ("validation", ":"))
        if f"{part}/{head}" in curves
    ]
    accuracies = [
        _line(HEADS[head], curves[f"validation/top1/{head}"], head)
        for head in HEADS
        if f"validation/top1/{head}" in curves
    ]
    charts = []
    for lines, title, label, more in (
        (losses, "cross-entropy", "Cross-entropy of each head by epoch", ": train posts, and validation posts dotted."),
        (accuracies, "top-1 accuracy", "Class accuracy of each head by epoch", ", on validation posts."),
    ):
        if lines:
            charts.append(Chart(drawing.lines(lines, title, label, x=XAxis("epoch"), bottom=0), label, label + more))
    return charts


def _line(name: str, curve: Curve, head: str, style: str = "-") -> Line:
    steps, values = [step + 1 for step, _ in curve], [value for _, value in curve]
    return Line(name, steps, values, colour=COLOURS[head], style=style)


def _attention(run: RunFolder) -> Bars | None:
    """A bar a class; None if no post has attention: no image, or a network without attention layers."""
    masses = run.table(paths.ATTENTION_MASS, ATTENTION_MASS)
    if masses.is_empty():
        return None
    keys = level_keys(run.classified_posts, run.json(paths.PROTOTYPE_SUMMARY)["class_name_format"])["subcategory"]
    joined = masses.join(run.posts.select("pid", key=keys), on="pid", how="left", validate="1:1")
    means = joined.group_by("key").agg(pl.mean(*ATTENDED))
    shown = run.classes.head(CLASSES_SHOWN).join(means, on="key", how="inner", validate="1:1", maintain_order="left")
    everywhere = joined.select(pl.lit("all posts").alias("name"), *(pl.mean(name) for name in ATTENDED))
    used = [name for name in ATTENDED if everywhere[name][0] > 0]
    bars = []
    for name, *parts in pl.concat([everywhere, shown.select("name", *ATTENDED)]).select("name", *used).iter_rows():
        bars.append(Bar(name, parts, " / ".join(f"{100 * part:.0f}" for part in parts)))
    return Bars("Attention of images, mean by class", bars, [ATTENDED[name] for name in used])
