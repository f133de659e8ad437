"""What the report reads: the outs of every other stage, some of which may be missing or empty."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import polars as pl
from pydantic import Field

from popularity.config import Section, load_params, read_yaml
from popularity.errors import DataError
from popularity.evaluation.report import read_importance
from popularity.evaluation.scores import GROUPS, REPORT, SCORES, EvaluateConfig, Scored, collect
from popularity.files import sha256_of
from popularity.manifest import MANIFEST
from popularity.schema import (
    ATTENTION_MASS,
    CLASSES,
    FOLDS,
    IMAGE_STATUS,
    IMAGES,
    NEAREST,
    POSTS,
    PREDICTIONS,
    TEXT_FILE,
    read_table,
)


@dataclass(frozen=True)
class ReportParams(Section):
    """Section `report` of params.yaml: how much is shown.

    Args:
        thumbnail: pixels of a picture's longer side.
        worst_posts: in each direction.
        gallery_classes: the largest ones.
        gallery_posts: nearest to each prototype of a class.
    """

    thumbnail: Annotated[int, Field(ge=32, le=512)]
    worst_posts: Annotated[int, Field(ge=0, le=50)]
    gallery_classes: Annotated[int, Field(ge=0, le=100)]
    gallery_posts: Annotated[int, Field(ge=1, le=10)]


@dataclass(frozen=True)
class Sources:
    """Paths, named as the stage's flags.

    Args:
        root: data set, for pictures.
        posts, splits, images: tables.
        statuses: of the pictures after the full decode.
        prototypes, network, stack, selection, tuning, submissions: folders with a manifest.
        explain: folder of data/explain.
        predictions, importance: of the stack.
        scores, groups, coverage: tables of evaluate; coverage may be missing.
        curves: folder of the training's plots.
        ingest, pictures, split, classes: reports of ingest, index_images, split and prototypes.
        ablation: folder that may hold ablation.csv, made by hand.
        costs: records of the stages, in the order of the graph.
        params: params.yaml.
    """

    root: Path
    posts: Path
    splits: Path
    images: Path
    statuses: Path
    prototypes: Path
    network: Path
    stack: Path
    selection: Path
    tuning: Path
    submissions: Path
    explain: Path
    predictions: Path
    importance: Path
    scores: Path
    groups: Path
    coverage: Path
    curves: Path
    ingest: Path
    pictures: Path
    split: Path
    classes: Path
    ablation: Path
    costs: tuple[Path, ...]
    params: Path


@dataclass(frozen=True)
class Inputs:
    """The content of `Sources`, as far as it is there.

    Args:
        params: all of params.yaml.
        shown: section report.
        evaluation: section evaluate.
        posts, images, statuses, nearest, masses: tables of those contracts.
        classes: those of the second level, largest first.
        prototypes_file: the tensors of all levels.
        encoders: by modality: encoder, weights, width.
        scored: the posts of scheme report with their predictions; None where there are none.
        final: pid, prediction: mean of the final stack, of the test part.
        importance, scores, groups: tables; `scores` and `groups` without differences; those of `scores` are in
            `differences`, and scores of single cuts in `cuts`.
        coverage, selection, selection_scores, trials, study, ablation: None where missing.
        text_share: of the text model in what the stack predicts of the test part.
        curves: by metric name, (step, value).
        ingest, pictures, split, prototypes: JSON reports.
        costs: records of the stages.
        manifests: by folder, those that are there.
        submissions: file name and sha256.
    """

    params: Mapping[str, Any]
    shown: ReportParams
    evaluation: EvaluateConfig
    posts: pl.DataFrame
    images: pl.DataFrame
    statuses: pl.DataFrame
    nearest: pl.DataFrame
    masses: pl.DataFrame
    classes: pl.DataFrame
    prototypes_file: Path
    encoders: Mapping[str, Mapping[str, Any]]
    scored: Scored | None
    final: pl.DataFrame
    importance: pl.DataFrame
    scores: pl.DataFrame
    cuts: pl.DataFrame
    differences: pl.DataFrame
    groups: pl.DataFrame
    coverage: pl.DataFrame | None
    selection: Mapping[str, Any] | None
    selection_scores: pl.DataFrame | None
    trials: pl.DataFrame | None
    study: Mapping[str, Any] | None
    text_share: float
    ablation: pl.DataFrame | None
    curves: Mapping[str, Sequence[tuple[int, float]]]
    ingest: Mapping[str, Any]
    pictures: Mapping[str, Any]
    split: Mapping[str, Any]
    prototypes: Mapping[str, Any]
    costs: Sequence[Mapping[str, Any]]
    manifests: Mapping[str, Mapping[str, Any]]
    submissions: Mapping[str, str]


def read_inputs(sources: Sources) -> Inputs:
    """Everything but pictures.

    Raises:
        ContractError: a table is of another shape.
        DataError: a report is no JSON.
    """
    posts = read_table(sources.posts, POSTS)
    predictions = read_table(sources.predictions, PREDICTIONS)
    scores = pl.read_csv(sources.scores, schema_overrides=SCORES)
    classes = read_table(sources.prototypes / "classes.parquet", CLASSES).filter(level="subcategory")
    folders = {
        "models/prototypes": sources.prototypes,
        "models/network": sources.network,
        "models/selection": sources.selection,
        "models/tuning": sources.tuning,
        "models/stack": sources.stack,
        "submissions": sources.submissions,
    }
    return Inputs(
        params=read_yaml(sources.params),
        shown=load_params("report", ReportParams, sources.params),
        evaluation=load_params("evaluate", EvaluateConfig, sources.params),
        posts=posts,
        images=read_table(sources.images, IMAGES),
        statuses=read_table(sources.statuses, IMAGE_STATUS),
        nearest=read_table(sources.explain / "nearest.parquet", NEAREST),
        masses=read_table(sources.explain / "attention_mass.parquet", ATTENTION_MASS),
        classes=classes.sort(["posts", "index"], descending=[True, False]),
        prototypes_file=sources.prototypes / "prototypes.safetensors",
        encoders=_json(sources.prototypes / "about.json")["encoders"],
        scored=_scored(posts, read_table(sources.splits, FOLDS), predictions),
        final=predictions.filter(scheme="final", model="stack").group_by("pid").agg(pl.mean("prediction")).sort("pid"),
        importance=read_importance(sources.importance),
        scores=scores.filter(pl.col("minus").is_null() & pl.col("cut").is_null()),
        cuts=scores.filter(pl.col("minus").is_null() & pl.col("cut").is_not_null()),
        differences=scores.filter(pl.col("minus").is_not_null() & pl.col("cut").is_null()),
        groups=pl.read_csv(sources.groups, schema_overrides=GROUPS).filter(pl.col("minus").is_null()),
        coverage=_csv(sources.coverage),
        selection=_json_if_there(sources.selection / "selection.json"),
        selection_scores=_csv(sources.selection / "scores.csv"),
        trials=_csv(sources.tuning / "trials.csv"),
        study=_json_if_there(sources.tuning / "study.json"),
        text_share=_json(sources.stack / TEXT_FILE)["share"],
        ablation=_csv(sources.ablation / "ablation.csv"),
        curves=_curves(sources.curves),
        ingest=_json(sources.ingest),
        pictures=_json(sources.pictures),
        split=_json(sources.split),
        prototypes=_json(sources.classes),
        costs=[_json(file) for file in sources.costs],
        manifests={name: _json(folder / MANIFEST) for name, folder in folders.items() if (folder / MANIFEST).is_file()},
        submissions={
            file.name: sha256_of(file) for file in sorted(sources.submissions.iterdir()) if file.name != MANIFEST
        },
    )


def _scored(posts: pl.DataFrame, splits: pl.DataFrame, predictions: pl.DataFrame) -> Scored | None:
    own = predictions.filter(scheme=REPORT)
    return None if own.is_empty() else collect(posts, splits.filter(scheme=REPORT), own)[0]


def _csv(path: Path) -> pl.DataFrame | None:
    """None for a file that is missing or has no row."""
    if not path.is_file():
        return None
    frame = pl.read_csv(path, infer_schema_length=None)
    return None if frame.is_empty() else frame


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"not valid JSON: {error}", file=path, fix="dvc repro --force") from error


def _json_if_there(path: Path) -> Any:
    return _json(path) if path.is_file() else None


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What DVCLive wrote: metrics/<name>.tsv, the name with slashes, columns step and value."""
    found = {}
    for file in sorted((folder / "metrics").rglob("*.tsv")):
        steps = pl.read_csv(file, separator="\t")
        name = file.relative_to(folder / "metrics").with_suffix("").as_posix()
        found[name] = [(int(step), float(value)) for step, value in steps.iter_rows()]
    return found
