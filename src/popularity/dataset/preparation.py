"""What `make dataset` does: check a data set, pack its pictures if need be, and point params.yaml at it."""

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
from popularity.dataset.layout import find_parts
from popularity.dataset.packing import has_shards, pack
from popularity.images import image_sizes

log = logging.getLogger(__name__)

EXAMPLES = 3  # names listed per kind of trouble


def prepare(root: Path, packed: Path, shard_bytes: int) -> tuple[Path, dict[str, Any]]:
    """The root to give to the graph, absolute, and the ingest report of the data set, with a count of its pictures.

    That is `root` itself when its pictures lie in tar shards, else `packed`/<name of root> with a packed copy.

    Raises:
        DataError: anything `ingest` refuses, or a part without pictures.
    """
    root = root.resolve()
    ingested = ingest(root)
    parts = find_parts(root)
    shards = {part.split: has_shards(root, part.split) for part in parts}
    for split, found in shards.items():
        if not found and not _has_pictures(root / split):
            raise DataError(
                f"the {split} part has no pictures",
                file=root,
                expected=f"tar shards {root}/{split}_images*.tar, or a folder {root}/{split}/<Uid>/<Pid>.jpg",
                fix="put the pictures there and run the command again",
            )
    if all(shards.values()):
        return root, {**ingested.report, "pictures": _pictures(ingested.posts, root)}
    if any(shards.values()):
        raise DataError(
            f"shards for the part {', '.join(split for split, found in shards.items() if found)} only",
            file=root,
            expected="both parts as tar shards, or both as folders of pictures",
            fix="unpack the shards with tar -xf and move them away, or pack the other part likewise",
        )
    target = packed.resolve() / root.name
    pack(root, parts, ingested.posts, target, shard_bytes)
    return target, {**ingested.report, "pictures": _pictures(ingested.posts, target)}


def _pictures(posts: pl.DataFrame, root: Path) -> dict[str, Any]:
    """How many pictures are there, and which are not, by the lists of the shards: headers are for index_images."""
    sizes, damaged = image_sizes(posts, root)
    paths = sorted(posts["image_path"])
    return {
        "posts": len(paths),
        "missing": [path for path in paths if path not in sizes],
        "empty": [path for path in paths if sizes.get(path) == 0],
        "damaged_shards": damaged,
    }


def _has_pictures(folder: Path) -> bool:
    return folder.is_dir() and next(folder.glob("*/*.jpg"), None) is not None


def set_root(params: Path, root: Path) -> str:
    """Writes `dataset.root` into params.yaml, whose comments and layout stay; the value it had before.

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


def summary(report: Mapping[str, Any]) -> str:
    """The counts of an ingest report, for people."""
    lines = []
    for split, part in report["parts"].items():
        classes = " / ".join(str(count) for count in part["classes"].values())
        lines.append(f"{split}: {part['posts']} posts of {part['users']} users, {classes} classes")
        lines.append(f"  {part['from']} to {part['to']}")
    label = report["label"]
    lines.append("label: mean {mean:.3f}, sd {sd:.3f}, {min:.2f} to {max:.2f}".format(**label))
    if "unseen_in_training" in report:
        share = report["unseen_in_training"]["share_of_test_posts_by_unseen_users"]
        lines.append(f"test posts by users unseen in training: {share:.1%}")
    else:
        lines.append(f"test part: {report['test_part']}")
    lines += _picture_lines(report["pictures"])
    lines.append(f"values that could not be used as published: {report['quarantine']['values']}")
    for entry in report["quarantine"]["by_reason"]:
        lines.append("  {values} x {field}: {reason}, {action}".format(**entry))
    return "\n".join(lines)


def _picture_lines(pictures: Mapping[str, Any]) -> list[str]:
    troubles = {kind: paths for kind in ("missing", "empty") if (paths := pictures[kind])}
    lines = [f"pictures: {pictures['posts'] - sum(map(len, troubles.values()))} of {pictures['posts']} are there"]
    for kind, paths in troubles.items():
        more = ", ..." if len(paths) > EXAMPLES else ""
        lines.append(f"  {len(paths)} {kind}: {', '.join(paths[:EXAMPLES])}{more}")
    lines += [f"  {shard} is {trouble}" for shard, trouble in pictures["damaged_shards"].items()]
    if troubles:
        lines.append("  more than a share of index_images.max_bad_fraction (params.yaml) stops the run")
    return lines
