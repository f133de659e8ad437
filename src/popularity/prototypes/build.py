"""Builds representatives of every class and the prototypes V and T (Sec 3.1)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field
from safetensors.numpy import save
from tqdm import tqdm

from popularity.core.arrays import BoolArray, Float32Array, Int64Array, normalize_rows
from popularity.core.atomic import atomic_path, write_json
from popularity.core.config import Section
from popularity.core.contracts import CLASSES, CLUSTERS, LEVELS, MEMBERS, MODALITIES, write_table
from popularity.core.errors import DataError
from popularity.core.vectors import Block
from popularity.prototypes.classes import (
    CLUSTERS_FILE,
    ClassIndex,
    ClassNameFormat,
    choose_class_name_format,
    classified,
    level_keys,
    make_classes,
)
from popularity.prototypes.clusters import clusters_of
from popularity.prototypes.sampling import diverse_sample
from popularity.prototypes.vectors import ClassSums, prototypes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrototypesParams(Section):
    """Section `prototypes` of params.yaml.

    Args:
        seed: of the order in which equal candidates are taken.
        max_per_class: representatives of a class, at most.
        class_name_format: see `level_key`; auto: see `choose_class_name_format`.
    """

    seed: int
    max_per_class: Annotated[int, Field(ge=1)]
    class_name_format: Literal["auto", "path", "name"]


@dataclass(frozen=True)
class Representatives:
    """The representatives of the classes of one taxonomy level in one modality.

    Args:
        rows: (m,) positions in the posts, by class, ascending within a class.
        classes: (m,) index of each one's class.
    """

    rows: Int64Array
    classes: Int64Array


@dataclass(frozen=True)
class Prototypes:
    """The content of the folder models/prototypes.

    Args:
        classes: contract CLASSES.
        clusters: contract CLUSTERS: the classes of posts that have none of their own.
        members: contract MEMBERS.
        tensors: `<level>.<modality>` (k, d) float32 prototypes, normalised; `<level>.<modality>_sum` (k, d) float32 and
            `<level>.<modality>_count` (k,) int64 of the representatives; `<level>.parent` (k,) int64, -1 for none.
        metadata: parameters and encoders that made them.
        summary: counts for people.
    """

    classes: pl.DataFrame
    clusters: pl.DataFrame
    members: pl.DataFrame
    tensors: Mapping[str, npt.NDArray[Any]]
    metadata: Mapping[str, Any]
    summary: Mapping[str, Any]


def build_prototypes(
    posts: pl.DataFrame, image: Block, text: Block, params: PrototypesParams, *, transductive: bool
) -> Prototypes:
    """Returns the prototypes of all three taxonomy levels, without reading a popularity label.

    The visual prototype of a class is made of posts with an image, the text prototype of posts with a title, or of
    posts with tags if no post of the class has a title. Classes are those of the training posts.

    Args:
        posts: table of contract POSTS.
        image: block `pooled` of the images; a post without a readable one is absent.
        text: block `post`, the text r of every post.
        params: section prototypes.
        transductive: test posts of known classes may be representatives, too.

    Raises:
        DataError: fewer than two second-level classes, or vectors of other posts.
    """
    posts = posts.drop("label").sort("pid")
    clusters = clusters_of(posts, image, text, params.seed)
    posts = classified(posts, clusters)
    class_name_format = params.class_name_format
    if class_name_format == "auto":
        class_name_format = choose_class_name_format(posts)
    classes = make_classes(posts, class_name_format)
    index = ClassIndex.from_posts(posts, classes, class_name_format)
    blocks = {"visual": image, "text": text}
    positions = {modality: block.rows(posts["pid"].to_list()) for modality, block in blocks.items()}
    _check_posts(positions)
    eligible = np.ones(posts.height, bool) if transductive else (posts["split"] == "train").to_numpy()
    has_title, has_tags = ((posts[name].str.strip_chars() != "").to_numpy() for name in ("title", "tags"))
    chosen: dict[tuple[str, str], Representatives] = {}
    tensors: dict[str, npt.NDArray[Any]] = {}
    sample = _Sampler(posts, class_name_format, params)
    for level in LEVELS:
        of_class = np.where(eligible, index.rows[level], -1)
        parent = classes.filter(level=level)["parent"].fill_null(-1).to_numpy().astype(np.int64)
        tensors[f"{level}.parent"] = parent
        candidates = {
            "visual": positions["visual"] >= 0,
            "text": has_title | (has_tags & ~_any_of_class(of_class, has_title)),
        }
        for modality in MODALITIES:
            found = sample(np.where(candidates[modality], of_class, -1), f"{level} {modality}")
            chosen[level, modality] = found
            total, count = _sums(blocks[modality], positions[modality], found, len(parent))
            tensors[f"{level}.{modality}_sum"], tensors[f"{level}.{modality}_count"] = total, count
    for modality in MODALITIES:
        sums = [
            ClassSums(
                tensors[f"{level}.{modality}_sum"], tensors[f"{level}.{modality}_count"], tensors[f"{level}.parent"]
            )
            for level in LEVELS
        ]
        for depth, level in enumerate(LEVELS):
            tensors[f"{level}.{modality}"] = prototypes(sums[: depth + 1])
    metadata = {
        "seed": params.seed,
        "max_per_class": params.max_per_class,
        "transductive": transductive,
        "class_name_format": class_name_format,
        "encoders": {
            modality: {
                "encoder": block.metadata["encoder"],
                "weights": block.metadata["weights"],
                "width": block.values.shape[1],
            }
            for modality, block in blocks.items()
        },
    }
    summary = _summary(posts, classes, index, tensors, params) | {
        "class_name_format": class_name_format,
        "transductive": transductive,
        "clusters": clusters["subcategory"].n_unique() if clusters.height else 0,
    }
    return Prototypes(classes, clusters, _members(posts, chosen), tensors, metadata, summary)


def write_prototypes(built: Prototypes, out: Path) -> None:
    """Writes classes.parquet, clusters.parquet, members.parquet, prototypes.safetensors and metadata.json into `out`.

    Args:
        built: of `build_prototypes`.
        out: a folder that exists.
    """
    write_table(built.classes, out / "classes.parquet", CLASSES)
    write_table(built.clusters, out / CLUSTERS_FILE, CLUSTERS)
    write_table(built.members, out / "members.parquet", MEMBERS)
    with atomic_path(out / "prototypes.safetensors") as partial:
        partial.write_bytes(save(dict(built.tensors)))
    write_json(out / "metadata.json", dict(built.metadata))


def member_classes(members: pl.DataFrame, posts: pl.DataFrame, level: str, modality: str) -> Int64Array:
    """Returns (n,) the index of the class that each of `posts` represents, or -1, as `leave_one_out` needs it.

    Args:
        members: contract MEMBERS.
        posts: (n rows) with pid.
        level: one of LEVELS.
        modality: one of MODALITIES.
    """
    of_level = members.filter(level=level, modality=modality).select("pid", "index")
    joined = posts.select("pid").join(of_level, on="pid", how="left", validate="1:1", maintain_order="left")
    return joined["index"].fill_null(-1).to_numpy().astype(np.int64)


def member_rows(members: pl.DataFrame, posts: pl.DataFrame, modality: str) -> Int64Array:
    """Returns (n,) the row of each of `posts` among the posts that represent any class, in order of pid, or -1.

    Args:
        members: contract MEMBERS.
        posts: (n rows) with pid.
        modality: one of MODALITIES.
    """
    pids = members.filter(modality=modality).select(pl.col("pid").unique().sort()).with_row_index("row")
    joined = posts.select("pid").join(pids, on="pid", how="left", validate="1:1", maintain_order="left")
    return joined["row"].cast(pl.Int64).fill_null(-1).to_numpy().astype(np.int64)


class _Sampler:
    """Diverse sampling for every class of a level; all classes share one seeded order."""

    def __init__(self, posts: pl.DataFrame, class_name_format: ClassNameFormat, params: PrototypesParams) -> None:
        self.max_per_class = params.max_per_class
        self.seconds = posts["posted_at"].dt.epoch("s").to_numpy()
        concepts = level_keys(posts, class_name_format)["concept"].fill_null("")
        self.concepts, self.users = (
            codes.rank("dense").to_numpy().astype(np.int64) for codes in (concepts, posts["uid"])
        )
        self.draw = np.random.default_rng(params.seed).permutation(posts.height)

    def __call__(self, classes: Int64Array, label: str) -> Representatives:
        """Returns representatives among the posts whose class in `classes` (n,) is not -1."""
        order = np.argsort(classes, kind="stable")
        order = order[np.searchsorted(classes[order], 0) :]
        groups = np.split(order, np.flatnonzero(np.diff(classes[order])) + 1) if len(order) else []
        taken_rows = [np.zeros(0, np.int64)]
        for group in tqdm(groups, desc=label, unit="class", leave=False):
            taken = diverse_sample(
                self.seconds[group], self.concepts[group], self.users[group], self.draw[group], self.max_per_class
            )
            taken_rows.append(group[taken])
        rows = np.concatenate(taken_rows)
        return Representatives(rows, classes[rows])


def _any_of_class(classes: Int64Array, condition: BoolArray) -> BoolArray:
    """(n,) whether `condition` holds for any post of the same class; False for posts without a class."""
    holds = np.zeros(classes.max(initial=-1) + 2, dtype=bool)  # the last item is that of class -1
    holds[classes[condition]] = True
    holds[-1] = False
    return holds[classes]


def _sums(block: Block, positions: Int64Array, found: Representatives, k: int) -> tuple[Float32Array, Int64Array]:
    """(k, d) sums of the normalised vectors of the representatives, and (k,) how many there are."""
    count = np.bincount(found.classes, minlength=k).astype(np.int64)
    total = np.zeros((k, block.values.shape[1]), dtype=np.float32)
    stops = np.cumsum(count)
    for index in np.flatnonzero(count):
        rows = found.rows[stops[index] - count[index] : stops[index]]
        vectors = np.asarray(block.values[positions[rows]], dtype=np.float64)
        total[index] = normalize_rows(vectors).sum(axis=0)
    return total, count


def _members(posts: pl.DataFrame, chosen: Mapping[tuple[str, str], Representatives]) -> pl.DataFrame:
    schema = {name: rule.dtype for name, rule in MEMBERS.columns.items()}
    frames = [
        pl.DataFrame(
            {"level": level, "index": found.classes, "modality": modality, "pid": posts["pid"].gather(found.rows)},
            schema=schema,
        )
        for (level, modality), found in chosen.items()
    ]
    return pl.concat(frames).sort(MEMBERS.key)


def _check_posts(positions: Mapping[str, Int64Array]) -> None:
    missing = int((positions["text"] < 0).sum())
    if missing:
        raise DataError(
            f"{missing} of {len(positions['text'])} posts have no text vector",
            expected="a vector of every post in the block 'post'",
            fix="dvc repro embed_text",
        )
    if not (positions["visual"] >= 0).any():
        logger.warning("no post has an image vector: all visual prototypes are zero")


def _summary(
    posts: pl.DataFrame,
    classes: pl.DataFrame,
    index: ClassIndex,
    tensors: Mapping[str, npt.NDArray[Any]],
    params: PrototypesParams,
) -> dict[str, Any]:
    """Counts by level: classes, classes with few or no representatives, and posts without a class."""
    is_test = (posts["split"] == "test").to_numpy()
    levels: dict[str, Any] = {}
    for level in LEVELS:
        keys = classes.filter(level=level)["key"].to_list()
        counts = {modality: tensors[f"{level}.{modality}_count"] for modality in MODALITIES}
        without = index.rows[level] < 0
        levels[level] = {
            "classes": len(keys),
            "fewer_than_max": {
                modality: int((count < params.max_per_class).sum()) for modality, count in counts.items()
            },
            "representatives": {modality: int(count.sum()) for modality, count in counts.items()},
            "classes_without_images": [keys[row] for row in np.flatnonzero(counts["visual"] == 0)],
            "classes_without_texts": [keys[row] for row in np.flatnonzero(counts["text"] == 0)],
            "training_posts_without_class": int(without[~is_test].sum()),
            "test_share_unseen": round(float(without[is_test].mean()), 6) if is_test.any() else None,
        }
    counts_by_split = {"train": int((~is_test).sum()), "test": int(is_test.sum())}
    return {"posts": counts_by_split, "max_per_class": params.max_per_class, "levels": levels}
