"""From features and dense blocks to the matrix of the learners, with encoders fitted on train rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field
from sklearn.decomposition import PCA

from popularity.core.arrays import BoolArray, Float32Array, Float64Array, Int64Array, chunks
from popularity.core.config import Section
from popularity.core.contracts import UNCLASSIFIED
from popularity.core.errors import ContractError
from popularity.features import TEXT, FeatureColumn, categories_of
from popularity.stack import oof_ridge_characters
from popularity.stack.columns import MatrixColumn, metadata_columns
from popularity.stack.feature_blocks import (
    IMAGE_STATISTICS_BLOCK,
    Blocks,
    PrototypePart,
    TextVectors,
    block_kind,
    dense_parts,
    has_vectors,
    joined_rows,
    scalar_columns,
    scalar_names,
)
from popularity.stack.masking import mask_classes, without_known_class
from popularity.stack.neighbours import COLUMNS, FROM_LABELS, TIME, Neighbours, users_and_times
from popularity.stack.oof_ridge import BlockRidge, fit_oof_ridge
from popularity.stack.oof_ridge_characters import CharacterRidge, fit_oof_ridge_characters

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Matrix:
    """A table of numbers with its columns.

    Args:
        values: (n, columns); NaN where a value is missing.
        pids: of the n posts.
        columns: what each column is.
    """

    values: Float32Array
    pids: Sequence[str]
    columns: tuple[MatrixColumn, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The unique names of the columns."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """The block of each column."""
        return tuple(column.block for column in self.columns)

    @cached_property
    def categorical(self) -> tuple[int, ...]:
        """Positions of the columns that hold category codes."""
        return tuple(index for index, column in enumerate(self.columns) if column.kind == "category")

    def take(self, rows: Int64Array) -> Matrix:
        """The rows at the positions (k,), sorted and without repetition."""
        if len(rows) == len(self.pids):
            return self
        return Matrix(self.values[rows], [self.pids[row] for row in rows], self.columns)

    def with_columns(self, encoder: MatrixEncoder) -> Matrix:
        """The columns that an encoder gives, which `MatrixEncoder.with_columns` made of that of this matrix."""
        kept = [
            index
            for name in encoder.blocks
            for index, column in enumerate(self.columns)
            if column.block == name and encoder.gives(column)
        ]
        if kept == list(range(len(self.columns))):
            return self
        return Matrix(self.values[:, kept], self.pids, tuple(self.columns[index] for index in kept))


@dataclass(frozen=True)
class CategoryEncoder:
    """Codes of categories.

    Code 0 stands for values with fewer than `min_posts` train rows and for unseen values, so that unseen values are
    treated as rare ones.

    Args:
        codes: of the values, by column.
    """

    codes: Mapping[str, Mapping[str, int]]

    @classmethod
    def fit(cls, features: pl.DataFrame, columns: Sequence[str], min_posts: int) -> CategoryEncoder:
        """The encoder of codes 1, 2, ... for frequent values, in the order of their text.

        Args:
            features: of the train rows.
            columns: that are encoded.
            min_posts: train rows that a value needs for a code of its own.
        """
        codes: dict[str, dict[str, int]] = {}
        for column in columns:
            counts = features[column].drop_nulls().value_counts()
            frequent = counts.filter(pl.col("count") >= min_posts)[column].sort().to_list()
            codes[column] = {value: code for code, value in enumerate(frequent, start=1)}
        return cls(codes)

    def apply(self, features: pl.DataFrame) -> pl.DataFrame:
        """The encoded columns, as float codes; null stays null."""
        return features.select(
            pl.when(pl.col(column).is_not_null())
            .then(pl.col(column).replace_strict(dict(codes), default=0, return_dtype=pl.Float32))
            .alias(column)
            for column, codes in self.codes.items()
        )


MIN_RELATIVE_VARIANCE = 1e-6  # of the first component's variance; less is rounding noise in float32


@dataclass(frozen=True)
class BlockReducer:
    """PCA of a part, fitted on train rows without labels.

    Args:
        mean: (d,) of the train rows.
        components: (k, d) principal axes, by falling variance; None: the vectors stay as they are.
    """

    mean: Float32Array
    components: Float32Array | None

    @classmethod
    def fit(cls, values: npt.NDArray[np.floating[Any]], components: int) -> BlockReducer:
        """The reducer fitted on train rows.

        Args:
            values: (n, d) vectors.
            components: the largest number of axes; 0 keeps the raw columns.

        Raises:
            ContractError: fewer than two vectors.
        """
        width = values.shape[1]
        if len(values) < 2:
            raise ContractError(
                f"a dense block has {len(values)} vectors among the train rows: leave it out of "
                "stack.columns.feature_blocks (a part of the prototype block: out of stack.columns.prototype_parts)"
            )
        if components == 0:
            return cls(np.zeros(width, dtype=np.float32), None)
        count = min(components, width, len(values))
        fitted = PCA(count, svd_solver="covariance_eigh").fit(np.asarray(values, dtype=np.float32))
        # Vectors that are constant within a class span few directions; other components would be rounding noise.
        variance = fitted.explained_variance_
        kept = max(1, int((variance > MIN_RELATIVE_VARIANCE * variance[0]).sum()))
        return cls(fitted.mean_.astype(np.float32), fitted.components_[:kept].astype(np.float32))

    def apply(self, values: npt.NDArray[np.floating[Any]]) -> Float32Array:
        """(n, k) projections of (n, d) vectors."""
        vectors = np.asarray(values, dtype=np.float32)
        if self.components is None:
            return vectors
        reduced = np.empty((len(vectors), len(self.components)), dtype=np.float32)
        for rows in chunks(np.arange(len(vectors))):
            reduced[rows] = (vectors[rows] - self.mean) @ self.components.T
        return reduced


def _without_meaning(features: pl.DataFrame) -> frozenset[str]:
    """The columns about classes, where no post has a class of its own."""
    if not (features["concept"] == UNCLASSIFIED["concept"]).all():
        return frozenset()
    return frozenset(name for name in features.columns if FeatureColumn.named(name).about_classes)


FeatureGroup = Literal[
    "user_target", "words", "rhythm", "class_time", "neighbours", "image", "user_text", "collection_order"
]


@dataclass(frozen=True)
class ColumnParams(Section):
    """How features and blocks become columns."""

    feature_blocks: Annotated[tuple[Literal["metadata", "image", "text", "prototype"], ...], Field(min_length=1)]
    prototype_parts: tuple[PrototypePart, ...]
    text_vectors: TextVectors
    feature_groups: tuple[FeatureGroup, ...]
    n_components: Annotated[int, Field(ge=0)]
    oof_ridge: tuple[Literal["image", "text", "characters", "prototype"], ...]
    oof_ridge_folds: Annotated[int, Field(ge=2)]
    oof_ridge_alphas: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    oof_ridge_character_alphas: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    uid_category: bool
    category_min_posts: Annotated[int, Field(ge=1)]


def columns_of_all(each: Sequence[ColumnParams]) -> ColumnParams:
    """Parameters whose columns hold those of `each`, which differ in blocks, groups and `uid_category` alone."""
    return replace(
        each[0],
        feature_blocks=tuple(dict.fromkeys(block for one in each for block in one.feature_blocks)),
        feature_groups=tuple(dict.fromkeys(group for one in each for group in one.feature_groups)),
        uid_category=any(one.uid_category for one in each),
    )


@dataclass(frozen=True)
class DenseEncoder:
    """What is fitted on one dense block.

    Args:
        reducers: by part, in the order of the columns.
        scalars: names of the columns that are used as they are.
        ridge: on all parts together, or None.
        neighbours: in the components of all parts, or None.
        characters: the ridge on character n-grams, for the first block of texts only, or None.
    """

    reducers: Mapping[str, BlockReducer]
    scalars: tuple[str, ...]
    ridge: BlockRidge | None
    neighbours: Neighbours | None
    characters: CharacterRidge | None

    @classmethod
    def fit(
        cls,
        name: str,
        features: pl.DataFrame,
        label: Float64Array,
        blocks: Blocks,
        params: ColumnParams,
    ) -> tuple[DenseEncoder, dict[str, Float32Array]]:
        """The encoder of the block `name`, and the out-of-fold predictions (n,) of its ridges, by column.

        Args:
            name: of the block.
            features: (pid, features) of the n train rows.
            label: (n,).
            blocks: of all posts.
            params: section stack.columns.
        """
        pids = features["pid"].to_list()
        names = dense_parts(name, params.prototype_parts, params.text_vectors)
        known = [part for part in names if has_vectors(blocks, part)]
        if len(known) < len(names):
            logger.info("%s: left out, because no post has one: %s", name, ", ".join(sorted(set(names) - set(known))))
        joined, parts = joined_rows(blocks, known, pids)
        reducers = {
            part: BlockReducer.fit(vectors[~np.isnan(vectors).any(axis=1)], params.n_components)
            for part, vectors in parts.items()
        }
        out_of_fold: dict[str, Float32Array] = {}
        ridge = characters = None
        kind = block_kind(name)
        if parts and kind in params.oof_ridge:
            ridge, out_of_fold[f"{name}_oof_ridge"] = fit_oof_ridge(
                joined,
                label,
                features["uid"].to_numpy(),
                folds=params.oof_ridge_folds,
                alphas=params.oof_ridge_alphas,
                seed=0,
            )
        if name == blocks.blocks_of("text")[0] and "characters" in params.oof_ridge:  # they have no encoder
            characters, out_of_fold[oof_ridge_characters.COLUMN] = fit_oof_ridge_characters(
                features[TEXT].to_list(),
                label,
                features["uid"].to_numpy(),
                folds=params.oof_ridge_folds,
                alphas=params.oof_ridge_character_alphas,
                seed=0,
            )
        neighbours = None
        if parts and "neighbours" in params.feature_groups:
            reduced = [reducers[part].apply(vectors) for part, vectors in parts.items()]
            neighbours = Neighbours.fit(np.hstack(reduced), label, *users_and_times(features))
        scalars = scalar_names(name, blocks, params.prototype_parts)
        if (kind == "text" and params.text_vectors == "post") or (kind == "image" and not params.n_components):
            scalars = ()  # they compare title and tags; the raw vectors of an image have their norm
        if name == "image" and not parts:
            scalars = ()
        return cls(reducers, scalars, ridge, neighbours, characters), out_of_fold

    def columns(
        self, name: str, blocks: Blocks, features: pl.DataFrame, out_of_fold: Mapping[str, Float32Array]
    ) -> tuple[list[MatrixColumn], list[Float32Array]]:
        """The columns of the block, and their values [(n, k), ...].

        Args:
            name: of the block.
            blocks: of all posts.
            features: (pid, features) of n posts.
            out_of_fold: (n,) by column, in place of the predictions of the ridges; empty for posts that are no train
                rows.
        """
        pids = features["pid"].to_list()
        known = list(self.reducers)
        joined, parts = joined_rows(blocks, known, pids)
        reduced = {part: self.reducers[part].apply(vectors) for part, vectors in parts.items()}
        columns = [
            MatrixColumn(f"{part}_component_{index:03d}", name, "component", None, fitted_on_labels=False)
            for part, values in reduced.items()
            for index in range(values.shape[1])
        ]
        group = "image" if name == IMAGE_STATISTICS_BLOCK else None
        single = [
            (MatrixColumn(column, name, "scalar", group, fitted_on_labels=False), values)
            for column, values in scalar_columns(name, self.scalars, blocks, pids).items()
        ]
        if self.ridge is not None:
            column = f"{name}_oof_ridge"
            values = out_of_fold[column] if column in out_of_fold else self.ridge.predict(joined)
            single.append((MatrixColumn(column, name, "oof_ridge", None, fitted_on_labels=True), values))
        if self.characters is not None:
            column = oof_ridge_characters.COLUMN
            given = out_of_fold.get(column)
            values = self.characters.predict(features[TEXT].to_list()) if given is None else given
            single.append((MatrixColumn(column, name, "oof_ridge", None, fitted_on_labels=True), values))
        if self.neighbours is not None:
            found = self.neighbours.columns(np.hstack(list(reduced.values())), *users_and_times(features))
            single += [
                (MatrixColumn(f"{name}_{column}", name, "neighbours", "neighbours", column in FROM_LABELS), values)
                for column, values in zip(COLUMNS, found.T, strict=True)
            ]
        columns += [column for column, _ in single]
        return columns, [*reduced.values(), *(values[:, None] for _, values in single)]


@dataclass(frozen=True)
class MatrixEncoder:
    """From features and blocks to a Matrix, fitted on train rows.

    Args:
        numeric: columns of the features that are numbers.
        categories: codes of the categorical columns.
        dense: encoders, by block.
        classes: of the train rows (`Blocks.classes_of`); posts of other classes are read with their class masked. None:
            the blocks hold nothing of masked posts.
    """

    numeric: tuple[str, ...]
    categories: CategoryEncoder
    dense: Mapping[str, DenseEncoder]
    classes: frozenset[str] | None

    @classmethod
    def fit(
        cls,
        features: pl.DataFrame,
        label: Float64Array,
        blocks: Blocks,
        params: ColumnParams,
        masked: BoolArray | None = None,
    ) -> tuple[MatrixEncoder, Matrix]:
        """The encoder fitted on the train rows of a fold, and their matrix.

        The matrix of the train rows comes from here and not from `apply`: its columns of ridges are out of fold.

        Args:
            features: (pid, features) of the n train rows.
            label: (n,).
            blocks: of all posts.
            params: section stack.columns.
            masked: (n,) train rows that are read as if no train row had their class (`rows_to_mask`); None: no row.
        """
        masked = np.zeros(features.height, np.bool_) if masked is None else masked
        classes = blocks.classes_of(features["pid"].filter(~masked))
        features, blocks = mask_classes(features, masked), blocks.with_masked(features["pid"].filter(masked))
        metadata = "metadata" in params.feature_blocks
        known = categories_of(features)
        left_out = _without_meaning(features)
        categories = [column for column in known if (params.uid_category or column != "uid") and column not in left_out]
        seen = (None, *params.feature_groups)
        numeric = tuple(
            column
            for column in features.columns
            if metadata
            and column not in ("pid", TIME, *known, TEXT, *left_out)
            and FeatureColumn.named(column).group in seen
        )
        encoder = CategoryEncoder.fit(features, categories if metadata else (), params.category_min_posts)
        dense: dict[str, DenseEncoder] = {}
        out_of_fold: dict[str, dict[str, Float32Array]] = {}
        for kind in (*params.feature_blocks, *((IMAGE_STATISTICS_BLOCK,) if "image" in params.feature_groups else ())):
            for name in () if kind == "metadata" else blocks.blocks_of(kind):
                dense[name], out_of_fold[name] = DenseEncoder.fit(name, features, label, blocks, params)
        fitted = cls(numeric, encoder, dense, None if classes is None else frozenset(classes))
        return fitted, fitted._matrix(features, blocks, out_of_fold)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks in the order of their columns."""
        return (*(("metadata",) if self.numeric or self.categories.codes else ()), *self.dense)

    def with_columns(self, params: ColumnParams) -> MatrixEncoder:
        """The encoder that `fit` makes for `params`: its columns are fitted independently of each other.

        Args:
            params: like those of this encoder, but for fewer blocks or groups, or no `uid_category`.
        """
        metadata = "metadata" in params.feature_blocks
        seen = (None, *params.feature_groups)
        numeric = tuple(name for name in self.numeric if metadata and FeatureColumn.named(name).group in seen)
        codes = {
            name: own
            for name, own in self.categories.codes.items()
            if metadata and (params.uid_category or name != "uid")
        }
        kinds = (*params.feature_blocks, *((IMAGE_STATISTICS_BLOCK,) if "image" in params.feature_groups else ()))
        neighbours = "neighbours" in params.feature_groups
        dense = {
            name: own if neighbours else replace(own, neighbours=None)
            for kind in kinds
            for name, own in self.dense.items()
            if block_kind(name) == kind
        }
        return MatrixEncoder(numeric, CategoryEncoder(codes), dense, self.classes)

    def gives(self, column: MatrixColumn) -> bool:
        """Whether the column of one of its blocks is among its columns."""
        if column.block == "metadata":
            return column.name in self.numeric or column.name in self.categories.codes
        return column.kind != "neighbours" or self.dense[column.block].neighbours is not None

    def apply(self, features: pl.DataFrame, blocks: Blocks) -> Matrix:
        """The matrix of other posts than the train rows: of `features` (pid, features), in its row order."""
        classes = blocks.classes_of(features["pid"])
        if self.classes is not None and classes is not None:
            masked = without_known_class(classes, self.classes)
            features, blocks = mask_classes(features, masked), blocks.with_masked(features["pid"].filter(masked))
        return self._matrix(features, blocks, {})

    def _matrix(
        self, features: pl.DataFrame, blocks: Blocks, out_of_fold: Mapping[str, Mapping[str, Float32Array]]
    ) -> Matrix:
        pids = features["pid"].to_list()
        codes = self.categories.apply(features) if self.categories.codes else pl.DataFrame()
        numbers = features.select(pl.col(self.numeric).cast(pl.Float32))
        parts = [frame.to_numpy().astype(np.float32, copy=False) for frame in (codes, numbers) if frame.width]
        columns = [*metadata_columns(codes.columns, "category"), *metadata_columns(numbers.columns, "number")]
        for name, encoder in self.dense.items():
            own_columns, own_parts = encoder.columns(name, blocks, features, out_of_fold.get(name, {}))
            parts += own_parts
            columns += own_columns
        return Matrix(np.hstack(parts), pids, tuple(columns))
