"""Text components: TF-IDF of title and tags reduced by truncated SVD (latent semantic analysis), without labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy.sparse.linalg import svds
from sklearn.feature_extraction.text import TfidfVectorizer
from threadpoolctl import threadpool_limits

from popularity.core.arrays import Float32Array
from popularity.core.contracts import Column, Contract, empty_table

DECIMALS = 7  # of the entries of an axis, which has length 1
NO_VARIANCE = 1e-6  # of the first singular value
TEXT_COMPONENTS = Contract(
    "text components",
    {"word": Column(pl.String), "weight": Column(pl.Float32)},  # then the word's weight in every component
    key=("word",),
    extra=True,
)


@dataclass(frozen=True)
class TextReducer:
    """The fitted reduction of texts to a few columns.

    Args:
        table: contract TEXT_COMPONENTS: the words, their inverse document frequencies, and a column for each component;
            fewer components than requested if there are fewer words, none if no word occurs twice.
    """

    table: pl.DataFrame

    @classmethod
    def fit(cls, posts: pl.DataFrame, components: int, seed: int) -> TextReducer:
        """Returns the reduction fitted on `posts`; 0 components give no column.

        Args:
            posts: contract POSTS, the train and valid rows.
            components: columns at most.
            seed: of the decomposition.
        """
        vectorizer = text_vectorizer()
        none = empty_table(TEXT_COMPONENTS)
        try:
            matrix = vectorizer.fit_transform(_texts(posts.sort("pid")))
        except ValueError:  # no word occurs twice
            return cls(none)
        count = min(components, min(matrix.shape) - 1)
        if count < 1:
            return cls(none)
        axes = principal_axes(matrix, count, seed)
        words = pl.DataFrame({"word": vectorizer.get_feature_names_out().tolist(), "weight": vectorizer.idf_})
        return cls(
            words.with_columns(pl.Series(f"text_component_{index:02d}", axis) for index, axis in enumerate(axes))
        )

    def apply(self, posts: pl.DataFrame) -> pl.DataFrame:
        """Returns (pid, the components) of any posts, sorted by pid."""
        posts = posts.sort("pid")
        names = self.table.columns[len(TEXT_COMPONENTS.columns) :]
        if not names:
            return posts.select("pid")
        vectorizer = TfidfVectorizer(vocabulary=self.table["word"].to_list(), sublinear_tf=True, dtype=np.float32)
        vectorizer.idf_ = self.table["weight"].to_numpy()
        reduced = vectorizer.transform(_texts(posts)) @ self.table.select(names).to_numpy()
        return posts.select(
            "pid", *(pl.Series(name, reduced[:, index], pl.Float64) for index, name in enumerate(names))
        )


def principal_axes(matrix: Any, count: int, seed: int) -> Float32Array:
    """The first right singular vectors (k, width) of a matrix, by falling singular value; k <= `count`.

    The same bytes whatever the number of threads: converged to machine precision (ARPACK from a fixed start, in float64
    on one BLAS thread), the entry of largest size positive, rounded to DECIMALS. Directions whose singular value is
    below NO_VARIANCE of the first, which are rounding noise, are left out.

    Args:
        matrix: (n, width) dense or sparse, not zero.
        count: at most, below n and width.
        seed: of the start.
    """
    start = np.random.default_rng(seed).uniform(-1, 1, min(matrix.shape))
    with threadpool_limits(1, user_api="blas"):
        _, values, vectors = svds(matrix.astype(np.float64), k=count, v0=start, return_singular_vectors="vh")
    order = np.argsort(-values, kind="stable")
    axes = np.round(vectors[order[values[order] > NO_VARIANCE * values.max()]], DECIMALS)
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    return np.asarray(axes * signs[:, None] + 0.0, dtype=np.float32)


def text_vectorizer() -> TfidfVectorizer:
    """Returns an unfitted TF-IDF of the words that occur twice; fitting raises ValueError if there is none."""
    return TfidfVectorizer(min_df=2, sublinear_tf=True, max_features=50_000, dtype=np.float32)


def _texts(posts: pl.DataFrame) -> list[str]:
    return (posts["title"] + " " + posts["tags"]).to_list()
