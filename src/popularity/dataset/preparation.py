"""What `make dataset` does: check a data set, pack its images if need be, and point params.yaml at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from popularity.core.atomic import atomic_path
from popularity.core.config import read_yaml
from popularity.core.errors import ConfigError, DataError
from popularity.dataset.ingestion import DatasetParams, ingest
from popularity.dataset.layout import find_splits
from popularity.dataset.packing import Packed, pack
from popularity.images import ImageFolder, IndexImagesParams, find_shards, image_lines, index_images, packed_images

MAX_BEFORE = 0.5  # share of test posts that are older than the last training post, above which it is said
UNQUOTABLE = "'\n\r\0"  # dvc.yaml puts the root between single quotes


@dataclass(frozen=True)
class Options:
    """How a data set is prepared.

    Args:
        dataset: section dataset; its root is not read.
        images: section index_images.
        packed: folder of packed copies.
        shard_bytes: largest size of a tar shard.
        follow_links: True to take images that are links to files outside of the data set.
    """

    dataset: DatasetParams
    images: IndexImagesParams
    packed: Path
    shard_bytes: int
    follow_links: bool


def prepare(root: Path, options: Options) -> tuple[Path, dict[str, Any]]:
    """The absolute root to give to the graph, and the summary of the data set with that of its images.

    All that the stages `ingest` and `index_images` would refuse is refused here. The root is `root` itself when its
    images lie in tar shards, else `options.packed`/<name of root> with a packed copy.

    Raises:
        DataError: a fault that `ingest` or `index_images` refuses, or a split without images.
    """
    root = root.resolve()
    refuse_unquotable(root)
    reading = options.dataset
    ingested = ingest(root, reading.labels, without_user_file=reading.without_user_file)
    splits = find_splits(root, without_user_file=reading.without_user_file)
    shards = {source.split: bool(find_shards(root, source.split)) for source in splits}
    posts = ingested.posts
    for split, found in shards.items():
        folder = ImageFolder.of(root, split, follow_links=True)
        if not found and not any(folder.find(path) for path in posts.filter(split=split)["image_path"]):
            raise _no_images(root, split)
    if any(shards.values()) and not all(shards.values()):
        raise DataError(
            f"shards for the split {', '.join(split for split, found in shards.items() if found)} only",
            file=root,
            expected="both splits as tar shards, or both as folders of images",
            fix="unpack the shards with tar -xf and move them away, or pack the other split too",
        )
    _, images = index_images(posts, root, options.images, follow_links=options.follow_links)
    summary = {**ingested.summary, "images": images}
    if all(shards.values()):
        return root, summary
    target = options.packed.resolve() / root.name
    refuse_unquotable(target)
    pack(root, splits, posts, Packed(target, options.shard_bytes, options.follow_links))
    return target, summary


def _no_images(root: Path, split: str) -> DataError:
    packed = packed_images(root, split)
    return DataError(
        f"the {split} split has no images" + "".join(f"; found {advice}" for advice in packed),
        file=root,
        expected=f"tar shards {root}/{split}_images*.tar, or a folder {root}/{split}/<Uid>/<Pid>.jpg",
        fix=f"{'unpack them' if packed else 'put the images there'} and run the command again",
    )


def refuse_unquotable(root: Path) -> None:
    """Raises DataError for a path that dvc.yaml cannot hand to a shell as one word."""
    if any(character in str(root) for character in UNQUOTABLE) or "${" in str(root):
        raise DataError(
            "the path holds a quote, a line break or '${', which dvc.yaml cannot hand on",
            file=root,
            expected="a path without them; spaces and other characters are fine",
            fix="rename the folder, or make a link to it elsewhere",
        )


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
    # The official layout, whose packed copy holds what links lead to.
    official = {"table": "", "test_table": "", "test_from": "", "follow_links": False}
    for name in official.keys() & content["dataset"].keys():
        content["dataset"][name] = official[name]
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
    if summary.get("test_posts_before_training_ends", 0) > MAX_BEFORE:
        share = summary["test_posts_before_training_ends"]
        lines.append(f"  {share:.1%} of the test posts are older than the last training post: this is no split by time")
    lines += [f"no user file of {split}: user fields are empty" for split in summary["without_user_file"]]
    nowhere = sum(summary["places_at_zero"].values())
    lines += [f"{nowhere} places at (0, 0) are read as none"] if nowhere else []
    lines += _file_lines(summary["files"])
    lines += image_lines(summary["images"])
    lines.append(f"values that could not be used as published: {summary['quarantine']['values']}")
    for entry in summary["quarantine"]["by_reason"]:
        lines.append("  {values} x {field}: {reason}, {action}".format(**entry))
    return "\n".join(lines)


def _file_lines(files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What was read otherwise than the official files are written."""
    lines = []
    for name, entry in files.items():
        found = [entry["stored_as"]] if entry["stored_as"] else []
        found += ["JSON lines"] if str(entry["layout"]).startswith("lines of JSON") else []
        found += [f"line 1, {entry['header']!r}, is a header: left out"] if entry.get("header") else []
        found += [f"{entry['spelled_otherwise']} paths spelled otherwise"] if entry.get("spelled_otherwise") else []
        lines += [f"{name}: {', '.join(found)}"] if found else []
    return lines
