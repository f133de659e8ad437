"""Clusters in place of classes: found without labels, the same again, and the nearest for every post."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from popularity.core.contracts import CLUSTERS, check_table, class_names, unclassified, write_table
from popularity.core.errors import DataError
from popularity.core.vectors import Block
from popularity.prototypes.classes import CLUSTERS_FILE, classified, with_clusters
from popularity.prototypes.clusters import clusters_of
from tests.small_tables import small_posts

TOPICS = ("sea beach", "dog park", "bread oven", "snow ski")


def topical_posts() -> pl.DataFrame:
    """Posts without classes, each with the words of one topic; `title` names the topic."""
    posts = unclassified(small_posts(train=200, test=40))
    return posts.with_columns(title=pl.Series([f"{TOPICS[row % 4]} photo" for row in range(len(posts))]))


def block(posts: pl.DataFrame, topics: np.ndarray[Any, Any], noise: float = 0.05) -> Block:
    rng = np.random.default_rng(0)
    values = np.eye(8)[topics] + rng.normal(0, noise, (len(posts), 8))
    return Block(values.astype(np.float16), posts["pid"].to_list(), {})


def topics_of(posts: pl.DataFrame) -> np.ndarray[Any, Any]:
    return np.array([TOPICS.index(title.removesuffix(" photo")) for title in posts["title"]])


def test_topics_are_found_and_named_by_their_words() -> None:
    posts = topical_posts()
    text, image = block(posts, topics_of(posts)), block(posts, np.zeros(len(posts), int))
    clusters = clusters_of(posts, image, text, seed=0)
    check_table(clusters, CLUSTERS)
    assert clusters["subcategory"].n_unique() == 4
    joined = clusters.join(posts.select("pid", "title"), on="pid")
    assert joined.group_by("subcategory").agg(pl.col("title").n_unique())["title"].to_list() == [1] * 4
    for key, title in joined.select("subcategory", "title").unique().iter_rows():
        assert set(title.split()[:2]) <= set(class_names(key)[-1].split())
    assert clusters_of(posts, image, text, seed=0).equals(clusters)
    assert clusters_of(posts.with_columns(label=pl.lit(1.0)), image, text, seed=0).equals(clusters)


def test_without_texts_the_pictures_are_taken() -> None:
    posts = topical_posts()
    topics = topics_of(posts)
    posts = posts.with_columns(title=pl.lit(""))
    seen = posts["pid"].to_list()[:-1]
    whole = block(posts, topics)
    image = Block(whole.values[:-1], seen, {})
    clusters = clusters_of(posts, image, block(posts, np.zeros(len(posts), int)), seed=0)
    of_topic = {(topic, key) for topic, key in zip(topics[:-1], clusters["subcategory"], strict=False)}
    assert len(of_topic) == 4
    assert class_names(clusters["subcategory"][-1])[-1] == ""  # no picture, no class


@pytest.mark.parametrize(("train", "expected"), [(60, 4), (600, 12), (3_400, 64)])
def test_the_number_of_clusters(train: int, expected: int) -> None:
    posts = unclassified(small_posts(train=train, test=0)).with_columns(title=pl.lit("a"))
    rng = np.random.default_rng(0)
    text = Block(rng.normal(size=(train, 8)).astype(np.float16), posts["pid"].to_list(), {})
    assert clusters_of(posts, text, text, seed=0)["subcategory"].n_unique() == expected
    few = posts.head(3)
    with pytest.raises(DataError, match="3 training posts have a text"):
        clusters_of(few, text, text, seed=0)


def test_posts_with_classes_keep_them(tmp_path: Path) -> None:
    posts = small_posts()
    text = block(posts, np.zeros(len(posts), int))
    clusters = clusters_of(posts, text, text, seed=0)
    assert clusters.is_empty()
    write_table(clusters, tmp_path / CLUSTERS_FILE, CLUSTERS)
    assert with_clusters(posts, tmp_path).equals(posts)


def test_a_later_post_keeps_the_class_that_it_was_given() -> None:
    posts = topical_posts()
    text = block(posts, topics_of(posts))
    clusters = clusters_of(posts, text, text, seed=0)
    given = clusters["subcategory"][0]
    later = posts.head(2).with_columns(pid=pl.Series(["new-0", "new-1"]), subcategory=pl.lit(given))
    later = later.with_columns(concept=pl.lit(f"{given}/"))
    assert classified(later, clusters)["subcategory"].to_list() == [given, given]
    assert classified(posts, clusters)["concept"].equals(clusters["concept"])
