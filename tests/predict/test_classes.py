"""Classes of new posts: known, unseen, none."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from popularity.predict.classes import KnownClasses
from popularity.prototypes.classes import ClassNameFormat, make_classes
from tests.random_posts import random_posts

POSTS = random_posts(0)  # C0/S0, C0/S2, C1/S1, C1/S3


def known(class_name_format: ClassNameFormat = "path") -> KnownClasses:
    return KnownClasses(make_classes(POSTS, class_name_format), class_name_format)


@pytest.mark.parametrize("class_name_format", ["path", "name"])
def test_the_likeliest_class_gets_the_keys_of_posts(class_name_format: ClassNameFormat) -> None:
    classes = known(class_name_format)
    names = classes.of_level["name"].to_list()
    likely = np.array([0.1 if name != "s3" else 0.7 for name in names], np.float32)
    post = {"category": "", "subcategory": "/", "concept": "//sea"}
    keys, probability = classes.likeliest(post, likely)
    assert keys == {"category": "C1", "subcategory": "C1/S3", "concept": "C1/S3/sea"}
    assert probability == pytest.approx(0.7)
    below, probability = classes.likeliest({**post, "category": "C0"}, likely)
    assert below["subcategory"] == "C0/S0"
    assert probability == pytest.approx(0.5)


def test_a_category_that_is_unknown_excludes_no_class() -> None:
    likely = np.array([0.1, 0.2, 0.6, 0.1], np.float32)
    keys, _ = known().likeliest({"category": "Z", "subcategory": "Z/", "concept": "Z//"}, likely)
    assert keys["subcategory"] == known().of_level["key"][2]


def test_posts_without_a_class() -> None:
    blank = POSTS.head(3).with_columns(subcategory=pl.col("category") + "/")
    assert known().without(blank)["pid"].to_list() == blank["pid"].to_list()
    assert known().without(POSTS).is_empty()


def test_notes() -> None:
    classes = known()
    assert classes.note("C0/S0") == ""
    assert classes.note("C0/") == ""
    unseen = classes.note("C0/S9")
    assert unseen.startswith("unseen class: C0/S9; a mixture of the known ones stands in (spelled alike: C0/S")
    assert classes.note_above("C0") == classes.note_above("") == ""
    assert classes.note_above("C00").startswith("unseen class: C00 is no first-level class of the data set (spelled")
    assert classes.note("Q/Zebra") == "unseen class: Q/Zebra; a mixture of the known ones stands in"
