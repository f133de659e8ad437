"""The classes of the three taxonomy levels, from the training posts, and the class of every post."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from popularity.core.arrays import Int64Array
from popularity.core.contracts import (
    CLASSES,
    CLUSTERS,
    LEVELS,
    UNCLASSIFIED,
    check_table,
    class_key,
    class_names,
    read_table,
)
from popularity.core.errors import DataError
from popularity.prototypes.names import readable_names

ClassNameFormat = Literal["path", "name"]
CLUSTERS_FILE = "clusters.parquet"


def choose_class_name_format(posts: pl.DataFrame) -> ClassNameFormat:
    """Returns `name` if the taxonomy levels are crossed rather than nested, else `path` (our rule).

    Crossed: more than half of the second-level names of the training posts occur under several first-level ones.
    """
    paths = {class_names(key) for key in posts.filter(split="train")["subcategory"].unique()}
    parents = Counter(path[-1] for path in paths if path[-1])
    return "name" if 2 * sum(count > 1 for count in parents.values()) > len(parents) else "path"


def level_key(published: str, level: str, class_name_format: ClassNameFormat) -> str | None:
    """Returns the key of a class from a key of POSTS; None if its own name, or its subcategory's, is empty.

    Args:
        published: the whole path down to `level`.
        level: one of LEVELS.
        class_name_format: `path` keeps the path; `name` starts it at the second level, so that "A/Beach" and "B/Beach"
            are one class.
    """
    names, depth = class_names(published), LEVELS.index(level)
    own = names[min(depth, 1) : depth + 1]
    if not own or not all(own):
        return None
    return class_key(*own) if class_name_format == "name" else published


def level_keys(posts: pl.DataFrame, class_name_format: ClassNameFormat) -> pl.DataFrame:
    """Returns the key of each post's class at each of LEVELS, null for an empty class; rows as in `posts`.

    Args:
        posts: contract POSTS.
        class_name_format: see `level_key`.
    """
    columns = []
    for level in LEVELS:
        published = posts[level].unique().to_list()
        keys = [level_key(key, level, class_name_format) for key in published]
        columns.append(posts[level].replace_strict(published, keys, return_dtype=pl.String))
    return pl.DataFrame(columns)


def make_classes(posts: pl.DataFrame, class_name_format: ClassNameFormat) -> pl.DataFrame:
    """Returns the classes (contract CLASSES) of the training posts.

    A class's parent is the class of the level above that most of its posts have (ties: key order); null if that name
    is empty in all of them.

    Args:
        posts: contract POSTS.
        class_name_format: see `level_key`.

    Raises:
        DataError: fewer than two second-level classes.
    """
    train = posts.filter(split="train")
    keys = level_keys(train, class_name_format)
    tables: list[pl.DataFrame] = []
    for depth, level in enumerate(LEVELS):
        found = keys[level].drop_nulls().value_counts(name="posts").sort(level)
        parents: list[int | None] = [None] * found.height
        parent_names: list[str | None] = [None] * found.height
        if depth:
            above = tables[-1]
            index = dict(above.select("key", "index").iter_rows())
            name = dict(above.select("key", "name").iter_rows())
            parent = _most_frequent_parents(keys, level, LEVELS[depth - 1])
            parents = [index.get(parent.get(key)) for key in found[level]]
            parent_names = [name.get(parent.get(key)) for key in found[level]]
        names = readable_names([class_names(key)[-1] for key in found[level]], level, parent_names)
        columns = {
            "level": [level] * found.height,
            "index": range(found.height),
            "key": found[level],
            "name": names,
            "parent": parents,
            "posts": found["posts"],
        }
        tables.append(pl.DataFrame(columns, schema={name: rule.dtype for name, rule in CLASSES.columns.items()}))
    if tables[LEVELS.index("subcategory")].height < 2:
        raise DataError(
            f"the training posts have {tables[LEVELS.index('subcategory')].height} second-level classes",
            expected="at least 2 different names in the field Subcategory: the network learns to tell them apart",
            fix="see 'classes' and 'empty_class_names' in reports/ingest.json",
        )
    classes = pl.concat(tables).sort(CLASSES.key)
    check_table(classes, CLASSES)
    return classes


def _most_frequent_parents(keys: pl.DataFrame, level: str, above: str) -> dict[str, str]:
    """For each key of `level` the most frequent key of the level above, the first in key order of equals."""
    counts = keys.drop_nulls([level, above]).group_by(level, above).len()
    most_frequent = counts.sort("len", above, descending=[True, False]).unique(level, keep="first", maintain_order=True)
    return dict(most_frequent.select(level, above).iter_rows())


def with_clusters(posts: pl.DataFrame, folder: Path) -> pl.DataFrame:
    """`posts` (contract POSTS) with the classes that `clusters_of` gave them, if it gave any.

    Args:
        posts: that may have classes of their own.
        folder: models/prototypes.
    """
    return classified(posts, read_table(folder / CLUSTERS_FILE, CLUSTERS))


def classified(posts: pl.DataFrame, clusters: pl.DataFrame) -> pl.DataFrame:
    """`posts` with the classes of `clusters` (contract CLUSTERS) in place of UNCLASSIFIED."""
    if clusters.is_empty():
        return posts
    own = pl.col("concept") == UNCLASSIFIED["concept"]
    joined = posts.select("pid").join(clusters, on="pid", how="left", validate="1:1", maintain_order="left")
    known = joined["concept"].is_not_null()
    return posts.with_columns(
        pl.when(own & known).then(joined[level]).otherwise(pl.col(level)).alias(level) for level in LEVELS
    )


@dataclass(frozen=True)
class ClassIndex:
    """The class of each post at each taxonomy level.

    Each level is found by itself: a post of an unseen concept still has its subcategory and category.

    Args:
        rows: by level, (n,) index in CLASSES, -1 for an empty class and for one without a training post.
        counts: by level, the number of classes.
    """

    rows: Mapping[str, Int64Array]
    counts: Mapping[str, int]

    @classmethod
    def from_posts(cls, posts: pl.DataFrame, classes: pl.DataFrame, class_name_format: ClassNameFormat) -> ClassIndex:
        """Returns the classes of `posts`, in their order.

        Args:
            posts: contract POSTS.
            classes: contract CLASSES.
            class_name_format: that `classes` were made with, see `level_key`.
        """
        keys = level_keys(posts, class_name_format)
        rows: dict[str, Int64Array] = {}
        counts: dict[str, int] = {}
        for level in LEVELS:
            table = classes.filter(level=level)
            found = keys[level].replace_strict(table["key"], table["index"], default=-1, return_dtype=pl.Int64)
            rows[level] = found.fill_null(-1).to_numpy().astype(np.int64)
            counts[level] = table.height
        return cls(rows, counts)
