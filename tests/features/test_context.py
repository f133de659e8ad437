"""Context features against slow references, and independence of labels and row order."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from popularity.core.contracts import check_table
from popularity.features import TextReducer
from popularity.features.context import context_features, count_features
from popularity.features.text_components import TEXT_COMPONENTS
from tests.random_posts import random_posts


def days(left: Any, right: Any) -> float:
    return float((left - right).total_seconds()) / 86_400


def slow(post: dict[str, Any], posts: list[dict[str, Any]]) -> dict[str, Any]:
    mine = sorted((p for p in posts if p["uid"] == post["uid"]), key=lambda p: (p["posted_at"], p["pid"]))
    place = [p["pid"] for p in mine].index(post["pid"])
    times = [p["posted_at"] for p in mine]
    before = mine[place - 1] if place else None
    frequency = Counter(tag for p in posts for tag in set(p["tags"].lower().split()))
    tags = [math.log(frequency[tag]) for tag in set(post["tags"].lower().split())]
    today = [p for p in posts if p["posted_at"].date() == post["posted_at"].date()]
    change = None
    if before and before["photo_count"] is not None and post["photo_count"] is not None:
        change = post["photo_count"] - before["photo_count"]
    return {
        "user_posts": len(mine),
        "user_posts_before": place,
        "user_gap_previous": days(post["posted_at"], before["posted_at"]) if before else None,
        "user_gap_next": days(times[place + 1], post["posted_at"]) if place + 1 < len(mine) else None,
        "user_gap_mean": days(times[-1], times[0]) / (len(mine) - 1) if len(mine) > 1 else None,
        "user_posts_same_day": sum(time.date() == post["posted_at"].date() for time in times),
        "user_subcategories": len({p["subcategory"] for p in mine}),
        "user_subcategory_share": sum(p["subcategory"] == post["subcategory"] for p in mine) / len(mine),
        "user_photo_count_change": change,
        "user_mean_title_length": sum(len(p["title"]) for p in mine) / len(mine),
        "user_mean_tags_length": sum(len(p["tags"]) for p in mine) / len(mine),
        **{
            f"{level}_posts": sum(p[level] == post[level] for p in posts)
            for level in ("category", "subcategory", "concept")
        },
        "day_posts": len(today),
        "day_subcategory_share": sum(p["subcategory"] == post["subcategory"] for p in today) / len(today),
        "tag_frequency_mean": sum(tags) / len(tags) if tags else None,
        "tag_frequency_min": min(tags, default=None),
        "tag_frequency_max": max(tags, default=None),
        "title_posts": sum(p["title"] == post["title"] for p in posts),
        "text_posts": sum((p["title"], p["tags"]) == (post["title"], post["tags"]) for p in posts),
    }


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equal_to_the_slow_reference(seed: int) -> None:
    posts = random_posts(seed)
    table = count_features(posts)
    assert table["pid"].to_list() == posts["pid"].to_list()
    listed = posts.to_dicts()
    for post, found in zip(listed, table.to_dicts(), strict=True):
        expected = slow(post, listed)
        assert {name for name in found if "." not in name} == {"pid", *expected}  # others: test_signals
        for name, value in expected.items():
            if value is None:
                assert found[name] is None, name
            else:
                assert math.isclose(found[name], value, rel_tol=1e-9, abs_tol=1e-12), (name, found[name], value)


def test_labels_and_row_order_change_nothing() -> None:
    posts = random_posts(3)
    other = posts.with_columns(label=pl.lit(0.0), source_index=pl.lit(0, pl.Int64)).sample(
        fraction=1.0, shuffle=True, seed=1
    )
    found, again = (context_features(each, TextReducer.fit(each, components=4, seed=0)) for each in (posts, other))
    assert found.equals(again)


def test_text_components_place_equal_texts_together() -> None:
    posts = random_posts(4)
    tags = pl.when(pl.int_range(pl.len()) % 3 == 0).then(pl.lit("sun2 sun2")).otherwise(pl.lit("dog"))
    texts = posts.with_columns(title=pl.lit(""), tags=tags)
    table = TextReducer.fit(texts, components=1, seed=0).apply(texts).join(texts.select("pid", "tags"), on="pid")
    first, second = (table.filter(pl.col("tags") == text)["text_component_00"] for text in ("sun2 sun2", "dog"))
    assert first.n_unique() == second.n_unique() == 1
    assert abs(first[0] - second[0]) > 0.5


def test_no_words_means_no_text_columns() -> None:
    silent = random_posts(5).with_columns(title=pl.lit(""), tags=pl.lit(""))
    reducer = TextReducer.fit(silent, components=8, seed=0)
    check_table(reducer.table, TEXT_COMPONENTS)
    assert reducer.apply(silent).columns == ["pid"]
    assert TextReducer.fit(random_posts(5), components=0, seed=0).apply(silent).columns == ["pid"]


def test_text_components_are_those_of_scikit_learn() -> None:
    posts = random_posts(6)
    reducer = TextReducer.fit(posts, components=3, seed=0)
    check_table(reducer.table, TEXT_COMPONENTS)
    texts = (posts["title"] + " " + posts["tags"]).to_list()
    matrix = TfidfVectorizer(min_df=2, sublinear_tf=True).fit_transform(texts)
    expected = TruncatedSVD(3, algorithm="arpack", random_state=0).fit_transform(matrix)
    assert np.allclose(reducer.apply(posts).drop("pid").to_numpy(), expected, atol=1e-6)


def test_text_components_of_a_further_post_leave_the_others_as_they_were() -> None:
    posts = random_posts(7)
    further = posts.head(1).with_columns(pid=pl.lit("further"), title=pl.lit("a word never seen"), tags=pl.lit("dog"))
    reducer = TextReducer.fit(posts, components=3, seed=0)
    both = reducer.apply(pl.concat([posts, further]))
    assert both.filter(pl.col("pid") != "further").equals(reducer.apply(posts))
    assert both.filter(pid="further").equals(reducer.apply(further))
