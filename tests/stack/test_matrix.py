"""Codes of categories, principal components, scalars, and the matrix they make up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from sklearn.decomposition import PCA

from popularity.core.arrays import Float32Array
from popularity.core.contracts import unclassified
from popularity.core.errors import ContractError
from popularity.core.vectors import Block
from popularity.features import CATEGORIES, TEXT
from popularity.stack import Blocks
from popularity.stack.feature_blocks import PROTOTYPE_VECTORS
from popularity.stack.matrix import BlockReducer, CategoryEncoder, Matrix, MatrixEncoder
from tests.stack.small_stack import SCALARS, STACK, posts_with_signal, with_vectors


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


@pytest.mark.parametrize(("rows", "components", "kept"), [(3, 8, 2), (2, 8, 1), (50, 8, 6), (50, 2, 2)])
def test_no_more_components_than_the_rows_span_or_columns(rows: int, components: int, kept: int) -> None:
    values = np.random.default_rng(2).normal(size=(rows, 6)).astype(np.float32)
    reduced = BlockReducer.fit(values, components).apply(values)
    assert reduced.shape == (rows, kept)
    assert np.isfinite(reduced).all()


@pytest.mark.parametrize("components", [0, 3])
@pytest.mark.parametrize("rows", [0, 1])
def test_a_block_with_hardly_a_vector_among_the_fit_rows_is_a_named_error(rows: int, components: int) -> None:
    with pytest.raises(ContractError, match=r"stack\.columns\.feature_blocks"):
        BlockReducer.fit(np.ones((rows, 6), dtype=np.float32), components)


def test_vectors_that_are_constant_within_a_class_keep_the_components_that_the_classes_span() -> None:
    """K classes differ in K - 1 directions: what is left is rounding noise, in which trees would find splits."""
    rng = np.random.default_rng(4)
    prompts = rng.normal(size=(5, 40)).astype(np.float16).astype(np.float32)
    classes = rng.integers(5, size=300)
    reducer = BlockReducer.fit(prompts[classes], 32)
    reduced = reducer.apply(prompts[classes])
    assert reduced.shape == (300, 4)
    distance = np.linalg.norm(prompts[:, None] - prompts[None], axis=2)
    again = reducer.apply(prompts)
    np.testing.assert_allclose(np.linalg.norm(again[:, None] - again[None], axis=2), distance, rtol=1e-4)


Fold = tuple[pl.DataFrame, pl.DataFrame, npt.NDArray[np.float64], Blocks]


@pytest.fixture(scope="module")
def fold() -> Fold:
    """Features of fit and score rows, labels of the train rows, blocks."""
    posts, blocks = posts_with_signal(3, train=150, test=60, users=40)
    text = pl.concat_str("title", "tags", separator=" ").alias(TEXT)
    features = posts.select("pid", *CATEGORIES, text, "photo_count", "latitude").sort("pid")
    is_fit = features["pid"].is_in(posts.filter(pl.col("split") == "train")["pid"].to_list())
    fit = features.filter(is_fit)
    label = fit.join(posts, on="pid", how="left", maintain_order="left")["label"].to_numpy()
    return fit, features.filter(~is_fit), label, blocks


PROTOTYPE = tuple(f"{part}_component_{index:03d}" for part in PROTOTYPE_VECTORS for index in range(3))
NAMES = (
    "category", "subcategory", "concept", "media_type", "timezone_id", "photo_count", "latitude",
    "image_component_000", "image_component_001", "image_component_002", "image_norm", "image_oof_ridge",
    "text_component_000", "text_component_001", "text_component_002", "title_tags_cosine", "text_oof_ridge",
    "characters_oof_ridge",
    *PROTOTYPE, *SCALARS, "prototype_oof_ridge",
)  # fmt: skip


def columns_of(matrix: Matrix, names: Sequence[str]) -> Float32Array:
    return matrix.values[:, [matrix.names.index(name) for name in names]]


def test_columns_of_the_matrix(fold: Fold) -> None:
    fit, score, label, blocks = fold
    encoder, matrix = MatrixEncoder.fit(fit, label, blocks, STACK.columns)
    applied = encoder.apply(score, blocks)
    assert matrix.names == applied.names == NAMES
    own = len(PROTOTYPE) + len(SCALARS) + 1
    assert matrix.blocks == ("metadata",) * 7 + ("image",) * 5 + ("text",) * 6 + ("prototype",) * own
    assert matrix.categorical == (0, 1, 2, 3, 4)
    for rows, table in ((fit, matrix), (score, applied)):
        assert list(table.pids) == rows["pid"].to_list()
        assert table.values.shape == (rows.height, len(NAMES))
        assert table.values.dtype == np.float32
        np.testing.assert_array_equal(
            columns_of(table, ["photo_count"])[:, 0], rows["photo_count"].cast(pl.Float32).to_numpy()
        )
        image = [name for name, block in zip(table.names, table.blocks, strict=True) if block == "image"]
        assert missing(blocks, "image", rows).any()
        np.testing.assert_array_equal(
            np.isnan(columns_of(table, image)), np.repeat(missing(blocks, "image", rows)[:, None], 5, axis=1)
        )


def missing(blocks: Blocks, name: str, rows: pl.DataFrame) -> npt.NDArray[np.bool_]:
    """(n,) whether a post has no vector in a stored block."""
    return blocks.vectors[name].rows(rows["pid"].to_list()) < 0


def test_each_part_of_the_prototype_block_is_reduced_and_missing_on_its_own(fold: Fold) -> None:
    fit, score, label, blocks = fold
    encoder, matrix = MatrixEncoder.fit(fit, label, blocks, STACK.columns)
    applied = encoder.apply(score, blocks)
    gone = {part: missing(blocks, part, score) for part in PROTOTYPE_VECTORS}
    for part in PROTOTYPE_VECTORS:
        names = [f"{part}_component_{index:03d}" for index in range(3)]
        np.testing.assert_array_equal(np.isnan(columns_of(applied, names)), np.repeat(gone[part][:, None], 3, axis=1))
        block = blocks.vectors[part]
        fitted = block.values[block.rows(fit.filter(~missing(blocks, part, fit))["pid"].to_list())]
        reducer = BlockReducer.fit(fitted.astype(np.float32), 3)
        known = block.values[block.rows(score.filter(~gone[part])["pid"].to_list())]
        np.testing.assert_array_equal(columns_of(applied, names)[~gone[part]], reducer.apply(known))
    assert any((gone["logits"] != gone[part]).any() for part in PROTOTYPE_VECTORS)
    # The ridge reads all parts together, so it has no prediction for a post that lacks one of them.
    any_gone = np.logical_or.reduce(list(gone.values()))
    assert 0 < any_gone.sum() < len(any_gone)
    np.testing.assert_array_equal(np.isnan(columns_of(applied, ["prototype_oof_ridge"])[:, 0]), any_gone)
    assert not np.isnan(columns_of(matrix, ["prototype_oof_ridge"])).all()


def test_scalars_are_columns_as_they_are(fold: Fold) -> None:
    fit, score, label, blocks = fold
    encoder, matrix = MatrixEncoder.fit(fit, label, blocks, STACK.columns)
    table = {row["pid"]: row for row in blocks.scalars.iter_rows(named=True)}
    for rows, made in ((fit, matrix), (score, encoder.apply(score, blocks))):
        expected = [[table.get(pid, {}).get(name) for name in SCALARS] for pid in rows["pid"]]
        np.testing.assert_array_equal(columns_of(made, SCALARS), np.array(expected, dtype=np.float32))
        assert any(pid not in table for pid in rows["pid"])


def test_switches_of_the_matrix(fold: Fold) -> None:
    fit, _, label, blocks = fold

    def names(**switches: object) -> tuple[str, ...]:
        return MatrixEncoder.fit(fit, label, blocks, replace(STACK.columns, **switches))[1].names  # type: ignore[arg-type]

    everything = names()
    assert set(names(uid_category=True)) - set(everything) == {"uid"}
    assert set(everything) - set(names(oof_ridge=("text", "prototype"))) == {"image_oof_ridge", "characters_oof_ridge"}
    assert names(feature_blocks=("image",), oof_ridge=())[-1] == "image_norm"
    assert names(feature_blocks=("metadata",)) == everything[:7]
    assert sum(name.startswith("text_component") for name in names(n_components=0)) == 10
    assert names(feature_blocks=("metadata", "image", "text")) == everything[:18]


PARTS_GONE = {
    "local_prompt": {f"local_prompt_component_{index:03d}" for index in range(3)},
    "logits": {*(f"logits_component_{index:03d}" for index in range(3)), "logits.own_global"},
    "losses": {"losses.global", "losses.local", "losses.attention"},
    "distance": {"distance.visual"},
    "unseen": {"class_unseen"},
}


@pytest.mark.parametrize("part", PARTS_GONE)
def test_a_part_of_the_prototype_block_is_left_out_by_choice_of_columns(fold: Fold, part: str) -> None:
    """What stays has the bits it had, but for the ridge feature, which reads the vectors that are left."""
    fit, _, label, blocks = fold
    whole = MatrixEncoder.fit(fit, label, blocks, STACK.columns)[1]
    rest = tuple(name for name in STACK.columns.prototype_parts if name != part)
    without = MatrixEncoder.fit(fit, label, blocks, replace(STACK.columns, prototype_parts=rest))[1]
    assert set(whole.names) - set(without.names) == PARTS_GONE[part]
    kept = [name for name in without.names if name != "prototype_oof_ridge"]
    np.testing.assert_array_equal(columns_of(whole, kept), columns_of(without, kept))
    ridge = (columns_of(whole, ["prototype_oof_ridge"]), columns_of(without, ["prototype_oof_ridge"]))
    assert np.array_equal(*ridge, equal_nan=True) == (part not in PROTOTYPE_VECTORS)
    turned = replace(STACK.columns, prototype_parts=STACK.columns.prototype_parts[::-1])
    assert MatrixEncoder.fit(fit, label, blocks, turned)[1].names == whole.names  # the order is fixed


def test_scalars_alone_and_no_part_at_all(fold: Fold) -> None:
    fit, _, label, blocks = fold

    def names(*parts: str) -> tuple[str, ...]:
        columns = replace(STACK.columns, feature_blocks=("prototype", "metadata"), prototype_parts=parts)  # type: ignore[arg-type]
        return MatrixEncoder.fit(fit, label, blocks, columns)[1].names[7:]

    assert names("losses", "unseen") == ("losses.global", "losses.local", "losses.attention", "class_unseen")
    assert names() == ()


def test_encoders_are_fitted_on_fit_rows_alone(fold: Fold) -> None:
    """Vectors of other posts, whatever they are, change nothing in the fitted encoder or its matrix."""
    fit, score, label, blocks = fold
    known = set(fit["pid"])

    def strange(_: str, block: Block) -> Block:
        values = block.values.copy()
        values[[pid not in known for pid in block.pids]] = 1000.0
        return replace(block, values=values)

    changed = with_vectors(blocks, strange)
    (before, matrix), (after, other) = (
        MatrixEncoder.fit(fit, label, vectors, STACK.columns) for vectors in (blocks, changed)
    )
    np.testing.assert_array_equal(matrix.values, other.values)
    for name, dense in before.dense.items():
        for part, reducer in dense.reducers.items():
            np.testing.assert_array_equal(reducer.mean, after.dense[name].reducers[part].mean)
            np.testing.assert_array_equal(reducer.components, after.dense[name].reducers[part].components)
        ridge, same = dense.ridge, after.dense[name].ridge
        assert ridge is not None
        assert same is not None
        np.testing.assert_array_equal(ridge.weights, same.weights)
    assert not np.array_equal(before.apply(score, blocks).values, after.apply(score, changed).values, equal_nan=True)


def test_a_users_own_columns_are_numbers_and_categories(fold: Fold) -> None:
    fit, _, label, blocks = fold
    own = fit.with_columns(table_price=pl.lit(1.5), table_kind=pl.Series(["a", "b"] * (len(fit) // 2)))
    encoder, matrix = MatrixEncoder.fit(own, label, blocks, replace(STACK.columns, feature_blocks=("metadata",)))
    assert matrix.names == (*NAMES[:5], "table_kind", "photo_count", "latitude", "table_price")
    assert matrix.categorical == (0, 1, 2, 3, 4, 5)
    assert encoder.categories.codes["table_kind"] == {"a": 1, "b": 2}


def test_columns_about_classes_are_left_out_where_posts_have_none(fold: Fold) -> None:
    fit, _, label, blocks = fold
    named = ("category_posts", "concept_target_level", "user_subcategory_share", "day_subcategory_share", "day_posts")
    own = fit.with_columns(pl.lit(0.5).alias(name) for name in named)
    params = replace(STACK.columns, feature_blocks=("metadata",))
    assert set(named) <= set(MatrixEncoder.fit(own, label, blocks, params)[1].names)
    names = MatrixEncoder.fit(unclassified(own), label, blocks, params)[1].names
    assert names == ("media_type", "timezone_id", "photo_count", "latitude", "day_posts")


def test_a_block_without_a_vector_has_no_columns(fold: Fold) -> None:
    """A table without pictures: the image block and what the network makes of images are left out."""
    fit, score, label, blocks = fold
    images = ("image", "attended_image", "attended_visual", "attended_text")

    def empty(name: str, block: Block) -> Block:
        return Block(block.values[:0], [], block.metadata) if name in images else block

    encoder, matrix = MatrixEncoder.fit(fit, label, with_vectors(blocks, empty), STACK.columns)
    assert not any(name.startswith(images) for name in matrix.names)
    assert "text_component_000" in matrix.names
    assert "global_prompt_component_000" in matrix.names
    assert encoder.apply(score, with_vectors(blocks, empty)).names == matrix.names
