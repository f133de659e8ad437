"""The class prototypes: the posts nearest to them, a map of the classes, and counts of their representatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from safetensors import safe_open

from popularity.core import paths
from popularity.core.arrays import Float64Array, Int64Array, normalize_rows
from popularity.core.contracts import LEVELS, MODALITIES, NEAREST
from popularity.prototypes.classes import level_keys
from popularity.report import drawing
from popularity.report.document import Chart, Charts, Element, Pair, Post, Posts, Section, Table, Text
from popularity.report.drawing import MapPoint
from popularity.report.run_folder import RunFolder
from popularity.report.wording import class_label, number, percent, shortened

READS = (
    paths.POSTS,
    paths.IMAGES,
    paths.PROTOTYPE_CLASSES,
    paths.PROTOTYPE_CLUSTERS,
    paths.PROTOTYPE_VECTORS,
    paths.PROTOTYPE_SUMMARY,
    paths.NEAREST_CLASSES,
)
LABELLED = 80  # classes with a label on the map


def build(run: RunFolder) -> Section:
    """The section."""
    classes = run.classes
    shown = min(run.shown.gallery_classes, len(classes))
    which = f"The {shown} largest of {len(classes)} classes" if shown < len(classes) else "All classes"
    text = (
        f"{which} of the second taxonomy level. A class has two prototypes: the mean image vector and the mean text "
        "vector of its representatives. Each grid shows the posts nearest to one prototype, whatever their class; a "
        "post's own vector is left out of the prototype first. cos is the cosine similarity."
    )
    if run.json(paths.PROTOTYPE_SUMMARY).get("clusters"):
        text += (
            " The posts have no classes of their own: these are clusters of similar posts, named by their words, and "
            "features by class are left out."
        )
    elements: list[Element] = [Text(text), *_gallery(run)]
    if len(classes) > 1:
        elements.append(Charts([_class_map(run)]))
    return Section("prototypes", "Class prototypes", [*elements, _table(run.json(paths.PROTOTYPE_SUMMARY))])


def _gallery(run: RunFolder) -> list[Pair]:
    texts = {row["pid"]: row for row in run.posts.select("pid", "title", "tags").iter_rows(named=True)}
    nearest = run.table(paths.NEAREST_CLASSES, NEAREST)
    pairs = []
    for row in run.classes.head(run.shown.gallery_classes).iter_rows(named=True):
        grids = []
        for modality in MODALITIES:
            own = nearest.filter(head=modality, index=row["index"]).sort("value", "pid", descending=[True, False])
            posts = [
                Post(
                    run.thumbnails.data_uri(pid),
                    shortened(texts[pid]["title"], 80),
                    shortened(texts[pid]["tags"], 80),
                    [f"cos {number(value, 2)}"],
                )
                for pid, value in own.head(run.shown.gallery_posts).select("pid", "value").iter_rows()
            ]
            grids.append(Posts(f"Nearest to the {modality} prototype", posts, small=True))
        note = f"{class_label(row['key'])}, {row['posts']:,} training posts"
        pairs.append(Pair(row["name"], note, (grids[0], grids[1])))
    return pairs


def _class_map(run: RunFolder) -> Chart:
    with safe_open(run.folder / paths.PROTOTYPE_VECTORS, "numpy") as stored:
        both = [stored.get_tensor(f"subcategory.{modality}") for modality in MODALITIES]
    vectors = np.concatenate([normalize_rows(part.astype(np.float64)) for part in both], axis=1)
    coordinates, shares = principal_plane(vectors[run.classes["index"].to_numpy()])
    points = [
        MapPoint(row["name"], float(x), float(y), row["posts"], int(third))
        for row, (x, y), third in zip(
            run.classes.iter_rows(named=True), coordinates, _thirds(_mean_labels(run)), strict=True
        )
    ]
    caption = (
        "Map of the classes: near classes have similar prototypes. First two principal components of the visual and "
        f"text prototypes together, with {percent(float(shares.sum()), 0)} of the variance; distances are stretched "
        "where classes crowd. Area grows with the number of training posts."
    )
    if len(points) > LABELLED:
        caption += f" The {len(points) - LABELLED} smallest have no label."
    drawn = drawing.class_map(points, LABELLED, f"Map of {len(points)} classes: near classes have similar prototypes")
    return Chart(drawn, "Map of the classes", caption, wide=True)


def principal_plane(vectors: Float64Array) -> tuple[Float64Array, Float64Array]:
    """(n, 2) coordinates of n >= 2 vectors on their two principal axes, and the axes' (2,) shares of the variance.

    The sign of an axis is free: the largest coordinate is made positive.
    """
    centred = vectors - vectors.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    coordinates = np.zeros((len(vectors), 2))
    coordinates[:, : min(2, len(values))] = (left * values)[:, :2]
    signs = np.sign(coordinates[np.abs(coordinates).argmax(axis=0), [0, 1]])
    total = (values**2).sum()
    shares = np.zeros(2)
    shares[: min(2, len(values))] = (values**2)[:2] / total if total > 0 else 0
    return np.round(coordinates * np.where(signs == 0, 1, signs), 9), shares


def _mean_labels(run: RunFolder) -> Float64Array:
    """(classes,) mean training label of each class, in the order of `run.classes`."""
    train = run.classified_posts.filter(split="train")
    keys = level_keys(train, run.json(paths.PROTOTYPE_SUMMARY)["class_name_format"])["subcategory"]
    means = train.select("label").with_columns(key=keys).group_by("key").agg(pl.mean("label"))
    joined = run.classes.join(means, on="key", how="left", validate="1:1", maintain_order="left")
    return joined["label"].to_numpy()


def _thirds(values: Float64Array) -> Int64Array:
    """(n,) 0, 1 or 2: the third of the sorted values in which each lies."""
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return ranks * 3 // len(values)


def _table(summary: Mapping[str, Any]) -> Table:
    rows = []
    for level in LEVELS:
        found = summary["levels"][level]
        rows.append(
            [
                level,
                f"{found['classes']:,}",
                *(f"{found['representatives'][kind]:,}" for kind in MODALITIES),
                *(f"{len(found[name]):,}" for name in ("classes_without_images", "classes_without_texts")),
                percent(found["test_share_unseen"]),
            ]
        )
    counts = ["classes", "images", "texts", "without image", "without text"]
    header = ["taxonomy level", *counts, "test posts of new classes"]
    title = f"Representatives of the prototypes, at most {summary['max_per_class']} a class"
    return Table(title, header, rows)
