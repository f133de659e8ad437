"""The summary of a data set: the files that were read, counts, and the values that could not be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from popularity.core.arrays import rounded
from popularity.core.contracts import LEVELS, POSTS
from popularity.core.outliers import clipped_labels

DIGITS = 6


@dataclass(frozen=True)
class Source:
    """Where the posts of a split come from: the folder of its files, and the names of those that were not read."""

    split: str
    folder: Path
    unread: tuple[str, ...]


@dataclass
class Notes:
    """Entries of the summary that the tables do not hold; filled while the files are read."""

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    empty_class_names: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LEVELS, 0))
    users_with_differing_vectors: int = 0
    places_at_zero: dict[str, int] = field(default_factory=dict)  # posts whose place is (0, 0), read as none
    without_user_file: list[str] = field(default_factory=list)  # splits


def summarise(
    root: Path, splits: Sequence[Source], posts: pl.DataFrame, quarantine: pl.DataFrame, notes: Notes
) -> dict[str, Any]:
    """Counts, time spans and shares of a data set, as values for JSON.

    For each split: posts, users, classes per level, time span, share of missing values (null or empty) per column;
    label statistics of the training split, `clipped` among them: how many labels lie so far from all others that fits
    read them clipped; users and classes of the test split that training lacks; quarantined values by reason.
    """
    frames = {source.split: posts.filter(split=source.split) for source in splits}
    labels = frames["train"]["label"]
    summary: dict[str, Any] = {
        "root": str(root),
        "parts": {split: _counts_of(frame) for split, frame in frames.items()},
        "posts": len(posts),
        "users": posts["uid"].n_unique(),
        "users_with_differing_vectors": notes.users_with_differing_vectors,
        "empty_class_names": notes.empty_class_names,
        "places_at_zero": notes.places_at_zero,
        "without_user_file": notes.without_user_file,
        "label": {
            "mean": rounded(labels.mean(), DIGITS),
            "sd": rounded(labels.std(), DIGITS),
            "min": rounded(labels.min(), DIGITS),
            "max": rounded(labels.max(), DIGITS),
            "clipped": int((clipped_labels(labels.to_numpy()) != labels.to_numpy()).sum()),
        },
        "quarantine": {
            "values": len(quarantine),
            "by_reason": _counts(quarantine, "field", "reason", "action"),
        },
        "files": {_below(Path(name), root): entry for name, entry in notes.files.items()},
        "files_not_read": {source.folder.name: list(source.unread) for source in splits},
    }
    if "test" in frames:
        summary["test_part"] = "present"
        summary["test_posts_before_training_ends"] = _share_before(frames["train"], frames["test"])
        summary["unseen_in_training"] = _unseen(frames["train"], frames["test"])
    else:
        summary["test_part"] = "absent: no submission can be made"
    return summary


def _below(file: Path, root: Path) -> str:
    """The path of a file below `root`; of another one its name: reports show no path of the machine."""
    return str(file.relative_to(root)) if file.is_relative_to(root) else file.name


def _counts_of(frame: pl.DataFrame) -> dict[str, Any]:
    texts = [name for name, column in POSTS.columns.items() if column.dtype == pl.String]
    shares = frame.select(
        (pl.col(name).is_null() | (pl.col(name) == "") if name in texts else pl.col(name).is_null()).mean()
        for name in frame.columns
    ).row(0, named=True)
    return {
        "posts": len(frame),
        "users": frame["uid"].n_unique(),
        "classes": {level: frame[level].n_unique() for level in LEVELS},
        "from": frame["posted_at"].min().isoformat(),  # type: ignore[union-attr]
        "to": frame["posted_at"].max().isoformat(),  # type: ignore[union-attr]
        "missing_share": {name: rounded(share, DIGITS) for name, share in shares.items()},
    }


def _share_before(train: pl.DataFrame, test: pl.DataFrame) -> float:
    """Share of the test posts that are older than the last training post; 0 for a split by time."""
    return float(rounded((test["posted_at"] < train["posted_at"].max()).mean(), DIGITS) or 0.0)


def _unseen(train: pl.DataFrame, test: pl.DataFrame) -> dict[str, Any]:
    """Users and classes of the test split that training lacks: their share of posts and their numbers."""
    known = test["uid"].is_in(train["uid"].unique().implode())
    return {
        "share_of_test_posts_by_unseen_users": rounded((~known).mean(), DIGITS),
        "users": test["uid"].filter(~known).n_unique(),
        "classes": {level: len(set(test[level].unique()) - set(train[level].unique())) for level in LEVELS},
    }


def _counts(frame: pl.DataFrame, *names: str) -> list[dict[str, Any]]:
    return frame.group_by(names).len("values").sort(names).to_dicts()
