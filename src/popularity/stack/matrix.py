"""From named features and dense blocks to the matrix that trees split, with encoders fitted on fit rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field
from sklearn.decomposition import PCA

from popularity.core.config import Section
from popularity.core.errors import ContractError
from popularity.features import CATEGORIES, TEXT, FeatureColumn
from popularity.stack import oof_ridge_characters
from popularity.stack.columns import MatrixColumn, metadata_columns
from popularity.stack.feature_blocks import Blocks, PrototypePart, dense_parts, part_rows, scalar_columns, scalar_names
from popularity.stack.neighbours import COLUMNS, FROM_LABELS, TIME, Neighbours, users_and_times
from popularity.stack.oof_ridge import FloatArray, BlockRidge, fit_oof_ridge
from popularity.stack.oof_ridge_characters import CharacterRidge, fit_oof_ridge_characters


@dataclass(frozen=True)
class Matrix:
    """Values (n, columns) float32 with NaN for missing, and what each column is.

    Args:
        values: row i belongs to pids[i].
        pids: in canonical order.
        columns: of the values.
    """

    values: FloatArray
    pids: Sequence[str]
    columns: tuple[MatrixColumn, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The columns' unique names."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """The block each column came from."""
        return tuple(column.block for column in self.columns)

    @cached_property
    def categorical(self) -> tuple[int, ...]:
        """Positions of the columns that hold category codes."""
        return tuple(place for place, column in enumerate(self.columns) if column.kind == "category")


@dataclass(frozen=True)
class CategoryEncoder:
    """Codes of category values, by name of the column.

    Code 0 stands for values with fewer than `min_posts` fit rows and, when it is applied, for unseen
    ones: what is learned on the rare carries over to the unseen.
    """

    codes: Mapping[str, Mapping[str, int]]

    @classmethod
    def fit(cls, features: pl.DataFrame, columns: Sequence[str], min_posts: int) -> CategoryEncoder:
        """Codes 1, 2, ... for frequent values, in the order of their text; `features` holds fit rows only."""
        codes: dict[str, dict[str, int]] = {}
        for column in columns:
            counts = features[column].drop_nulls().value_counts()
            frequent = counts.filter(pl.col("count") >= min_posts)[column].sort().to_list()
            codes[column] = {value: code for code, value in enumerate(frequent, start=1)}
        return cls(codes)

    def apply(self, features: pl.DataFrame) -> pl.DataFrame:
        """The encoded columns as float codes; null stays null."""
        return features.select(
            pl.when(pl.col(column).is_not_null())
            .then(pl.col(column).replace_strict(dict(codes), default=0, return_dtype=pl.Float32))
            .alias(column)
            for column, codes in self.codes.items()
        )


NO_VARIANCE = 1e-6  # of the first component's: what float32 cannot tell from none


@dataclass(frozen=True)
class BlockReducer:
    """PCA of a part, fitted without labels on fit rows; `components` None passes it on raw.

    Args:
        mean: (d,) of the fit rows.
        components: (k, d) principal axes, by falling variance.
    """

    mean: FloatArray
    components: FloatArray | None

    @classmethod
    def fit(cls, values: npt.NDArray[np.floating[Any]], components: int) -> BlockReducer:
        """From the (n, d) vectors of the fit rows: at most `components` axes, 0 keeps the raw columns."""
        width = values.shape[1]
        if len(values) < 2:
            raise ContractError(
                f"a dense block has {len(values)} vectors among the fit rows: leave it out of stack.columns.feature_blocks "
                "(a part of the prototype block: out of stack.columns.prototype_parts)"
            )
        if components == 0:
            return cls(np.zeros(width, dtype=np.float32), None)
        count = min(components, width, len(values))
        fitted = PCA(count, svd_solver="covariance_eigh").fit(np.asarray(values, dtype=np.float32))
        # Vectors that are constant within a class span few directions; the rest would be rounding noise to split on.
        variance = fitted.explained_variance_
        kept = max(1, int((variance > NO_VARIANCE * variance[0]).sum()))
        return cls(fitted.mean_.astype(np.float32), fitted.components_[:kept].astype(np.float32))

    def apply(self, values: npt.NDArray[np.floating[Any]]) -> FloatArray:
        """(n, k) projections of (n, d) vectors."""
        vectors = np.asarray(values, dtype=np.float32)
        if self.components is None:
            return vectors
        return np.asarray((vectors - self.mean) @ self.components.T, dtype=np.float32)


FeatureGroup = Literal["history", "words", "rhythm", "class_time", "neighbours", "image", "user_text"]


@dataclass(frozen=True)
class ColumnParams(Section):
    """How features and blocks become columns."""

    feature_blocks: Annotated[tuple[Literal["metadata", "image", "text", "prototype"], ...], Field(min_length=1)]
    prototype_parts: tuple[PrototypePart, ...]
    feature_groups: tuple[FeatureGroup, ...]
    n_components: Annotated[int, Field(ge=0)]
    oof_ridge: tuple[Literal["image", "text", "characters", "prototype"], ...]
    oof_ridge_folds: Annotated[int, Field(ge=2)]
    oof_ridge_alphas: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    oof_ridge_character_alphas: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    uid_category: bool
    category_min_posts: Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class DenseEncoder:
    """What was fitted on one dense block.

    Args:
        reducers: of each part, in the order of the columns.
        scalars: names of the columns that are taken as they are.
        head: on all parts side by side, or None.
        neighbours: in the components of all parts, or None.
        characters: the head on the characters of the texts, of the block `text` alone, or None.
    """

    reducers: Mapping[str, BlockReducer]
    scalars: tuple[str, ...]
    head: BlockRidge | None
    neighbours: Neighbours | None
    characters: CharacterRidge | None

    @classmethod
    def fit(
        cls,
        name: str,
        features: pl.DataFrame,
        label: npt.NDArray[np.float64],
        blocks: Blocks,
        params: ColumnParams,
    ) -> tuple[DenseEncoder, dict[str, FloatArray]]:
        """The encoder of the block `name`, and by column the heads' out-of-fold predictions (n,) of the fit rows."""
        pids = features["pid"].to_list()
        parts = {part: part_rows(blocks, part, pids) for part in dense_parts(name, params.prototype_parts)}
        reducers = {
            part: BlockReducer.fit(vectors[~np.isnan(vectors).any(axis=1)], params.n_components)
            for part, vectors in parts.items()
        }
        out_of_fold: dict[str, FloatArray] = {}
        head = characters = None
        if parts and name in params.oof_ridge:
            head, out_of_fold[f"{name}_head"] = fit_oof_ridge(
                np.hstack(list(parts.values())),
                label,
                features["uid"].to_numpy(),
                folds=params.oof_ridge_folds,
                penalties=params.oof_ridge_alphas,
                seed=0,
            )
        if name == "text" and "characters" in params.oof_ridge:
            characters, out_of_fold[oof_ridge_characters.NAME] = fit_oof_ridge_characters(
                features[TEXT].to_list(),
                label,
                features["uid"].to_numpy(),
                folds=params.oof_ridge_folds,
                penalties=params.oof_ridge_character_alphas,
                seed=0,
            )
        neighbours = None
        if parts and "neighbours" in params.feature_groups:
            reduced = [reducers[part].apply(vectors) for part, vectors in parts.items()]
            neighbours = Neighbours.fit(np.hstack(reduced), label, *users_and_times(features))
        scalars = scalar_names(name, blocks, params.prototype_parts)
        return cls(reducers, scalars, head, neighbours, characters), out_of_fold

    def columns(
        self, name: str, blocks: Blocks, features: pl.DataFrame, out_of_fold: Mapping[str, FloatArray]
    ) -> tuple[list[MatrixColumn], list[FloatArray]]:
        """The block's columns and their values [(n, k), ...]; `out_of_fold` replaces predictions of the heads."""
        pids = features["pid"].to_list()
        parts = {part: part_rows(blocks, part, pids) for part in self.reducers}
        reduced = {part: self.reducers[part].apply(vectors) for part, vectors in parts.items()}
        columns = [
            MatrixColumn(f"{part}_component_{index:03d}", name, "component", None, fitted_on_labels=False)
            for part, values in reduced.items()
            for index in range(values.shape[1])
        ]
        group = name if name == "picture" else None
        single = [
            (MatrixColumn(column, name, "scalar", group, fitted_on_labels=False), values)
            for column, values in scalar_columns(name, self.scalars, blocks, pids).items()
        ]
        if self.head is not None:
            column, together = f"{name}_head", np.hstack(list(parts.values()))
            values = out_of_fold[column] if column in out_of_fold else self.head.predict(together)
            single.append((MatrixColumn(column, name, "head", None, fitted_on_labels=True), values))
        if self.characters is not None:
            column = oof_ridge_characters.NAME
            given = out_of_fold.get(column)
            values = self.characters.predict(features[TEXT].to_list()) if given is None else given
            single.append((MatrixColumn(column, name, "head", None, fitted_on_labels=True), values))
        if self.neighbours is not None:
            found = self.neighbours.columns(np.hstack(list(reduced.values())), *users_and_times(features))
            single += [
                (MatrixColumn(f"{name}_{what}", name, "neighbours", "neighbours", what in FROM_LABELS), values)
                for what, values in zip(COLUMNS, found.T, strict=True)
            ]
        columns += [column for column, _ in single]
        return columns, [*reduced.values(), *(values[:, None] for _, values in single)]


@dataclass(frozen=True)
class MatrixEncoder:
    """Everything fitted that turns features and blocks into a Matrix."""

    numeric: tuple[str, ...]
    categories: CategoryEncoder
    dense: Mapping[str, DenseEncoder]  # by block

    @classmethod
    def fit(
        cls, features: pl.DataFrame, label: npt.NDArray[np.float64], blocks: Blocks, params: ColumnParams
    ) -> tuple[MatrixEncoder, Matrix]:
        """The encoder fitted on `features` (pid, features), which hold the fit rows of a fold, and their matrix.

        The matrix of the fit rows comes from here and not from `apply`: its head columns are out of fold.
        """
        metadata = "metadata" in params.feature_blocks
        categories = [column for column in CATEGORIES if params.uid_category or column != "uid"]
        seen = (None, *params.feature_groups)
        numeric = tuple(
            column
            for column in features.columns
            if metadata and column not in ("pid", TIME, *CATEGORIES, TEXT) and FeatureColumn.named(column).group in seen
        )
        encoder = CategoryEncoder.fit(features, categories if metadata else (), params.category_min_posts)
        dense: dict[str, DenseEncoder] = {}
        out_of_fold: dict[str, dict[str, FloatArray]] = {}
        for name in (*params.feature_blocks, *(("picture",) if "image" in params.feature_groups else ())):
            if name != "metadata":
                dense[name], out_of_fold[name] = DenseEncoder.fit(name, features, label, blocks, params)
        fitted = cls(numeric, encoder, dense)
        return fitted, fitted._matrix(features, blocks, out_of_fold)

    def apply(self, features: pl.DataFrame, blocks: Blocks) -> Matrix:
        """The matrix of posts that were not fitted on: `features` (pid, features), in its row order."""
        return self._matrix(features, blocks, {})

    def _matrix(
        self, features: pl.DataFrame, blocks: Blocks, out_of_fold: Mapping[str, Mapping[str, FloatArray]]
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
