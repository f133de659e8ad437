"""From named features and dense blocks to the matrix that trees split, with encoders fitted on fit rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field
from sklearn.decomposition import PCA

from popularity.config import Section
from popularity.errors import ContractError
from popularity.features import CATEGORIES
from popularity.schema import Block
from popularity.stack.heads import FloatArray, RidgeHead, fit_head


@dataclass(frozen=True)
class Matrix:
    """Values (n, columns) float32 with NaN for missing, and what each column is.

    Args:
        values: row i belongs to pids[i].
        pids: in canonical order.
        names: unique column names.
        blocks: the block each column came from.
        categorical: positions of the columns that hold category codes.
    """

    values: FloatArray
    pids: Sequence[str]
    names: tuple[str, ...]
    blocks: tuple[str, ...]
    categorical: tuple[int, ...]


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


@dataclass(frozen=True)
class BlockReducer:
    """PCA of a dense block, fitted without labels on fit rows; `components` None passes the block on raw.

    Args:
        mean: (d,) of the fit rows.
        components: (k, d) principal axes, by falling variance.
    """

    mean: FloatArray
    components: FloatArray | None

    @classmethod
    def fit(cls, values: npt.NDArray[np.floating[Any]], components: int) -> BlockReducer:
        """From the (n, d) vectors of the fit rows; `components` = 0 keeps the raw columns."""
        width = values.shape[1]
        if len(values) < 2:
            raise ContractError(
                f"a dense block has {len(values)} vectors among the fit rows: leave it out of stack.columns.blocks"
            )
        if components == 0:
            return cls(np.zeros(width, dtype=np.float32), None)
        count = min(components, width, len(values))
        fitted = PCA(count, svd_solver="covariance_eigh").fit(np.asarray(values, dtype=np.float32))
        return cls(fitted.mean_.astype(np.float32), fitted.components_.astype(np.float32))

    def apply(self, values: npt.NDArray[np.floating[Any]]) -> FloatArray:
        """(n, k) projections of (n, d) vectors."""
        vectors = np.asarray(values, dtype=np.float32)
        if self.components is None:
            return vectors
        return np.asarray((vectors - self.mean) @ self.components.T, dtype=np.float32)


def block_scalars(name: str, blocks: Mapping[str, Block], pids: Sequence[str]) -> dict[str, FloatArray]:
    """Named scalars (n,) of a dense block, kept beside its components.

    image: the vector's norm (how much the encoder responds). text: cosine of title and tags.
    """
    if name == "image":
        vectors = dense_rows(blocks, "image", pids)
        return {"image_norm": np.linalg.norm(vectors, axis=1).astype(np.float32)}
    if name == "text":
        title, tags = (dense_rows(blocks, part, pids) for part in ("title", "tags"))
        norms = np.linalg.norm(title, axis=1) * np.linalg.norm(tags, axis=1)
        return {"title_tags_cosine": ((title * tags).sum(axis=1) / np.maximum(norms, 1e-6)).astype(np.float32)}
    return {}


# Which stored vectors, side by side, make up a dense block of the stack.
BLOCK_PARTS = {"image": ("image",), "text": ("title", "tags")}


def dense_rows(blocks: Mapping[str, Block], name: str, pids: Sequence[str]) -> FloatArray:
    """(n, d) float32 vectors of `pids`; a post without a vector is a row of NaN."""
    block = blocks[name]
    rows = block.rows(pids)
    result = np.full((len(pids), block.values.shape[1]), np.nan, dtype=np.float32)
    known = rows >= 0
    result[known] = block.values[rows[known]]
    return result


def block_rows(blocks: Mapping[str, Block], name: str, pids: Sequence[str]) -> FloatArray:
    """(n, sum of d) vectors of a stack block: its parts side by side."""
    return np.hstack([dense_rows(blocks, part, pids) for part in BLOCK_PARTS[name]])


@dataclass(frozen=True)
class EncoderParams(Section):
    """How features and blocks become columns."""

    blocks: Annotated[tuple[Literal["metadata", "image", "text"], ...], Field(min_length=1)]
    components: Annotated[int, Field(ge=0)]
    heads: tuple[Literal["image", "text"], ...]
    head_folds: Annotated[int, Field(ge=2)]
    head_penalties: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    uid_category: bool
    category_min_posts: Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class MatrixEncoder:
    """Everything fitted that turns features and blocks into a Matrix."""

    numeric: tuple[str, ...]
    categories: CategoryEncoder
    reducers: Mapping[str, BlockReducer]
    heads: Mapping[str, RidgeHead]

    @classmethod
    def fit(
        cls, features: pl.DataFrame, label: npt.NDArray[np.float64], blocks: Mapping[str, Block], params: EncoderParams
    ) -> tuple[MatrixEncoder, Matrix]:
        """The encoder fitted on `features` (pid, features), which hold the fit rows of a fold, and their matrix.

        The matrix of the fit rows comes from here and not from `apply`: its head columns are out of fold.
        """
        metadata = "metadata" in params.blocks
        categories = [column for column in CATEGORIES if params.uid_category or column != "uid"]
        numeric = tuple(column for column in features.columns if column not in ("pid", *CATEGORIES)) if metadata else ()
        encoder = CategoryEncoder.fit(features, categories if metadata else (), params.category_min_posts)
        reducers: dict[str, BlockReducer] = {}
        heads: dict[str, RidgeHead] = {}
        out_of_fold: dict[str, FloatArray] = {}
        for name in params.blocks:
            if name in BLOCK_PARTS:
                vectors = block_rows(blocks, name, features["pid"].to_list())
                reducers[name] = BlockReducer.fit(vectors[~np.isnan(vectors).any(axis=1)], params.components)
                if name in params.heads:
                    heads[name], out_of_fold[name] = fit_head(
                        vectors,
                        label,
                        features["uid"].to_numpy(),
                        folds=params.head_folds,
                        penalties=params.head_penalties,
                        seed=0,
                    )
        fitted = cls(numeric, encoder, reducers, heads)
        return fitted, fitted._matrix(features, blocks, out_of_fold)

    def apply(self, features: pl.DataFrame, blocks: Mapping[str, Block]) -> Matrix:
        """The matrix of posts that were not fitted on: `features` (pid, features), in its row order."""
        return self._matrix(features, blocks, None)

    def _matrix(
        self, features: pl.DataFrame, blocks: Mapping[str, Block], out_of_fold: Mapping[str, FloatArray] | None
    ) -> Matrix:
        pids = features["pid"].to_list()
        codes = self.categories.apply(features) if self.categories.codes else pl.DataFrame()
        parts: list[FloatArray] = []
        names: list[str] = []
        origin: list[str] = []
        for frame in (codes, features.select(pl.col(self.numeric).cast(pl.Float32))):
            if frame.width:
                parts.append(frame.to_numpy().astype(np.float32, copy=False))
                names += frame.columns
                origin += ["metadata"] * frame.width
        for name, reducer in self.reducers.items():
            vectors = block_rows(blocks, name, pids)
            reduced = reducer.apply(vectors)
            scalars = block_scalars(name, blocks, pids)
            if name in self.heads:
                head = self.heads[name].predict(vectors) if out_of_fold is None else out_of_fold[name]
                scalars[f"{name}_head"] = head
            parts += [reduced, *(column[:, None] for column in scalars.values())]
            names += [f"{name}_component_{index:03d}" for index in range(reduced.shape[1])] + list(scalars)
            origin += [name] * (reduced.shape[1] + len(scalars))
        return Matrix(np.hstack(parts), pids, tuple(names), tuple(origin), tuple(range(codes.width)))
