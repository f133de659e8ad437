"""The demo data set and its truth, from parameters."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import spearmanr
from tqdm import tqdm

from popularity.core.atomic import write_json
from popularity.core.contracts import SPLITS
from popularity.core.errors import DataError
from popularity.demo.effects import EFFECTS, add_up
from popularity.demo.images import draw
from popularity.demo.layout import image_names, profiles_of, write_images, write_labels, write_metadata
from popularity.demo.params import DemoParams
from popularity.demo.posts import DemoClass, choose_classes, draw_posts
from popularity.demo.users import draw_users

logger = logging.getLogger(__name__)


def generate(params: DemoParams, root: Path, truth: Path, drawn: int | None = None) -> None:
    """Writes a data set like SMPD in the official layout into `root`, and its truth into `truth`.

    `truth` gets effects.parquet (pid, split, every effect, noise, expected, label), latents.parquet (pid, quality,
    agreement, mood, views), test_labels.parquet (pid, label) and truth.json (best reachable SRC and MAE). Only
    tests and benchmarks read them. The same parameters give the same bytes.

    Memory: about 2 KB a post; images are written one by one.

    Args:
        params: section demo.
        root: of the data set.
        truth: a folder outside of it.
        drawn: number of images for each split, repeated in turn; None: one for each post; 0: no shards.

    Raises:
        DataError: `truth` lies inside `root`, where a reader of the data set could find it.
    """
    if truth.resolve().is_relative_to(root.resolve()):
        raise DataError("the truth must not lie inside the data set", file=truth, expected=f"a folder outside {root}")
    streams = [np.random.default_rng(stream) for stream in np.random.SeedSequence(params.seed).spawn(5)]
    user_rng, post_rng, effect_rng, profile_rng, image_rng = streams
    classes = choose_classes(params.subcategories)
    users = draw_users(params, np.array([used.share for used in classes]), user_rng)
    posts = draw_posts(params, users, classes, post_rng)
    effects = add_up(posts, users, classes, params, effect_rng)
    with tempfile.TemporaryFile() as stream:
        profiles = profiles_of(users, params.user_file, classes, profile_rng, stream)
        for split in SPLITS:
            folder = root / f"{split}_allmetadata_json"
            folder.mkdir(parents=True, exist_ok=True)
            rows = posts.filter(pl.col("split") == split)
            write_metadata(folder, split, rows, users, classes, profiles)
            if split == "train":
                write_labels(folder, split, effects.filter(pl.col("split") == split)["label"])
            if drawn == 0:
                continue
            names = image_names(split, rows, users)
            images = _images(rows.head(drawn or len(rows)), classes, params.image_size, image_rng)
            if drawn:
                images = itertools.islice(itertools.cycle(images), len(rows))
            progress = tqdm(zip(names, images, strict=True), total=len(names), desc=f"{split} images", unit="post")
            write_images(root / f"{split}_images.tar", progress)
    _write_truth(truth, params, posts, effects)


def _images(posts: pl.DataFrame, classes: list[DemoClass], size: int, rng: np.random.Generator) -> Iterator[bytes]:
    for class_index, concept, quality in posts.select("class_index", "concept", "quality").iter_rows():
        used = classes[class_index]
        yield draw(used.category, used.subcategory, concept, quality, size, rng)


def _write_truth(truth: Path, params: DemoParams, posts: pl.DataFrame, effects: pl.DataFrame) -> None:
    truth.mkdir(parents=True, exist_ok=True)
    tables = {
        "effects": effects.select("pid", "split", *EFFECTS, "noise", "expected", "label"),
        "latents": posts.select("pid", "quality", "agreement", "mood").with_columns(effects["views"]),
        "test_labels": effects.filter(pl.col("split") == "test").select("pid", "label"),
    }
    for name, table in tables.items():
        table.sort("pid").write_parquet(truth / f"{name}.parquet", compression="zstd", statistics=False)
    best = {split: _best(effects.filter(pl.col("split") == split)) for split in SPLITS} | {"all": _best(effects)}
    logger.info("best reachable on the test part: SRC %.4f, MAE %.4f", best["test"]["src"], best["test"]["mae"])
    write_json(truth / "truth.json", {"parameters": dataclasses.asdict(params), "effects": EFFECTS, "best": best})


def _best(effects: pl.DataFrame) -> dict[str, Any]:
    """Scores of the label without noise against the label: no model can beat them but by luck."""
    expected, label = effects["expected"].to_numpy(), effects["label"].to_numpy()
    return {
        "posts": len(effects),
        "src": round(float(spearmanr(expected, label).statistic), 4),
        "mae": round(float(np.abs(expected - label).mean()), 4),
    }
