"""A run folder for stage report from a small generated data set.

Fast stages run; vectors, explanations and trials are random.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from ruamel.yaml import YAML

from popularity.core import paths
from popularity.core.atomic import write_json
from popularity.core.config import load_params, read_yaml
from popularity.core.contracts import (
    ATTENTION_MASS,
    FOLDS,
    IMAGE_STATUS,
    IMAGES,
    MODALITIES,
    NEAREST,
    POSTS,
    PREDICTIONS,
    TRENDS,
    write_table,
)
from popularity.core.manifest import write_manifest
from popularity.dataset import ingest
from popularity.images import IndexImagesParams, index_images
from popularity.prototypes.build import PrototypesParams, build_prototypes, write_prototypes
from popularity.stack import StackParams
from popularity.stack.members import write_members
from popularity.tuning.results import write_results
from popularity.tuning.space import Space
from popularity.tuning.study import Budget, Finished, Search
from popularity.validation import SplitParams, make_splits
from stages import evaluate, report
from tests.network.small_inputs import random_block
from tests.repository import profile_text, stage_flags, write_profile
from tests.small_tables import small_predictions, small_trends

HOSTILE = "<script>alert('post')</script> $x_1$ & \"quoted\" | `code` " + "w" * 300
HOSTILE_CLASS = '<img src=x onerror="alert(1)">$|'
SHOWN = {"thumbnail": 48, "worst_posts": 3, "gallery_classes": 4, "gallery_posts": 2}


DATASET = "data/small"


@dataclass(frozen=True)
class SmallRun:
    """A project folder with everything that the stage reads; the data set is in DATASET."""

    folder: Path

    def write(self, out: Path) -> tuple[str, str]:
        """Runs the stage with its outs below `out`; the page and the card."""
        outs = {"html": out / "report.html", "card": out / "model_card.md", "resources": out / "report.json"}
        report.main(stage_flags("report", self.folder, root=DATASET, **outs))
        return tuple((out / name).read_text(encoding="utf-8") for name in ("report.html", "model_card.md"))  # type: ignore[return-value]

    def copy(self, folder: Path) -> SmallRun:
        """A run to change, in a new folder."""
        return SmallRun(Path(shutil.copytree(self.folder, folder)))

    def only(self, folder: Path, names: Iterable[str]) -> SmallRun:
        """A run of params.yaml, the data set and these files and folders alone."""
        for name in {paths.PARAMS, DATASET, *names}:
            source, target = self.folder / resolved(name), folder / resolved(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copy2(source, target)
        return SmallRun(folder)

    def table(self, name: str) -> pl.DataFrame:
        return pl.read_parquet(self.folder / resolved(name))

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


def resolved(name: str) -> str:
    """A path of popularity.core.paths in profile demo."""
    return paths.resolved(name, YAML(typ="safe", pure=True).load(profile_text()))


def make_run(dataset: Path, folder: Path, *, test: bool = True, with_images: bool = True) -> SmallRun:
    """A run on a copy of `dataset`, without its test part or any image named by a post if the flags say so."""
    root = folder / DATASET
    shutil.copytree(dataset, root)
    for path in root.glob("*"):
        if (not test and path.name.startswith("test")) or (not with_images and path.suffix == ".tar"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    ingested = ingest(root)
    write_json(folder / paths.INGEST_SUMMARY, ingested.summary)
    if not with_images:
        ingested = replace(ingested, posts=ingested.posts.with_columns(image_path=pl.lit("")))
    images, found = index_images(ingested.posts, root, IndexImagesParams(1.0, 1.0, max_pixels=10**6))
    write_json(folder / paths.IMAGE_SUMMARY, found)
    posts = _with_hostile_words(ingested.posts)
    write_table(posts, folder / paths.POSTS, POSTS)
    write_table(images, folder / paths.IMAGES, IMAGES)
    write_table(images.select("pid", "status"), folder / resolved(paths.IMAGE_STATUS), IMAGE_STATUS)
    splits, summary = make_splits(
        posts, SplitParams(0, "fractions", 0.15, 0.15, 2, 2, 0.5, 0.05, match_collection_order=False)
    )
    write_table(splits, folder / paths.SPLITS, FOLDS)
    write_json(folder / paths.SPLIT_SUMMARY, summary)
    predictions = small_predictions(posts, splits.filter(pl.col("scheme") != "random"))
    write_table(predictions, folder / paths.ENSEMBLE_PREDICTIONS, PREDICTIONS)
    write_table(small_trends(posts, splits, apart=3.0), folder / paths.STACK_TRENDS, TRENDS)
    (folder / paths.ENSEMBLE_IMPORTANCE).write_text(
        "block,feature,gain\nmetadata,hour,6.5\nimage,pc_0,1.5\ntext,<b>,0\n"
    )
    _params(folder)
    _evaluation(folder)
    _explanations(folder, posts, images)
    _training(folder)
    _tuning(folder)
    _models(folder)
    for stage, cost in paths.RESOURCES.items():
        child = 40 if stage == "train" else 0
        record = {"stage": stage, "seconds": 1.25, "peak_mib": 120, "largest_child_mib": child}
        write_json(folder / resolved(cost), record)
    return SmallRun(folder)


def _with_hostile_words(posts: pl.DataFrame) -> pl.DataFrame:
    """Every title is hostile, and so is the largest class; one post of 20 lacks a text."""
    largest = posts.group_by("subcategory").len().sort(["len", "subcategory"], descending=True)["subcategory"][0]
    own = pl.col("subcategory") == largest
    silent = pl.int_range(pl.len()) % 20 == 0
    hostile = pl.col("category") + "/" + pl.lit(HOSTILE_CLASS)
    return posts.with_columns(
        title=pl.when(silent).then(pl.lit("")).otherwise(pl.lit(HOSTILE) + pl.col("title")),
        tags=pl.when(silent).then(pl.lit("")).otherwise(pl.col("tags") + pl.lit(" </style><b>")),
        subcategory=pl.when(own).then(hostile).otherwise("subcategory"),
        concept=pl.when(own).then(hostile + "/x").otherwise("concept"),
    )


def _params(folder: Path) -> None:
    """Those of profile demo, but for what is small here."""
    params = read_yaml(write_profile(folder))
    params["dataset"]["root"] = str(folder / DATASET)
    params["evaluate"]["n_resamples"] = 40
    params["report"] = SHOWN
    with (folder / "params.yaml").open("w", encoding="utf-8") as stream:
        YAML(typ="safe", pure=True).dump(params, stream)


def _evaluation(folder: Path) -> None:
    evaluate.main(stage_flags("evaluate", folder))


def _explanations(folder: Path, posts: pl.DataFrame, images: pl.DataFrame) -> None:
    """Prototypes of random vectors; to each post three random classes a head, and random attention."""
    with_picture = images.filter(status="ok")["pid"].to_list()
    blocks = random_block(with_picture, 12, 1), random_block(posts["pid"].to_list(), 9, 2)
    built = build_prototypes(
        posts, *blocks, PrototypesParams(seed=0, max_per_class=5, class_name_format="auto"), transductive=True
    )
    write_prototypes(built, folder / paths.PROTOTYPES)
    write_json(folder / paths.PROTOTYPE_SUMMARY, dict(built.summary))
    classes = built.classes.filter(level="subcategory")
    rng = np.random.default_rng(3)
    rows = []
    for pid in posts["pid"]:
        for head in (*(MODALITIES if pid in set(with_picture) else ("text",)), "attention"):
            for rank, place in enumerate(rng.permutation(len(classes))[:3]):
                index, key = classes.row(place, named=False)[1:3]
                rows.append((pid, head, rank, index, key, float(rng.uniform(-1, 1))))
    schema: dict[str, Any] = {name: rule.dtype for name, rule in NEAREST.columns.items()}
    write_table(pl.DataFrame(rows, schema=schema, orient="row"), folder / paths.NEAREST_CLASSES, NEAREST)
    shares = rng.dirichlet(np.ones(4), len(with_picture)).astype(np.float32)
    columns = dict(zip(("image", "visual", "text", "other_levels"), shares.T, strict=True))
    masses = pl.DataFrame(
        {"pid": with_picture, **columns}, schema={name: rule.dtype for name, rule in ATTENTION_MASS.columns.items()}
    )
    write_table(masses, folder / paths.ATTENTION_MASS, ATTENTION_MASS)


def _training(folder: Path) -> None:
    for place, name in enumerate(
        ("train/loss", "train/global_prompt", "validation/global_prompt", "validation/top1/mean")
    ):
        file = folder / paths.TRAINING_PLOTS / f"metrics/{name}.tsv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            f"step\t{name.split('/')[-1]}\n" + "".join(f"{step}\t{0.9 / (step + 1 + place)}\n" for step in range(4))
        )


def _tuning(folder: Path) -> None:
    """Twelve trials of three parameters: two registered ones first, the eighth the best, the last pruned."""
    stack = replace(load_params("stack", StackParams, folder / "params.yaml"), sample_weight_half_life_days=365.0)
    axes = {
        "sample_weight_half_life_days": {"low": 100.0, "high": 2000.0, "log": True, "integer": False},
        "lightgbm.num_leaves": {"low": 7, "high": 63, "log": True, "integer": True},
        "columns.feature_blocks": {"choices": [["metadata", "image", "text", "prototype"], ["metadata", "text"]]},
    }
    space = Space.parse("tune.space", axes, "stack", stack)
    first = {"plain": space.default, "texts": {**space.default, "columns.feature_blocks": ["metadata", "text"]}}
    trials = [Finished(0, "COMPLETE", 0.5, space.default, {"forward_0": 0.5}, "plain")]
    for number in range(1, 12):
        blocks = axes["columns.feature_blocks"]["choices"][number % 2]  # type: ignore[index]
        values = {
            "columns.feature_blocks": blocks,
            "sample_weight_half_life_days": 150.0 + number,
            "lightgbm.num_leaves": 7 + number,
        }
        trials.append(Finished(number, "COMPLETE", 0.5 - 0.02 * number, values, {"forward_0": 0.5 - 0.02 * number}))
    trials[1] = replace(trials[1], values=first["texts"], name="texts")
    trials[8] = replace(trials[8], value=0.11)
    trials[11] = replace(trials[11], state="PRUNED")
    (folder / paths.TUNING).mkdir(parents=True)
    search = Search("small", space, Budget(0, 12, 0.0, "sqlite"), first)
    members = {"trial_8": trials[8], "texts": trials[1]}
    described = [{"name": name, "trial": trial.number, "weight": 0.5} for name, trial in members.items()]
    write_results(trials, search, folder / paths.TUNING, described)
    write_members({name: trial.values for name, trial in members.items()}, folder / paths.TUNING_MEMBERS)


def _models(folder: Path) -> None:
    """Folders that the report reads for their manifests, and a submission."""
    for name in (
        paths.NETWORK,
        paths.STACK,
        paths.PROTOTYPES,
        paths.TUNING,
        paths.ENSEMBLE,
        paths.SUBMISSIONS,
    ):
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_manifest(folder / name, params={}, inputs={"posts": folder / paths.POSTS}, metrics={})
    weights = {"texts": 0.25, "trial_8": 0.45, "text_model": 0.3}
    losses = {"texts": 0.52, "trial_8": 0.51, "text_model": 0.66}
    ensemble = {"weights": weights, "text_model_offset": 0.1, "losses": losses, "ensemble_loss": 0.4321, "splits": 2}
    write_json(folder / paths.ENSEMBLE_WEIGHTS, ensemble)
    (folder / paths.SUBMISSIONS / "submission.csv").write_text("post_id,popularity_score\n")
