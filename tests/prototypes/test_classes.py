"""Classes of the training posts, and the class of every post: nested and crossed names, empty and unseen ones."""

from __future__ import annotations

import polars as pl
import pytest

from popularity.core.contracts import LEVELS, class_key, class_names
from popularity.core.errors import DataError
from popularity.prototypes.classes import ClassIndex, choose_class_name_format, make_classes
from tests.small_tables import small_posts


def posts_of(train: list[tuple[str, str, str]], test: list[tuple[str, str, str]] | None = None) -> pl.DataFrame:
    """Posts with these paths (category, subcategory, concept), pids a0, a1, ... in the given order."""
    paths = [*train, *(test or [])]
    posts = small_posts(train=len(train), test=len(test or [])).sort("split", "source_index", descending=[True, False])
    keys = {level: [class_key(*path[: depth + 1]) for path in paths] for depth, level in enumerate(LEVELS)}
    return posts.with_columns(
        pl.Series("pid", [f"a{row:03}" for row in range(len(paths))]),
        *(pl.Series(level, values) for level, values in keys.items()),
    )


NESTED = [
    ("Travel", "Beach", "surf"),
    ("Travel", "Hiking", "tent"),
    ("Food", "Fruit", "apple"),
    ("Food", "Cake", "a/b"),
]
CROSSED = [(caption, template, kind) for caption in ("One", "Two") for template in ("Doge", "Archer") for kind in "xy"]


@pytest.mark.parametrize(
    "names", [("Food",), ("",), ("", "b"), ("a", ""), ("a/b", "c\\"), ("\\/", "", "x"), ("a\n", "/")]
)
def test_class_names_undoes_class_key(names: tuple[str, ...]) -> None:
    assert class_names(class_key(*names)) == names


def test_auto_tells_nested_from_crossed_names() -> None:
    assert choose_class_name_format(posts_of(NESTED)) == "path"
    assert choose_class_name_format(posts_of(CROSSED)) == "name"
    # One name of four under two parents, or two of four, is no crossing; three of four are.
    extra = [("Food", "Beach", ""), ("Food", "Hiking", ""), ("Travel", "Fruit", "")]
    assert [choose_class_name_format(posts_of(NESTED + extra[:more])) for more in range(4)] == ["path"] * 3 + ["name"]
    # Test posts have no say.
    assert choose_class_name_format(posts_of(NESTED, extra)) == "path"


def test_whole_paths() -> None:
    classes = make_classes(posts_of([*NESTED, NESTED[0]]), "path")
    table = classes.filter(level="subcategory")
    assert table["key"].to_list() == ["Food/Cake", "Food/Fruit", "Travel/Beach", "Travel/Hiking"]
    assert table["parent"].to_list() == [0, 0, 1, 1]
    assert table["posts"].to_list() == [1, 1, 2, 1]
    assert classes.filter(level="category")["parent"].to_list() == [None, None]
    assert classes.filter(level="concept")["key"].to_list()[0] == r"Food/Cake/a\/b"


def test_own_paths_join_equal_names_and_have_their_usual_parent() -> None:
    posts = posts_of([*CROSSED, ("Two", "Doge", "x"), ("Two", "Doge", "x")])
    classes = make_classes(posts, "name")
    table = classes.filter(level="subcategory")
    assert table["key"].to_list() == ["Archer", "Doge"]
    assert table["parent"].to_list() == [0, 1]  # Archer: a tie, One comes first; Doge: mostly Two
    assert table["posts"].to_list() == [4, 6]
    concepts = classes.filter(level="concept")
    assert concepts["key"].to_list() == ["Archer/x", "Archer/y", "Doge/x", "Doge/y"]
    assert concepts["name"].to_list() == ["archer x", "archer y", "doge x", "doge y"]
    index = ClassIndex.from_posts(posts, classes, "name")
    assert index.rows["subcategory"].tolist() == [1, 1, 0, 0, 1, 1, 0, 0, 1, 1]
    assert index.rows["category"].tolist() == [0] * 4 + [1] * 6


def test_names_are_readable_and_tell_classes_apart() -> None:
    paths = [("Travel", "Beach", "a"), ("Whether&Season", "Beach", "a"), ("Holiday&Celebrations", "New", "a")]
    table = make_classes(posts_of(paths), "path")
    assert table.filter(level="subcategory")["name"].to_list() == [
        "new year",
        "travel beach",
        "weather and seasons beach",
    ]
    assert table.filter(level="concept")["name"].to_list() == [
        "new year a",
        "travel beach a",
        "weather and seasons beach a",
    ]


@pytest.mark.parametrize("class_name_format", ["path", "name"])
def test_unseen_and_empty_classes(class_name_format: str) -> None:
    train = [*NESTED, ("", "Lost", "x"), ("Food", "", "y"), ("Food", "Fruit", ""), ("", "", "")]
    test = [
        ("Travel", "Beach", "never"),  # unseen concept: its subcategory and category are known
        ("Travel", "Diving", "surf"),  # unseen subcategory, whose concept's name is known elsewhere
        ("Nowhere", "At", "all"),
        ("Food", "", "apple"),
        ("Travel", "Beach", "surf"),
    ]
    posts = posts_of(train, test)
    classes = make_classes(posts, class_name_format)  # type: ignore[arg-type]
    assert not classes.filter(pl.col("key").str.ends_with("/") | (pl.col("key") == "")).height
    index = ClassIndex.from_posts(posts, classes, class_name_format)  # type: ignore[arg-type]

    def keys(level: str) -> list[str | None]:
        known = classes.filter(level=level)["key"].to_list()
        assert index.counts[level] == len(known)
        return [class_names(known[row])[-1] if row >= 0 else None for row in index.rows[level][len(train) :]]

    assert keys("category") == ["Travel", "Travel", None, "Food", "Travel"]
    assert keys("subcategory") == ["Beach", None, None, None, "Beach"]
    assert keys("concept") == [None, None, None, None, "surf"]
    assert index.rows["subcategory"][5] == index.rows["concept"][5] == -1
    assert index.rows["concept"][6] == -1
    lost = classes.filter(level="subcategory").filter(pl.col("key").str.ends_with("Lost"))
    assert lost["parent"].to_list() == [None]
    assert all(index.rows[level][7] == -1 for level in LEVELS)


def test_a_data_set_without_concepts() -> None:
    posts = posts_of([("A", "x", ""), ("A", "y", "")])
    classes = make_classes(posts, "path")
    index = ClassIndex.from_posts(posts, classes, "path")
    assert index.counts == {"category": 1, "subcategory": 2, "concept": 0}
    assert index.rows["concept"].tolist() == [-1, -1]


@pytest.mark.parametrize("paths", [[("A", "x", "1"), ("A", "x", "2")], [("A", "", ""), ("B", "", "")]])
def test_fewer_than_two_classes_are_refused(paths: list[tuple[str, str, str]]) -> None:
    # A second class among the test posts does not count.
    with pytest.raises(DataError, match="second-level classes") as caught:
        make_classes(posts_of(paths, [("A", "y", "")]), "path")
    assert "at least 2 different names" in str(caught.value)
