"""Sections on what the method saw: prototypes, classes, importance, attention, training, ablation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from markupsafe import Markup
from safetensors import safe_open

from popularity.arrays import normalize_rows
from popularity.evaluation.metrics import FloatArray
from popularity.prototypes.classes import ClassPath, level_keys
from popularity.report import drawing
from popularity.report.document import Bar, Bars, Chart, Charts, Pair, Post, Posts, Section, Table, Text
from popularity.report.drawing import SERIES, Line, Place
from popularity.report.inputs import Inputs
from popularity.report.wording import NONE, class_label, counted, number, percent, shortened
from popularity.schema import MODALITIES

FEATURES_SHOWN = 25
CLASSES_SHOWN = 20  # of attention
LABELLED = 80  # classes with a name on the map
HEADS = {"global_prompt": "global prompt", "local_prompt": "local prompt", "attention": "attention", "mean": "mean"}


def gallery_section(inputs: Inputs, picture: Callable[[str], str | None]) -> Section:
    classes = inputs.classes.head(inputs.shown.gallery_classes)
    texts = {row["pid"]: row for row in inputs.posts.select("pid", "title", "tags").iter_rows(named=True)}
    pairs = []
    for row in classes.iter_rows(named=True):
        grids = []
        for modality in MODALITIES:
            nearest = (
                inputs.nearest.filter(head=modality, index=row["index"])
                .sort("value", "pid", descending=[True, False])
                .head(inputs.shown.gallery_posts)
            )
            posts = [
                Post(
                    picture(pid), shortened(texts[pid]["title"], 80), shortened(texts[pid]["tags"], 80),
                    [f"cos {number(value, 2)}"],
                )
                for pid, value in nearest.select("pid", "value").iter_rows()
            ]  # fmt: skip
            grids.append(Posts(f"Nearest to the {modality} prototype", posts, small=True))
        pairs.append(
            Pair(row["name"], f"{class_label(row['key'])}, {row['posts']:,} training posts", (grids[0], grids[1]))
        )
    less = (
        f"The {len(pairs)} largest of {len(inputs.classes)} classes"
        if len(pairs) < len(inputs.classes)
        else "All classes"
    )
    return Section(
        "gallery",
        "Prototype gallery",
        [
            Text(
                f"{less} of the second level. A class has two prototypes, the mean picture and the mean text vector of "
                "diverse representatives. Shown are the posts nearest to each, of whatever class; a post's own vector "
                "is taken out of its class's prototype first."
            ),
            *pairs,
        ],
    )


def map_section(inputs: Inputs) -> Section:
    title = "Class map"
    if len(inputs.classes) < 2:
        return Section("map", title, [Text("There are fewer than two classes, so there is nothing to map.")])
    with safe_open(inputs.prototypes_file, "numpy") as stored:
        both = [stored.get_tensor(f"subcategory.{modality}") for modality in MODALITIES]
    vectors = np.concatenate([normalize_rows(part.astype(np.float64)) for part in both], axis=1)
    at, shares = principal_plane(vectors[inputs.classes["index"].to_numpy()])
    level = _mean_labels(inputs)
    thirds = _thirds(level)
    places = [
        Place(row["name"], float(x), float(y), row["posts"], int(third))
        for row, (x, y), third in zip(inputs.classes.iter_rows(named=True), at, thirds, strict=True)
    ]
    caption = (
        f"First two principal components of the classes' visual and text prototypes side by side; they hold "
        f"{percent(float(shares.sum()), 0)} of the variance. Distances are stretched where classes "
        "crowd. Area grows with the number of training posts."
    )
    unnamed = len(places) - LABELLED
    more = f" The {unnamed} smallest carry no name." if unnamed > 0 else ""
    drawn = drawing.class_map(places, LABELLED, f"Map of {len(places)} classes: near classes have alike prototypes")
    return Section(
        "map",
        title,
        [
            Text("Near classes look and read alike to the frozen encoders. Colour says how popular their posts are."),
            Charts([Chart(drawn, "Map of the classes", caption + more, wide=True)]),
        ],
    )


def principal_plane(vectors: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(n, 2) coordinates of n >= 2 vectors on their two principal axes, and the axes' (2,) shares of the variance.

    The sign of an axis is free: the largest coordinate is made positive.
    """
    centred = vectors - vectors.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    at = np.zeros((len(vectors), 2))
    at[:, : min(2, len(values))] = (left * values)[:, :2]
    signs = np.sign(at[np.abs(at).argmax(axis=0), [0, 1]])
    total = (values**2).sum()
    shares = np.zeros(2)
    shares[: min(2, len(values))] = (values**2)[:2] / total if total > 0 else 0
    return np.round(at * np.where(signs == 0, 1, signs), 9), shares


def _mean_labels(inputs: Inputs) -> FloatArray:
    """Mean training label of each of `classes`, in their order."""
    class_path: ClassPath = inputs.prototypes["class_path"]
    train = inputs.posts.filter(split="train")
    keyed = train.select("label").with_columns(key=level_keys(train, class_path)["subcategory"])
    means = keyed.group_by("key").agg(pl.mean("label"))
    joined = inputs.classes.join(means, on="key", how="left", validate="1:1", maintain_order="left")
    return joined["label"].to_numpy()


def _thirds(values: FloatArray) -> npt.NDArray[np.int64]:
    """(n,) 0, 1 or 2: the third of the sorted values that each lies in."""
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return ranks * 3 // len(values)


def importance_section(inputs: Inputs) -> Section:
    gain = inputs.importance
    total = float(gain["gain"].sum())
    title = "Importance"
    if total == 0:
        return Section("importance", title, [Text("No tree of the stack has a split: nothing is important.")])
    blocks = gain.group_by("block").agg(pl.sum("gain"), pl.len()).sort(["gain", "block"], descending=[True, False])
    features = gain.sort(["gain", "feature"], descending=[True, False]).head(FEATURES_SHOWN)
    best = float(features["gain"][0]) / total
    return Section(
        "importance",
        title,
        [
            Text(
                "Share of the total gain of all splits, in the model fitted on all training posts. Gain is spread over "
                "columns that know the same: it tells what the trees used, not what would be missed without it."
            ),
            Bars(
                "By block",
                [
                    Bar(f"{block} ({counted(count, 'column')})", [value / total], percent(value / total))
                    for block, value, count in blocks.iter_rows()
                ],
            ),
            Bars(
                f"The {len(features)} strongest columns of {len(gain)}",
                [
                    Bar(f"{feature} ({block})", [value / total / best], percent(value / total))
                    for block, feature, value in features.select("block", "feature", "gain").iter_rows()
                ],
            ),
        ],
    )


def attention_section(inputs: Inputs) -> Section:
    title = "What the picture looks at"
    columns = ("visual", "text", "image", "other_levels")
    names = ("visual prototypes", "text prototypes", "the picture itself", "prototypes of other levels")
    if inputs.masses.is_empty():
        return Section(
            "attention", title, [Text("No post has attention: no picture, or a network without such layers.")]
        )
    class_path: ClassPath = inputs.prototypes["class_path"]
    keyed = inputs.posts.select("pid").with_columns(key=level_keys(inputs.posts, class_path)["subcategory"])
    joined = inputs.masses.join(keyed, on="pid", how="left", validate="1:1")
    by_class = joined.group_by("key").agg(pl.mean(*columns))
    shown = inputs.classes.head(CLASSES_SHOWN).join(
        by_class, on="key", how="inner", validate="1:1", maintain_order="left"
    )
    everywhere = joined.select(pl.mean(*columns)).row(0)
    used = [place for place, value in enumerate(everywhere) if value > 0]

    def bar(name: str, values: Sequence[float]) -> Bar:
        parts = [values[place] for place in used]
        return Bar(name, parts, " / ".join(f"{100 * part:.0f}" for part in parts))

    return Section(
        "attention",
        title,
        [
            Text(
                "Attention of a post's picture token to itself and to the prototypes of all classes, mean over layers, "
                "heads and posts, in percent. "
                f"{'The largest classes' if len(shown) < len(inputs.classes) else 'All classes'}, by number of posts."
            ),
            Bars(
                "Mean by class",
                [
                    bar("all posts", everywhere),
                    *(bar(row[0], row[1:]) for row in shown.select("name", *columns).iter_rows()),
                ],
                [names[place] for place in used],
            ),
        ],
    )


def training_section(inputs: Inputs) -> Section:
    title = "Training of the network"
    losses = [(part, head) for head in HEADS for part in ("train", "validation") if f"{part}/{head}" in inputs.curves]
    accuracies = [head for head in HEADS if f"validation/top1/{head}" in inputs.curves]
    colours = dict(zip(HEADS, SERIES, strict=True))
    charts = []
    if losses:
        drawn = [
            _line(HEADS[head], inputs.curves[f"train/{head}"], colours[head])
            if part == "train"
            else _line("", inputs.curves[f"validation/{head}"], colours[head], ":")
            for part, head in losses
        ]
        label = "Cross-entropy of each head by epoch"
        caption = f"{label}: on training posts, and dotted on validation posts."
        charts.append(Chart(drawing.lines(drawn, "cross-entropy", label, x="epoch", bottom=0), label, caption))
    if accuracies:
        drawn = [_line(HEADS[head], inputs.curves[f"validation/top1/{head}"], colours[head]) for head in accuracies]
        label = "Share of validation posts whose class each head ranks first, by epoch"
        charts.append(Chart(drawing.lines(drawn, "top-1 accuracy", label, x="epoch", bottom=0), label, label + "."))
    if not charts:
        return Section("training", title, [Text("There are no curves of the training.")])
    text = "The network learns classes, never popularity. Validation posts are never trained on."
    return Section("training", title, [Text(text), Charts(charts)])


def _line(name: str, points: Sequence[tuple[int, float]], colour: str, style: str = "-") -> Line:
    return Line(name, [step + 1 for step, _ in points], [value for _, value in points], colour=colour, style=style)


ABLATION_COMMAND = "python -m benchmarks.ablation --out reports/ablation/ablation.csv"


def ablation_section(inputs: Inputs) -> Section:
    title = "Ablation"
    how = Markup("<code>{}</code>").format(ABLATION_COMMAND)
    if inputs.ablation is None:
        return Section("ablation", title, [Text(Markup("Not made for this run. {} makes the table.").format(how))])
    metrics = [metric for metric in ("src", "mae") if metric in inputs.ablation.columns]
    header = ["system", *(f"{metric.upper()}{more}" for metric in metrics for more in ("", " − reference", ""))]
    rows = [
        [str(row["system"]), *(cell for metric in metrics for cell in _ablation_cells(row, metric))]
        for row in inputs.ablation.iter_rows(named=True)
    ]
    text = Markup(
        "Scheme matched, mean over seeds; the interval is over users and seeds, of the difference to the reference. "
        "The table was made by hand ({}) and is not remade by dvc repro: it belongs to the data of that day."
    ).format(how)
    return Section("ablation", title, [Text(text), Table("The stack without each part of the method", header, rows)])


def _ablation_cells(row: Mapping[str, Any], metric: str) -> list[str]:
    return [number(row[metric], 4), str(row[f"{metric} - reference"]), str(row[f"{metric} verdict"] or NONE)]
