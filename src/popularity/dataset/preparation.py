"""What `make dataset` does: check a data set, pack its images if need be, and point params.yaml at it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from ruamel.yaml import YAML

from popularity.core.atomic import atomic_path
from popularity.core.config import read_yaml
from popularity.core.errors import ConfigError, DataError
from popularity.dataset.ingestion import ingest
from popularity.dataset.layout import find_splits
from popularity.dataset.packing import has_shards, pack
from popularity.images import image_sizes

log = logging.getLogger(__name__)

EXAMPLES = 3  # names shown for each kind of fault


def prepare(root: Path, packed: Path, shard_bytes: int) -> tuple[Path, dict[str, Any]]:
    """The absolute root to give to the graph, and the summary of the data set with a count of its images.

    The root is `root` itself when its images lie in tar shards, else `packed`/<name of root> with a packed copy.

    Raises:
        DataError: a fault that `ingest` refuses, or a split without images.
    """
    root = root.resolve()
    ingested = ingest(root)
    splits = find_splits(root)
    shards = {source.split: has_shards(root, source.split) for source in splits}
    for split, found in shards.items():
        if not found and not _has_images(root / split):
            raise DataError(
                f"the {split} split has no images",
                file=root,
                expected=f"tar shards {root}/{split}_images*.tar, or a folder {root}/{split}/<Uid>/<Pid>.jpg",
                fix="put the images there and run the command again",
            )
    if all(shards.values()):
        return root, {**ingested.summary, "images": _images(ingested.posts, root)}
    if any(shards.values()):
        raise DataError(
            f"shards for the split {', '.join(split for split, found in shards.items() if found)} only",
            file=root,
            expected="both splits as tar shards, or both as folders of images",
            fix="unpack the shards with tar -xf and move them away, or pack the other split too",
        )
    target = packed.resolve() / root.name
    pack(root, splits, ingested.posts, target, shard_bytes)
    return target, {**ingested.summary, "images": _images(ingested.posts, target)}


def _images(posts: pl.DataFrame, root: Path) -> dict[str, Any]:
    """The number of images found in the shards, and the names of the missing ones; index_images reads the headers."""
    sizes, damaged = image_sizes(posts, root)
    paths = sorted(posts["image_path"])
    return {
        "posts": len(paths),
        "missing": [path for path in paths if path not in sizes],
        "empty": [path for path in paths if sizes.get(path) == 0],
        "damaged_shards": damaged,
    }


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and next(folder.glob("*/*.jpg"), None) is not None


def set_root(params: Path, root: Path) -> str:
    """Writes `dataset.root` into params.yaml, keeps comments and layout, and returns the value before.

    Raises:
        ConfigError: the file has no key dataset.root.
    """
    before = read_yaml(params).get("dataset")
    if not isinstance(before, Mapping) or "root" not in before:
        raise ConfigError(f"{params}: the key dataset.root is missing")
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 2**16  # never break a line that was not broken
    content = yaml.load(params.read_text(encoding="utf-8"))
    content["dataset"]["root"] = str(root)
    with atomic_path(params) as partial:
        yaml.dump(content, partial)
    return str(before["root"])


def summary_text(summary: Mapping[str, Any]) -> str:
    """The counts of a data set's summary as lines for people."""
    lines = []
    for split, counts in summary["parts"].items():
        classes = " / ".join(str(count) for count in counts["classes"].values())
        lines.append(f"{split}: {counts['posts']} posts of {counts['users']} users, {classes} classes")
        lines.append(f"  {counts['from']} to {counts['to']}")
    label = summary["label"]
    lines.append("label: mean {mean:.3f}, sd {sd:.3f}, {min:.2f} to {max:.2f}".format(**label))
    if "unseen_in_training" in summary:
        share = summary["unseen_in_training"]["share_of_test_posts_by_unseen_users"]
        lines.append(f"test posts by users unseen in training: {share:.1%}")
    else:
        lines.append(f"test split: {summary['test_part']}")
    lines += _image_lines(summary["images"])
    lines.append(f"values that could not be used as published: {summary['quarantine']['values']}")
    for entry in summary["quarantine"]["by_reason"]:
        lines.append("  {values} x {field}: {reason}, {action}".format(**entry))
    return "\n".join(lines)


def _image_lines(images: Mapping[str, Any]) -> list[str]:
    faults = {kind: paths for kind in ("missing", "empty") if (paths := images[kind])}
    lines = [f"images: {images['posts'] - sum(map(len, faults.values()))} of {images['posts']} are there"]
    for kind, paths in faults.items():
        more = ", ..." if len(paths) > EXAMPLES else ""
        lines.append(f"  {len(paths)} {kind}: {', '.join(paths[:EXAMPLES])}{more}")
    lines += [f"  {shard} is {fault}" for shard, fault in images["damaged_shards"].items()]
    if faults:
        lines.append("  a larger fraction than index_images.max_bad_fraction (params.yaml) stops the run")
    return lines
