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
# What may follow an accepted name without its suffix; what the file holds shows in its content.
SUFFIXES: Mapping[str, tuple[str, ...]] = {
    ".json": (".json", ".json.gz", ".jsonl", ".jsonl.gz"),
    ".txt": (".txt", ".txt.gz"),
}
OPTIONAL = ("user",)  # a split may lack it; the summary says so

MAX_NAMES = 20


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split (train or test) of the data set.

    Args:
        split: train or test.
        folder: the split's metadata folder.
        files: role (keys of FILE_NAMES, and `label` in the training split) to path, without roles of OPTIONAL that
            have no file.
        unread: names of the other entries of the folder.
    """

    split: str
    folder: Path
    files: Mapping[str, Path]
    unread: tuple[str, ...]


def metadata_folder(root: Path, split: str) -> Path:
    return root / f"{split}_allmetadata_json"


def find_splits(root: Path, *, without_user_file: bool = False) -> list[SplitFiles]:
    """The training split, and the test split if its folder exists.

    Args:
        root: of the data set.
        without_user_file: True if a split may lack its user file.

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
    optional = OPTIONAL if without_user_file else ()
    return [_find_split(root, split, optional) for split in SPLITS if metadata_folder(root, split).is_dir()]


def _find_split(root: Path, split: str, optional: tuple[str, ...]) -> SplitFiles:
    folder = metadata_folder(root, split)
    accepted = {role: tuple(name.format(split=split) for name in names) for role, names in FILE_NAMES.items()}
    if split == "train":
        accepted["label"] = (LABEL_NAME,)
    found_names = _names(folder)
    files = {}
    for role, names in accepted.items():
        found = next((folder / name for name in _spellings(names) if (folder / name).is_file()), None)
        if found is not None:
            files[role] = found
        elif role not in optional:
            raise _missing(folder, split, names, accepted)
    read = {path.name for path in files.values()}
    return SplitFiles(split, folder, files, tuple(name for name in found_names if name not in read))


def named_files(folder: Path, split: str) -> list[Path]:
    """The JSON files of a split that are there, the category file first."""
    names = [name.format(split=split) for names in FILE_NAMES.values() for name in names if name.endswith(".json")]
    return [folder / name for name in _spellings(tuple(names)) if (folder / name).is_file()]


def _spellings(names: tuple[str, ...]) -> list[str]:
    """The accepted names of a file, each with every suffix that it may have."""
    return [Path(name).stem + suffix for name in names for suffix in SUFFIXES[Path(name).suffix]]


def _missing(folder: Path, split: str, names: tuple[str, ...], accepted: Mapping[str, tuple[str, ...]]) -> DataError:
    expected = f"the files {', '.join(' or '.join(each) for each in accepted.values())}"
    for path in (folder / name for name in _spellings(names)):
        if path.is_symlink() and not path.exists():
            return DataError(
                f"is a link to nothing: {path.readlink()}", file=path, expected="a file", fix="mend the link"
            )
        if path.is_dir():
            return DataError("is a folder", file=path, expected="a file", fix=f"look for {path.name} in it")
    hint = "" if split == "train" else f"; a data set without a test split has no folder {folder.name}"
    if names[0] == FILE_NAMES["user"][0].format(split=split):
        hint += "; without one, set dataset.without_user_file: true in params.yaml"
    return DataError(
        f"the file {' or '.join(names)} is missing: found {_listing(folder)}",
        file=folder,
        expected=expected,
        fix=f"put the missing file there{hint}",
    )


def _names(folder: Path) -> list[str]:
    """The names in a folder, without what systems leave behind (`._name`, `.DS_Store`)."""
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return "no such folder"
    names = _names(folder)
    shown = ", ".join(names[:MAX_NAMES]) or "an empty folder"
    return shown + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
