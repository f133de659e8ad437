"""Prototypes and leave-one-out on arrays, against prototypes that are computed anew without the post."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from popularity.core.arrays import Float32Array, Int64Array, normalize_rows
from popularity.core.errors import ContractError
from popularity.prototypes import vectors
from popularity.prototypes.vectors import (
    ClassPrototypes,
    ClassSums,
    Vectors,
    leave_one_out,
    prototypes,
)


@dataclass(frozen=True)
class Tree:
    """Posts with a vector, their class at each level from the top, which they represent there, and the parents."""

    vectors: Vectors
    classes: Sequence[Int64Array]
    members: Sequence[Int64Array]
    parents: Sequence[Int64Array]

    def sums(self, without: int = -1) -> list[ClassSums]:
        """As the stage makes them, from all posts but `without`."""
        levels = []
        for member, parent in zip(self.members, self.parents, strict=True):
            total, count = np.zeros((len(parent), self.vectors.shape[1])), np.zeros(len(parent), np.int64)
            for post, index in enumerate(member):
                if index >= 0 and post != without:
                    total[index] += self.vectors[post]
                    count[index] += 1
            levels.append(ClassSums(total.astype(self.vectors.dtype), count, parent))
        return levels


def random_tree(seed: int, posts: int = 60, crossed: bool = False) -> Tree:
    """Three levels with single-member classes, classes without members, and members of one level but not of another.

    Crossed: a class's parent is that of most of its posts, so some posts have another category than their class has.
    """
    rng = np.random.default_rng(seed)
    middle = np.sort(rng.choice(8, posts, p=[0.3, 0.3, 0.2, 0.1, 0.06, 0.02, 0.01, 0.01]))
    middle[-3:] = (5, 6, 7)
    parents = [np.full(4, -1), np.array([0, 0, 0, 1, 1, 2, 3, -1]), np.arange(16) // 2]
    top = parents[1][middle]
    if crossed:
        top = np.where(rng.random(posts) < 0.3, rng.integers(4, size=posts), top)
    bottom = 2 * middle + rng.integers(2, size=posts)
    classes = [top, middle, bottom]
    shares = (0.5, 0.8, 0.9)
    members = [np.where(rng.random(posts) < part, of, -1) for of, part in zip(classes, shares, strict=True)]
    members[1][-3:] = middle[-3:]
    return Tree(normalize_rows(rng.normal(size=(posts, 5))), classes, members, parents)


def brute_force(tree: Tree, depth: int, post: int) -> Vectors:
    """The prototype of the post's class in a world where it is no representative, straight from the definition."""
    index, level = int(tree.classes[depth][post]), depth
    others = np.arange(len(tree.vectors)) != post
    while True:
        mine = tree.vectors[(tree.members[level] == index) & others]
        if len(mine):
            return normalize_rows(mine.sum(axis=0))
        parent = int(tree.parents[level][index])
        if level == 0 or parent < 0:
            break
        index, level = parent, level - 1
    rest = [
        normalize_rows(tree.vectors[(tree.members[level] == other) & others].sum(axis=0))
        for other in range(len(tree.parents[level]))
        if other != index and ((tree.members[level] == other) & others).any()
    ]
    return normalize_rows(np.sum(rest, axis=0)) if rest else np.zeros(tree.vectors.shape[1])


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_leave_one_out_is_the_prototype_computed_without_the_post(seed: int, depth: int, crossed: bool) -> None:
    tree = random_tree(seed, crossed=crossed)
    levels, classes = tree.sums()[: depth + 1], tree.classes[depth]
    known = np.flatnonzero(classes >= 0)
    members = [member[known] for member in tree.members[: depth + 1]]
    left = leave_one_out(levels, classes[known], tree.vectors[known], members)
    found = dict(zip(known.tolist(), left, strict=True))
    assert len(found) > 50
    for post, prototype in found.items():
        np.testing.assert_allclose(prototype, brute_force(tree, depth, post), atol=1e-6)
        # And the same as prototypes() of sums made without it.
        whole = prototypes(tree.sums(without=post)[: depth + 1])
        np.testing.assert_allclose(prototype, whole[classes[post]], atol=1e-6)


def test_float32_sums_are_exact_enough() -> None:
    """256 representatives of 512 numbers, as the stage stores them."""
    rng = np.random.default_rng(0)
    vectors = normalize_rows((rng.normal(size=(256, 512)) + 0.3).astype(np.float32))
    members = np.zeros(256, np.int64)
    tree = Tree(vectors, [members], [members], [np.array([-1])])
    found = leave_one_out(tree.sums(), members, vectors, [members])
    wide = vectors.astype(np.float64)
    for post in (0, 100, 255):
        np.testing.assert_allclose(found[post], normalize_rows(np.delete(wide, post, axis=0).sum(axis=0)), atol=1e-6)


def chain(members: Sequence[Sequence[int]], classes: Sequence[Sequence[int]]) -> Tree:
    """Categories 0, 1; classes 0, 1 of category 0 and 2 of category 1; posts along the axes of space."""
    parents = [np.full(2, -1), np.array([0, 0, 1])]
    return Tree(np.eye(len(members[0])), [np.array(c) for c in classes], [np.array(m) for m in members], parents)


def test_who_represents_nothing_sees_the_whole_prototype() -> None:
    tree = chain([[0, 0, 0], [0, 0, -1]], [[0, 0, 0], [0, 0, 0]])
    without_vector = np.where(tree.members[1][:, None] >= 0, tree.vectors, np.nan)
    found = leave_one_out(tree.sums(), tree.classes[1], without_vector, tree.members)
    np.testing.assert_allclose(found[2], normalize_rows(np.array([1.0, 1, 0])))
    np.testing.assert_allclose(found[0], [0, 1, 0])


def test_a_lone_representative_falls_back_to_the_parent_without_itself() -> None:
    # Post 0 is all of class 0; category 0 is made of posts 0, 1, 2.
    tree = chain([[0, 0, 0, 1], [0, 1, 1, 2]], [[0, 0, 0, 1], [0, 1, 1, 2]])
    found = leave_one_out(tree.sums(), tree.classes[1], tree.vectors, tree.members)
    np.testing.assert_allclose(found[0], normalize_rows(np.array([0.0, 1, 1, 0])))
    # Post 3 is all of class 2 and of category 1: what is left is category 0.
    np.testing.assert_allclose(found[3], normalize_rows(np.array([1.0, 1, 1, 0])))


def test_a_lone_representative_whose_parent_is_another_category() -> None:
    """The category falls back too, and the post is taken out of the category that it does represent."""
    tree = chain([[1, 1, 1], [0, 2, 2]], [[1, 1, 1], [0, 2, 2]])
    found = leave_one_out(tree.sums(), tree.classes[1], tree.vectors, tree.members)
    np.testing.assert_allclose(found[0], normalize_rows(np.array([0.0, 1, 1])))


def test_nothing_left_is_the_zero_vector() -> None:
    tree = chain([[0], [0]], [[0], [0]])
    found = leave_one_out(tree.sums(), tree.classes[1], tree.vectors, tree.members)
    assert (found == 0).all()


def test_classes_without_representatives_have_their_parents_prototype() -> None:
    tree = chain([[0, 0, -1], [0, 0, -1]], [[0, 0, 1], [0, 0, 2]])
    top, low = prototypes(tree.sums()[:1]), prototypes(tree.sums())
    np.testing.assert_allclose(low[1], top[0])
    np.testing.assert_allclose(low[2], top[0])  # its category has none either: the mean of the others
    np.testing.assert_allclose(top[1], top[0])
    assert (prototypes([ClassSums(np.zeros((2, 3)), np.zeros(2, np.int64), np.full(2, -1))]) == 0).all()


def test_unknown_classes_are_refused() -> None:
    tree = chain([[0, 0], [0, 0]], [[0, 0], [0, 0]])
    for wrong in (-1, 3):
        with pytest.raises(ContractError, match="expected 0 to 2"):
            leave_one_out(tree.sums(), np.array([0, wrong]), tree.vectors, tree.members)
    assert leave_one_out(tree.sums(), np.zeros(0, np.int64), np.zeros((0, 2)), [np.zeros(0, np.int64)] * 2).shape == (
        0,
        2,
    )


def test_the_arrays_need_neither_polars_nor_pydantic() -> None:
    code = (
        "import sys; import popularity.prototypes.vectors, popularity.prototypes.sampling;"
        "print(sorted({'polars', 'pydantic', 'torch'} & set(sys.modules)))"
    )
    sources = str(Path(vectors.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": sources}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


LEVELS = ("top", "middle", "bottom")


def class_prototypes(visual: Tree, text: Tree) -> ClassPrototypes:
    """Of posts with vectors in two modalities, which need not represent a class in both."""
    trees = {"visual": visual, "text": text}
    return ClassPrototypes(
        LEVELS,
        {(level, kind): tree.sums()[depth] for kind, tree in trees.items() for depth, level in enumerate(LEVELS)},
        dict(zip(LEVELS, visual.classes, strict=True)),
        {(level, kind): tree.members[depth] for kind, tree in trees.items() for depth, level in enumerate(LEVELS)},
    )


def two_trees() -> tuple[Tree, Tree]:
    """The second has other representatives of the same classes, and other vectors."""
    tree, rng = random_tree(3), np.random.default_rng(4)
    members = [np.where(rng.random(60) < 0.7, of, -1) for of in tree.classes]
    return tree, replace(tree, vectors=normalize_rows(rng.normal(size=(60, 6))), members=members)


def test_own_prototypes_are_without_the_post() -> None:
    trees = two_trees()
    found = class_prototypes(*trees)
    for kind, tree in zip(("visual", "text"), trees, strict=True):
        for depth, level in enumerate(LEVELS):
            rows = np.array([5, 0, 40, 33])
            own = found.own(level, kind, rows, single(tree, rows))
            expected = [brute_force(tree, depth, int(row)) for row in rows]
            np.testing.assert_allclose(own, expected, atol=1e-5)


def test_prototypes_without_a_fold() -> None:
    """As if none of its posts had ever been a representative; all the others stay."""
    trees = two_trees()
    given, fold = class_prototypes(*trees), np.arange(60) % 3
    for kind, tree in zip(("visual", "text"), trees, strict=True):
        for depth, level in enumerate(LEVELS):
            found = given.without_folds(level, kind, fold, 3, partial(single, tree))
            for number in range(3):
                kept = replace(tree, members=[np.where(fold == number, -1, of) for of in tree.members])
                expected = prototypes(kept.sums()[: depth + 1])
                np.testing.assert_allclose(found[number], expected, atol=1e-5)
                assert np.abs(found[number] - prototypes(tree.sums()[: depth + 1])).max() > 0.01


def single(tree: Tree, rows: Int64Array) -> Float32Array:
    return tree.vectors[rows].astype(np.float32)
