"""Classes for posts that have none of their own: clusters of their text vectors, or else of their image vectors.

The clusters are made of training posts without a label; every post gets the nearest one. A cluster is named by words
that are commoner in its training posts than elsewhere, so that its prompt says something.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import polars as pl

from popularity.core.arrays import BoolArray, Float32Array, Int64Array, normalize_rows
from popularity.core.contracts import (
    CLUSTERS,
    LEVELS,
    class_key,
    empty_table,
    is_unclassified,
)
from popularity.core.errors import DataError
from popularity.core.vectors import Block

logger = logging.getLogger(__name__)

POSTS_PER_CLUSTER = 50
MIN_CLUSTERS, MAX_CLUSTERS = 4, 64
MAX_FITTED = 20_000  # training posts that the centres are fitted on, drawn at random
ROUNDS = 25
CHUNK = 8192  # posts at a time
N_WORDS = 3  # in the name of a cluster
MIN_LETTERS = 3  # of such a word


def clusters_of(posts: pl.DataFrame, image: Block, text: Block, seed: int) -> pl.DataFrame:
    """The classes (contract CLUSTERS) of posts that have none of their own; no rows where posts have classes.

    The text vectors are taken where most training posts have a text, else the image vectors; a post without the vector
    has the empty class.

    Args:
        posts: contract POSTS, sorted by pid.
        image: block `pooled` of the images.
        text: block `post`.
        seed: of the first centres.

    Raises:
        DataError: fewer than two training posts with a vector.
    """
    if not is_unclassified(posts):
        return empty_table(CLUSTERS)
    train = (posts["split"] == "train").to_numpy()
    written = ((posts["title"].str.strip_chars() != "") | (posts["tags"].str.strip_chars() != "")).to_numpy()
    block = text if written[train].mean() > 1 / 2 else image
    rows = block.rows(posts["pid"].to_list())
    if block is text:
        rows = np.where(written, rows, -1)
    fitted = rows[train & (rows >= 0)]
    k = int(np.clip(len(fitted) // POSTS_PER_CLUSTER, MIN_CLUSTERS, MAX_CLUSTERS))
    if len(fitted) < k:
        raise DataError(
            f"{len(fitted)} training posts have a text or a picture",
            expected=f"at least {k}: posts without classes are divided into clusters",
        )
    found = np.full(len(rows), -1, np.int64)
    found[rows >= 0] = _nearest(block, rows[rows >= 0], _centres(block, fitted, k, seed))
    names = _names(posts, found, train)
    logger.info("posts have no classes: %d clusters of %s vectors", len(names), "text" if block is text else "image")
    paths = [("posts", name, name) for name in names] + [("posts", "", "")]  # the last for index -1
    keys = {level: [class_key(*path[: depth + 1]) for path in paths] for depth, level in enumerate(LEVELS)}
    return pl.DataFrame(
        {"pid": posts["pid"], **{level: pl.Series(own).gather(found % len(paths)) for level, own in keys.items()}}
    )


def _vectors(block: Block, rows: Int64Array) -> Float32Array:
    return normalize_rows(np.asarray(block.values[rows], dtype=np.float32))


def _centres(block: Block, rows: Int64Array, k: int, seed: int) -> Float32Array:
    """(k, d) normalised centres of spherical k-means over the vectors at `rows`, from k-means++ on."""
    draw = np.random.default_rng(seed)
    if len(rows) > MAX_FITTED:
        rows = np.sort(draw.choice(rows, MAX_FITTED, replace=False))
    vectors = _vectors(block, rows)
    centres = np.zeros((k, vectors.shape[1]), np.float32)
    distance = np.full(len(vectors), np.inf)
    for index in range(k):
        weights = distance if index and distance.sum() > 0 else np.ones(len(vectors))
        centres[index] = vectors[draw.choice(len(vectors), p=weights / weights.sum())]
        distance = np.minimum(distance, np.maximum(1.0 - (vectors @ centres[index]).astype(np.float64), 0.0))
    labels = np.full(len(vectors), -1)
    for _ in range(ROUNDS):
        before, labels = labels, (vectors @ centres.T).argmax(axis=1)
        if (before == labels).all():
            break
        for index in range(k):
            if (labels == index).any():
                centres[index] = normalize_rows(vectors[labels == index].sum(axis=0, keepdims=True))[0]
    return centres


def _nearest(block: Block, rows: Int64Array, centres: Float32Array) -> Int64Array:
    parts = [
        (_vectors(block, rows[start : start + CHUNK]) @ centres.T).argmax(axis=1)
        for start in range(0, len(rows), CHUNK)
    ]
    return np.concatenate(parts).astype(np.int64)


def _names(posts: pl.DataFrame, found: Int64Array, train: BoolArray) -> Sequence[str]:
    """A name for each cluster: its number and its words."""
    words = (
        posts.select(pl.concat_str("title", "tags", separator=" ").str.to_lowercase().alias("text"))
        .with_columns(cluster=pl.Series(found))
        .filter(pl.Series(train & (found >= 0)))
        .with_columns(word=pl.col("text").str.extract_all(rf"\p{{L}}{{{MIN_LETTERS},}}").list.unique())
    )
    sizes = words.group_by("cluster").len("posts")
    counts = words.explode("word").drop_nulls("word").group_by("cluster", "word").len("within")
    everywhere = counts.group_by("word").agg(pl.col("within").sum().alias("all"))
    ranked = (
        counts.join(sizes, on="cluster", validate="m:1")
        .join(everywhere, on="word", validate="m:1")
        .with_columns(score=pl.col("within") / pl.col("posts") - pl.col("all") / len(words))
        .filter(pl.col("score") > 0)
        .sort("cluster", "score", "word", descending=[False, True, False])
        .group_by("cluster", maintain_order=True)
        .agg(pl.col("word").head(N_WORDS))
    )
    own = dict(ranked.iter_rows())
    return [" ".join([f"{index:02d}", *own.get(index, [])]) for index in range(int(found.max()) + 1)]
