"""Codes of categories, principal components, scalars, and the matrix they make up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from sklearn.decomposition import PCA

from popularity.errors import ContractError
from popularity.features import CATEGORIES
from popularity.schema import Block
from popularity.stack.matrix import BlockReducer, CategoryEncoder, MatrixEncoder, block_rows, block_scalars, dense_rows
from tests.stack.small_stack import STACK, posts_with_signal, random_block


def frame(**columns: list[str | None]) -> pl.DataFrame:
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))


def test_codes_follow_the_text_and_rare_or_unseen_values_are_0() -> None:
    fit = frame(kind=["b", "b", "a", "a", "Z", "Z", "é", "é", "once", None, None, None])
    encoder = CategoryEncoder.fit(fit, ["kind"], min_posts=2)
    assert encoder.codes == {"kind": {"Z": 1, "a": 2, "b": 3, "é": 4}}
    codes = encoder.apply(frame(kind=["é", "b", None, "once", "never seen", "", "a"]))
    assert codes["kind"].to_list() == [4.0, 3.0, None, 0.0, 0.0, 0.0, 2.0]
    assert codes["kind"].dtype == pl.Float32


def test_codes_do_not_depend_on_row_order() -> None:
    values: list[str | None] = [str(value) for value in np.random.default_rng(0).integers(30, size=200)]
    turned: list[str | None] = values[::-1]
    left, right = (CategoryEncoder.fit(frame(kind=rows), ["kind"], min_posts=3) for rows in (values, turned))
    assert list(left.codes["kind"].items()) == list(right.codes["kind"].items())


def test_each_column_has_codes_of_its_own() -> None:
    fit = frame(one=["x", "x", "y", "y"], two=["y", "y", "x", "w"])
    encoder = CategoryEncoder.fit(fit, ["two", "one"], min_posts=2)
    codes = encoder.apply(fit)
    assert codes.columns == ["two", "one"]
    assert codes["one"].to_list() == [1.0, 1.0, 2.0, 2.0]
    assert codes["two"].to_list() == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("values", [["a", "b", "c"], [None, None, None]])
def test_a_column_without_a_frequent_value(values: list[str | None]) -> None:
    encoder = CategoryEncoder.fit(frame(kind=values), ["kind"], min_posts=2)
    assert encoder.codes == {"kind": {}}
    assert encoder.apply(frame(kind=["a", "new", None]))["kind"].to_list() == [0.0, 0.0, None]


def test_components_equal_the_textbook_ones_up_to_sign() -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(200, 12)) * np.linspace(5, 0.5, 12) + 3).astype(np.float32)
    new = rng.normal(size=(20, 12)).astype(np.float32)
    reducer = BlockReducer.fit(values, 4)
    expected = PCA(4, svd_solver="full").fit(values.astype(np.float64))
    for rows in (values, new):
        found, wanted = reducer.apply(rows), expected.transform(rows.astype(np.float64))
        signs = np.sign((found * wanted).sum(axis=0))
        np.testing.assert_allclose(found * signs, wanted, atol=1e-4)
    assert (np.diff(reducer.apply(values).var(axis=0)) < 0).all()


def test_zero_components_pass_the_block_on_raw() -> None:
    values = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float16)
    np.testing.assert_array_equal(BlockReducer.fit(values, 0).apply(values), values.astype(np.float32))


@pytest.mark.parametrize(("rows", "components", "kept"), [(3, 8, 3), (2, 8, 2), (50, 8, 6), (50, 2, 2)])
def test_no_more_components_than_rows_or_columns(rows: int, components: int, kept: int) -> None:
    values = np.random.default_rng(2).normal(size=(rows, 6)).astype(np.float32)
    reduced = BlockReducer.fit(values, components).apply(values)
    assert reduced.shape == (rows, kept)
    assert np.isfinite(reduced).all()


@pytest.mark.parametrize("components", [0, 3])
@pytest.mark.parametrize("rows", [0, 1])
def test_a_block_with_hardly_a_vector_among_the_fit_rows_is_a_named_error(rows: int, components: int) -> None:
    with pytest.raises(ContractError, match=r"stack\.columns\.blocks"):
        BlockReducer.fit(np.ones((rows, 6), dtype=np.float32), components)


def test_a_missing_vector_is_missing_everywhere() -> None:
    block = Block(np.array([[3, 4], [1, 0]], dtype=np.float16), ["a", "c"], {})
    blocks = {"image": block, "title": block, "tags": random_block(["a", "b"], 2, seed=0, missing=0.0)}
    vectors = dense_rows(blocks, "image", ["c", "b", "a"])
    np.testing.assert_array_equal(vectors, np.array([[1, 0], [np.nan, np.nan], [3, 4]], dtype=np.float32))
    assert np.isnan(BlockReducer.fit(vectors[[0, 2]], 1).apply(vectors)[:, 0]).tolist() == [False, True, False]
    norms = block_scalars("image", blocks, ["c", "b", "a"])["image_norm"]
    np.testing.assert_array_equal(norms, np.array([1, np.nan, 5], dtype=np.float32))
    assert np.isnan(block_rows(blocks, "text", ["a", "b", "c"])).any(axis=1).tolist() == [False, True, True]
    assert np.isnan(block_scalars("text", blocks, ["a", "b", "c"])["title_tags_cosine"]).tolist() == [False, True, True]


def test_cosine_of_title_and_tags() -> None:
    pids = ["a", "b", "c", "d"]
    title = Block(np.array([[1, 0], [1, 1], [2, 0], [0, 0]], dtype=np.float16), pids, {})
    tags = Block(np.array([[5, 0], [1, -1], [-3, 0], [1, 0]], dtype=np.float16), pids, {})
    cosine = block_scalars("text", {"title": title, "tags": tags}, pids)["title_tags_cosine"]
    np.testing.assert_allclose(cosine, [1, 0, -1, 0], atol=1e-6)


Fold = tuple[pl.DataFrame, pl.DataFrame, npt.NDArray[np.float64], dict[str, Block]]


@pytest.fixture(scope="module")
def fold() -> Fold:
    """Features of fit and score rows, labels of the fit rows, blocks."""
    posts, blocks = posts_with_signal(3, train=150, test=60, users=40)
    features = posts.select("pid", *CATEGORIES, "photo_count", "latitude").sort("pid")
    is_fit = features["pid"].is_in(posts.filter(pl.col("split") == "train")["pid"].to_list())
    fit = features.filter(is_fit)
    label = fit.join(posts, on="pid", how="left", maintain_order="left")["label"].to_numpy()
    return fit, features.filter(~is_fit), label, blocks


def test_columns_of_the_matrix(fold: Fold) -> None:
    fit, score, label, blocks = fold
    encoder, matrix = MatrixEncoder.fit(fit, label, blocks, STACK.columns)
    applied = encoder.apply(score, blocks)
    assert matrix.names == applied.names
    assert matrix.names == (
        "category", "subcategory", "concept", "media_type", "timezone_id", "photo_count", "latitude",
        "image_component_000", "image_component_001", "image_component_002", "image_norm", "image_head",
        "text_component_000", "text_component_001", "text_component_002", "title_tags_cosine", "text_head",
    )  # fmt: skip
    assert matrix.blocks == ("metadata",) * 7 + ("image",) * 5 + ("text",) * 5
    assert matrix.categorical == (0, 1, 2, 3, 4)
    for rows, table in ((fit, matrix), (score, applied)):
        assert list(table.pids) == rows["pid"].to_list()
        assert table.values.shape == (rows.height, 17)
        assert table.values.dtype == np.float32
        column = table.values[:, table.names.index("photo_count")]
        np.testing.assert_array_equal(column, rows["photo_count"].cast(pl.Float32).to_numpy())
        missing = blocks["image"].rows(rows["pid"].to_list()) < 0
        assert missing.any()
        image = table.values[:, [position for position, block in enumerate(table.blocks) if block == "image"]]
        np.testing.assert_array_equal(np.isnan(image), np.repeat(missing[:, None], 5, axis=1))


def test_switches_of_the_matrix(fold: Fold) -> None:
    fit, _, label, blocks = fold

    def names(**switches: object) -> tuple[str, ...]:
        return MatrixEncoder.fit(fit, label, blocks, replace(STACK.columns, **switches))[1].names  # type: ignore[arg-type]

    everything = names()
    assert set(names(uid_category=True)) - set(everything) == {"uid"}
    assert set(everything) - set(names(heads=("text",))) == {"image_head"}
    assert names(blocks=("image",), heads=())[-1] == "image_norm"
    assert names(blocks=("metadata",)) == everything[:7]
    assert sum(name.startswith("text_component") for name in names(components=0)) == 10


def test_encoders_are_fitted_on_fit_rows_alone(fold: Fold) -> None:
    """Vectors of other posts, whatever they are, change nothing in the fitted encoder or its matrix."""
    fit, score, label, blocks = fold
    known = set(fit["pid"])
    changed = {}
    for name, block in blocks.items():
        values = block.values.copy()
        values[[pid not in known for pid in block.pids]] = 1000.0
        changed[name] = Block(values, block.pids, block.about)
    (before, matrix), (after, other) = (
        MatrixEncoder.fit(fit, label, vectors, STACK.columns) for vectors in (blocks, changed)
    )
    np.testing.assert_array_equal(matrix.values, other.values)
    for name, reducer in before.reducers.items():
        np.testing.assert_array_equal(reducer.mean, after.reducers[name].mean)
        np.testing.assert_array_equal(reducer.components, after.reducers[name].components)
        np.testing.assert_array_equal(before.heads[name].weights, after.heads[name].weights)
    assert not np.array_equal(before.apply(score, blocks).values, after.apply(score, changed).values, equal_nan=True)
