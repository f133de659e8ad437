"""Prototypes as arrays: normalised sums of normalised vectors, with or without a post (Sec 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from popularity.core.arrays import BoolArray, Float16Array, Float32Array, Int64Array, normalize_rows
from popularity.core.atomic import reading
from popularity.core.errors import ContractError

Vectors = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class ClassSums:
    """The sums that give a level's prototypes of one modality.

    Args:
        total: (k, d) sum of the normalised vectors of each class's representatives.
        count: (k,) number of representatives.
        parent: (k,) index of each class in the level above, -1 for none.
    """

    total: Vectors
    count: Int64Array
    parent: Int64Array

    @classmethod
    def read(cls, file: Path, level: str, modality: str) -> ClassSums:
        """Returns the sums in `prototypes.safetensors`.

        Args:
            file: prototypes.safetensors.
            level: one of LEVELS.
            modality: one of MODALITIES.
        """
        names = (f"{level}.{modality}_sum", f"{level}.{modality}_count", f"{level}.parent")
        with reading(file), safe_open(file, "numpy") as stored:
            return cls(*(stored.get_tensor(name) for name in names))


def prototypes(levels: Sequence[ClassSums]) -> Vectors:
    """Returns the prototypes (k, d), V or T, of the last of `levels`.

    A class without a representative has its parent's prototype; at the top, the normalised mean of the other
    classes' prototypes; the zero vector where no class has any.

    Args:
        levels: sums of one modality, from the top level down.
    """
    k = len(levels[-1].total)
    nobody = np.full(k, -1, dtype=np.int64)
    return leave_one_out(levels, np.arange(k), np.zeros_like(levels[-1].total), [nobody] * len(levels))


def leave_one_out(
    levels: Sequence[ClassSums], classes: Int64Array, own: Vectors, members: Sequence[Int64Array]
) -> Vectors:
    """Returns the exact prototypes (n, d) of the classes as if each post had never been a representative.

    The vector of a representative is subtracted from its class's sum. If nothing is left, or the class never had a
    representative, it is the parent's prototype, again without the post; at the top (or for a class without a
    parent) the normalised mean of the level's other prototypes without it; the zero vector if there is none.

    Args:
        levels: sums of one modality, from the top level down to that of `classes`.
        classes: (n,) index of a class at the last level for each post, usually its own.
        own: (n, d) normalised vectors of the posts; any values for posts that represent no class.
        members: of each of `levels`, (n,) index of the class that the post represents there, or -1.

    Raises:
        ContractError: a class that does not exist; unseen classes (-1) have no prototype.
    """
    if len(classes) and not 0 <= classes.min() <= classes.max() < len(levels[-1].total):
        raise ContractError(
            f"leave_one_out: class {classes.min()} or {classes.max()}, expected 0 to {len(levels[-1].total) - 1}"
        )
    result = np.zeros(own.shape, dtype=np.result_type(own, levels[-1].total))
    posts, current = np.arange(len(classes)), np.asarray(classes)
    for sums, member in zip(reversed(levels), reversed(members), strict=True):
        inside = member[posts] == current
        enough = sums.count[current] > inside
        found = posts[enough]
        rest = sums.total[current[enough]] - np.where(inside[enough, None], own[found], 0)
        result[found] = normalize_rows(rest)
        posts, current = posts[~enough], current[~enough]
        top = np.full(len(posts), sums is levels[0]) | (sums.parent[current] < 0)
        for post, index in zip(posts[top], current[top], strict=True):
            result[post] = _mean_of_others(sums, index, own[post], member[post])
        posts, current = posts[~top], sums.parent[current[~top]]
    return result


@dataclass(frozen=True)
class ClassPrototypes:
    """The prototypes of classes for n posts: without the post itself, or without its fold.

    Args:
        levels: from the top down.
        sums: by level and modality.
        classes: by level, (n,) index of each post's class, -1 for none.
        members: by level and modality, (n,) index of the class that each post represents, or -1.
        member_rows: by modality, (n,) row of each post among the m posts that represent any class, or -1.
        member_vectors: by modality, (m, d) what was summed up, if it differs from the cached vectors; else empty.
    """

    levels: Sequence[str]
    sums: Mapping[tuple[str, str], ClassSums]
    classes: Mapping[str, Int64Array]
    members: Mapping[tuple[str, str], Int64Array]
    member_rows: Mapping[str, Int64Array] = field(default_factory=dict)
    member_vectors: Mapping[str, Float16Array] = field(default_factory=dict)

    def of_vectors(self, vectors: Mapping[str, Float16Array]) -> ClassPrototypes:
        """Returns the prototypes of the same representatives with other vectors.

        Args:
            vectors: by modality, (m, d), normalised.
        """
        found = replace(self, member_vectors=vectors)
        sums = {}
        for (level, kind), known in self.sums.items():
            rows = np.flatnonzero(self.members[level, kind] >= 0)
            total = np.zeros_like(known.total)
            np.add.at(total, self.members[level, kind][rows], found.member(kind, rows))
            sums[level, kind] = ClassSums(total, known.count, known.parent)
        return replace(found, sums=sums)

    def member(self, kind: str, rows: Int64Array) -> Float32Array:
        """Returns the vectors (b, d) that were summed up for the posts `rows` (b,); zeros for posts that were not."""
        row, stored = self.member_rows[kind][rows], self.member_vectors[kind]
        vectors = np.zeros((len(rows), stored.shape[1]), np.float32)
        vectors[row >= 0] = stored[row[row >= 0]]
        return vectors

    def own(self, level: str, kind: str, rows: Int64Array, vectors: Float32Array) -> Float32Array:
        """Returns the prototypes (b, d) of the posts' own classes without the posts; zeros for a post without a class.

        Args:
            level: of the classes.
            kind: modality.
            rows: (b,) positions of the posts.
            vectors: (b, d), normalised; not read if there are member_vectors.
        """
        if self.member_vectors:
            vectors = self.member(kind, rows)
        classes = self.classes[level][rows]
        known = classes >= 0
        result = np.zeros(vectors.shape, np.float32)
        above = [(name, kind) for name in self.levels[: self.levels.index(level) + 1]]
        members = [self.members[at][rows[known]] for at in above]
        result[known] = leave_one_out([self.sums[at] for at in above], classes[known], vectors[known], members)
        return result

    def without_folds(
        self, level: str, kind: str, fold: Int64Array, folds: int, read: Callable[[Int64Array], Float32Array]
    ) -> Float32Array:
        """Returns the prototypes (folds, k, d) of all classes, in each fold as if its posts represented no class.

        Args:
            level: of the classes.
            kind: modality.
            fold: (n,) of each post, from 0.
            folds: how many.
            read: rows -> the posts' normalised vectors (b, d).
        """
        above = [(name, kind) for name in self.levels[: self.levels.index(level) + 1]]
        return np.stack(
            [prototypes([self._sums_without(at, fold == index, read) for at in above]) for index in range(folds)]
        )

    def _sums_without(
        self, at: tuple[str, str], left_out: BoolArray, read: Callable[[Int64Array], Float32Array]
    ) -> ClassSums:
        sums, rows = self.sums[at], np.flatnonzero(left_out & (self.members[at] >= 0))
        total, classes = sums.total.copy(), self.members[at][rows]
        np.subtract.at(total, classes, read(rows))
        return ClassSums(total, sums.count - np.bincount(classes, minlength=len(total)), sums.parent)


def _mean_of_others(sums: ClassSums, index: int, own: Vectors, member: int) -> Vectors:
    """(d,) normalised mean of the prototypes except that of class `index`, without a representative of `member`."""
    total, count = sums.total.copy(), sums.count.copy()
    if member >= 0:
        total[member] -= own
        count[member] -= 1
    count[index] = 0
    return normalize_rows(normalize_rows(total[count > 0]).sum(axis=0))
