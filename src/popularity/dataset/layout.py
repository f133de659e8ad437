"""The official layout of a data set: its files and their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from popularity.core.contracts import SPLITS
from popularity.core.errors import DataError

# Accepted names, the current one first; {split} is train or test.
FILE_NAMES: Mapping[str, tuple[str, ...]] = {
    "category": ("{split}_category.json",),
    "text": ("{split}_text.json", "{split}_tags.json"),
    "temporalspatial": ("{split}_temporalspatial_information.json", "{split}_temporalspatial.json"),
    "additional": ("{split}_additional_information.json", "{split}_additional.json"),
    "user": ("{split}_user_data.json", "{split}_userdata.json"),
    "images": ("{split}_img_filepath.txt", "{split}_img.txt"),
}
LABEL_NAME = "train_label.txt"  # the test labels have no name here: they are never opened

MAX_NAMES = 20


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split (train or test) of the data set.

    Args:
        split: train or test.
        folder: the split's metadata folder.
        files: role (keys of FILE_NAMES, and `label` in the training split) to path.
        unread: names of the other entries of the folder.
    """

    split: str
    folder: Path
    files: Mapping[str, Path]
    unread: tuple[str, ...]


def metadata_folder(root: Path, split: str) -> Path:
    return root / f"{split}_allmetadata_json"


def find_splits(root: Path) -> list[SplitFiles]:
    """The training split, and the test split if its folder exists.

    Raises:
        DataError: no such folder, no training split, or a split lacks one of its files.
    """
    if not metadata_folder(root, "train").is_dir():
        raise DataError(
            f"not a data set in the official layout: found {_listing(root)}",
            file=root,
            expected="a folder train_allmetadata_json with the training metadata (and test_allmetadata_json, if any)",
            fix="choose the folder that holds train_allmetadata_json: make dataset ROOT=<folder>",
        )
    return [_find_split(root, split) for split in SPLITS if metadata_folder(root, split).is_dir()]


def _find_split(root: Path, split: str) -> SplitFiles:
    folder = metadata_folder(root, split)
    accepted = {role: tuple(name.format(split=split) for name in names) for role, names in FILE_NAMES.items()}
    if split == "train":
        accepted["label"] = (LABEL_NAME,)
    files = {}
    for role, names in accepted.items():
        found = next((folder / name for name in names if (folder / name).is_file()), None)
        if found is None:
            hint = "" if split == "train" else f"; a data set without a test split has no folder {folder.name}"
            raise DataError(
                f"the file {' or '.join(names)} is missing: found {_listing(folder)}",
                file=folder,
                expected=f"the files {', '.join(' or '.join(each) for each in accepted.values())}",
                fix=f"put the missing file there{hint}",
            )
        files[role] = found
    read = {path.name for path in files.values()}
    unread = tuple(sorted(entry.name for entry in folder.iterdir() if entry.name not in read))
    return SplitFiles(split, folder, files, unread)


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return "no such folder"
    names = sorted(entry.name for entry in folder.iterdir())
    shown = ", ".join(names[:MAX_NAMES]) or "an empty folder"
    return shown + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
