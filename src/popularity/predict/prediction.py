"""New posts through the graph's own functions and stored models, and what explains each prediction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from popularity.encoders.image_blocks import embed_images
from popularity.encoders.text_blocks import embed_texts
from popularity.errors import ContractError
from popularity.evaluation.intervals import Calibration
from popularity.features import CATEGORIES, further_features
from popularity.images import index_files
from popularity.network.model import CLASS_LEVEL
from popularity.post_features.embed import Folders, embed_posts, probable_classes
from popularity.predict.asked import NewPosts
from popularity.predict.classes import KnownClasses
from popularity.predict.project import Project, Settings
from popularity.schema import (
    ATTENTION,
    ATTENTION_MASS,
    FOLDS,
    IMAGE_STATUS,
    IMAGES,
    LEVELS,
    NEAREST,
    POSTS,
    read_table,
    write_table,
)
from popularity.stack import StackModel, read_blocks
from popularity.stack.model import Contributions, Predicted
from popularity.text_model import TextModel
from popularity.training.assembly import trained_params
from popularity.training.loop import make_accelerator
from popularity.training.reading import TowerOutputs

Array = npt.NDArray[np.float64]
Interval = tuple[float | None, float | None]  # None: no bound can be stated


@dataclass(frozen=True)
class Prediction:
    """What is known of a new post.

    Args:
        pid: of the post.
        popularity: log2(views + 1).
        views: 2^popularity - 1.
        scale: expected size of the error of `popularity`.
        intervals: level -> bounds of popularity.
        views_intervals: level -> the same bounds in views.
        nearest: `visual`, `text` -> the nearest class prototypes: class, name, cosine.
        attention: share of the picture's attention: `image` (on itself), `visual`, `text` (on class prototypes),
            `other_levels`; empty without a picture.
        looks_at: `visual`, `text` -> the prototypes that it looks at most: class, name, share.
        base: what all posts share, before contributions.
        blocks: block -> the sum over its columns; with `base` they add up to the prediction, in the scale of
            `contributions_in`. `text model`: what it moved; in normal scores it is not among them.
        features: the largest columns: feature, block, value, contribution.
        contributions_in: `popularity`, or `normal score of popularity` under `stack.target: normal`.
        notes: what was missing, and what stood in for it.
    """

    pid: str
    popularity: float
    views: float
    scale: float
    intervals: Mapping[str, Interval]
    views_intervals: Mapping[str, Interval]
    nearest: Mapping[str, Sequence[Mapping[str, Any]]]
    attention: Mapping[str, float]
    looks_at: Mapping[str, Sequence[Mapping[str, Any]]]
    base: float
    blocks: Mapping[str, float]
    features: Sequence[Mapping[str, Any]]
    contributions_in: str
    notes: Sequence[str]


def predict(project: Project, settings: Settings, known: pl.DataFrame, new: NewPosts, largest: int) -> list[Prediction]:
    """Predictions of `new.table`, by pid; further notes go to `new.asked`.

    The new posts count as posts of the test part: they see each other and every stored post in counts of users,
    classes, tags and texts, and are fitted on in nothing.

    Args:
        project: where the graph has run.
        settings: of it.
        known: its posts.
        new: at least one that can be predicted.
        largest: features listed for each post.

    Raises:
        ContractError: the encoders are not those that the stored vectors came from.
    """
    posts, classes = new.table, KnownClasses.read(project.prototypes)
    notes = {asked.pid: asked.notes for asked in new.asked}
    with TemporaryDirectory(prefix="popularity-predict-") as name:
        scratch = Path(name)
        image, text, prototype, explain = (scratch / part for part in ("image", "text", "prototype", "explain"))
        images = index_files(posts, new.root, settings.index)
        write_table(posts, scratch / "posts.parquet", POSTS)
        write_table(images, scratch / "images.parquet", IMAGES)
        embed_images(new.root, scratch / "images.parquet", image, settings.towers.image, scratch)
        embed_texts(scratch / "posts.parquet", text, settings.towers.text, scratch)
        _refuse_other_encoders(TowerOutputs.read(image, text), TowerOutputs.read(project.image, project.text))
        accelerator = make_accelerator(trained_params(project.network).precision)
        network = (
            Folders(new.root, image, text, project.prototypes, project.network),
            settings.towers,
            settings.embed_posts,
            accelerator,
        )
        blank = classes.without(posts)
        if blank.height:
            found = probable_classes(blank, images.filter(pl.col("pid").is_in(blank["pid"].implode())), *network)
            posts = _with_classes(posts, blank, found, classes, notes)
        for pid, key in posts.select("pid", CLASS_LEVEL).iter_rows():
            notes[pid] += filter(None, [classes.note(key)])
        embed_posts(posts, images, *network, state=scratch, out=prototype, explain=explain)
        splits = read_table(project.splits, FOLDS)
        features = further_features(posts, images, splits, known, settings.featurize, project.features)
        blocks = read_blocks(image, text, prototype)
        model = StackModel.load(project.stack)
        dates = features.select("pid").join(posts, on="pid", how="left", validate="1:1", maintain_order="left")
        posted_at = dates["posted_at"].to_physical().to_numpy()
        predicted = model.predict(features, blocks, posted_at)
        contributions = model.contributions(features, blocks, posted_at, largest)
        part = json.loads(project.merging.read_text(encoding="utf-8"))
        if part["share"]:
            text_model = TextModel.load(project.text_model, settings.towers.text)
            told = text_model.predict(features, posted_at) - part["offset"]
            predicted, contributions = with_text(
                predicted, contributions, told, part["share"], add_block=model.target.kind == "raw"
            )
        explained = _Explained.read(classes, explain)
        _note_pictures(posts, read_table(image / "status.parquet", IMAGE_STATUS), notes)
    intervals = _intervals(Calibration.read(project.calibration), predicted)
    moved = _moved(contributions, features)
    unit = "popularity" if model.target.kind == "raw" else f"{model.target.kind} score of popularity"
    return [
        Prediction(
            pid=pid,
            popularity=float(value),
            views=views(value),
            scale=float(scale),
            intervals=bounds,
            views_intervals={level: (_views(low), _views(high)) for level, (low, high) in bounds.items()},
            nearest=explained.nearest(pid),
            attention=explained.attention(pid),
            looks_at=explained.looks_at(pid),
            base=float(base),
            blocks=moved[pid][0],
            features=moved[pid][1],
            contributions_in=unit,
            notes=notes[pid],
        )
        for pid, value, scale, bounds, base in zip(
            features["pid"], predicted.values, predicted.scale, intervals, contributions.base, strict=True
        )
    ]


TEXT_BLOCK = "text model"  # its own in what moved a prediction


def with_text(
    predicted: Predicted, contributions: Contributions, told: Array, share: float, *, add_block: bool
) -> tuple[Predicted, Contributions]:
    """Predictions and what made them, merged with those of the text model, `told` (n,), less its offset.

    The text model's contribution is its share of how far it differs from the stack: with this block, base and
    contributions still add up to the prediction. Not added where contributions are in another scale than popularity.
    """
    moved = share * (told - predicted.values)
    if not add_block:
        return replace(predicted, values=predicted.values + moved), contributions
    pids = contributions.blocks["pid"].unique(maintain_order=True)
    own = pl.DataFrame({"pid": pids, "block": TEXT_BLOCK, "contribution": moved})
    blocks = pl.concat([contributions.blocks, own.cast(dict(contributions.blocks.schema))])  # type: ignore[arg-type]
    return replace(predicted, values=predicted.values + moved), replace(contributions, blocks=blocks)


def views(popularity: float) -> float:
    """Number of views, at least 0."""
    return max(0.0, float(2.0**popularity - 1))


def _views(popularity: float | None) -> float | None:
    return None if popularity is None else views(popularity)


def _refuse_other_encoders(new: TowerOutputs, stored: TowerOutputs) -> None:
    for name in ("image", "text"):
        own, other = (getattr(outputs, name).about for outputs in (new, stored))
        facts = [fact for fact in other if own.get(fact) != other[fact]]
        if facts:
            raise ContractError(
                f"the {name} encoder of params.yaml is not the one behind data/embeddings/{name}: "
                + "; ".join(f"{fact} {str(own.get(fact))[:80]}, stored {str(other[fact])[:80]}" for fact in facts)
                + "\n  next: dvc repro"
            )


def _intervals(calibration: Calibration, predicted: Predicted) -> list[dict[str, Interval]]:
    """For each post its intervals by level."""
    found: list[dict[str, Interval]] = [{} for _ in predicted.values]
    for level in calibration.quantiles:
        reach = calibration.reach(level, predicted.scale)
        for row, value in enumerate(predicted.values):
            bounds = (None, None) if reach is None else (float(value - reach[row]), float(value + reach[row]))
            found[row][f"{level:g}"] = bounds
    return found


def _moved(
    contributions: Contributions, features: pl.DataFrame
) -> dict[str, tuple[dict[str, float], list[dict[str, Any]]]]:
    """By pid the contributions of blocks and of the largest features; categories by name, not by code."""
    moved: dict[str, tuple[dict[str, float], list[dict[str, Any]]]] = {pid: ({}, []) for pid in features["pid"]}
    for pid, block, contribution in contributions.blocks.iter_rows():
        moved[pid][0][block] = contribution
    categories = {row["pid"]: row for row in features.select("pid", *CATEGORIES).iter_rows(named=True)}
    for row in contributions.features.drop("rank").iter_rows(named=True):
        pid = row.pop("pid")
        if row["block"] == "metadata" and row["feature"] in CATEGORIES:
            row["value"] = categories[pid][row["feature"]]
        moved[pid][1].append(row)
    return moved


@dataclass(frozen=True)
class _Explained:
    """Tables of data/explain for the new posts, with the classes they name."""

    names: pl.Series  # readable, of the K classes
    tables: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]  # by contract, by pid

    @classmethod
    def read(cls, classes: KnownClasses, explain: Path) -> _Explained:
        tables: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for contract in (NEAREST, ATTENTION, ATTENTION_MASS):
            rows = tables.setdefault(contract.name, {})
            for row in read_table(explain / f"{contract.name.replace(' ', '_')}.parquet", contract).iter_rows(
                named=True
            ):
                rows.setdefault(row["pid"], []).append(row)
        return cls(classes.of_level["name"], tables)

    def nearest(self, pid: str) -> dict[str, list[dict[str, Any]]]:
        rows = self._of(NEAREST.name, pid)
        return {head: self._listed(rows, "head", head, "value", "cosine") for head in ("visual", "text")}

    def looks_at(self, pid: str) -> dict[str, list[dict[str, Any]]]:
        rows = self._of(ATTENTION.name, pid)
        return {kind: self._listed(rows, "modality", kind, "weight", "share") for kind in ("visual", "text")}

    def attention(self, pid: str) -> dict[str, float]:
        return {
            name: value for row in self._of(ATTENTION_MASS.name, pid) for name, value in row.items() if name != "pid"
        }

    def _of(self, table: str, pid: str) -> Sequence[Mapping[str, Any]]:
        return self.tables[table].get(pid, [])

    def _listed(
        self, rows: Sequence[Mapping[str, Any]], group: str, name: str, value: str, called: str
    ) -> list[dict[str, Any]]:
        return [
            {"class": row["key"], "name": self.names[row["index"]], called: row[value]}
            for row in rows
            if row[group] == name
        ]


def _with_classes(
    posts: pl.DataFrame,
    blank: pl.DataFrame,
    probabilities: npt.NDArray[np.float32],
    classes: KnownClasses,
    notes: Mapping[str, list[str]],
) -> pl.DataFrame:
    """`posts` with the likeliest class for those in `blank`, (b, K) `probabilities`: nearer than a mixture of all."""
    rows = []
    for post, likely in zip(blank.select("pid", *LEVELS).iter_rows(named=True), probabilities, strict=True):
        keys, share = classes.likeliest(post, likely)
        notes[post["pid"]] += filter(None, [classes.note_above(post["category"])])
        notes[post["pid"]].append(
            f"no class: {keys[CLASS_LEVEL]} taken, the likeliest by picture and text ({share:.0%})"
        )
        rows.append({"pid": post["pid"], **keys})
    return posts.update(pl.DataFrame(rows), on="pid")


def _note_pictures(posts: pl.DataFrame, status: pl.DataFrame, notes: Mapping[str, list[str]]) -> None:
    """Says which pictures were there and could not be used."""
    joined = posts.select("pid", "image_path").join(status, on="pid", how="left", validate="1:1")
    for pid, path, found in joined.filter((pl.col("image_path") != "") & (pl.col("status") != "ok")).iter_rows():
        notes[pid].append(f"no picture: {path} is {found.replace('_', ' ')}; predicted from the rest")
