"""The feature group `user_text`: users' descriptions of themselves, in a few columns. It reads no label.

Most users of a test part have no earlier post, but their descriptions are published. Form A of the user file holds
vectors of them, form B the texts. Both are reduced to the directions in which users differ most.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits

from popularity.core.arrays import Float32Array
from popularity.core.contracts import POSTS, USERS, empty_table
from popularity.features.text_components import DECIMALS, principal_axes, text_vectorizer

TEXTS = ("user_description", "location_description")
VECTORS = ("description_vector", "location_vector")
GROUP = "user_text"


def user_text_features(posts: pl.DataFrame, users: pl.DataFrame, components: int, seed: int) -> pl.DataFrame:
    """Returns (pid, `user_text.00`, ...), sorted by pid; null for a user without a description.

    Args:
        posts: contract POSTS, the train and valid rows; a user's texts are those of the first post by pid.
        users: contract USERS; if one of these users has vectors, texts are not read.
        components: columns at most; fewer if the texts span fewer directions, none without texts.
        seed: of the decomposition.
    """
    posts = posts.sort(POSTS.key)
    described = posts.select("uid", *TEXTS).unique("uid", keep="first", maintain_order=True)
    described = described.join(users, on="uid", how="left", validate="1:1", maintain_order="left").sort("uid")
    values = np.concatenate([_stacked(described[name]) for name in VECTORS], axis=1)
    matrix: Any = values if values.any() else _weighted_words(described)
    known = np.asarray(abs(matrix).sum(axis=1)).ravel() > 0
    count = min(components, int(known.sum()) - 1, matrix.shape[1] - 1)
    if count < 1:
        return posts.select("pid")
    axes = principal_axes(matrix[known], count, seed)
    with threadpool_limits(1, user_api="blas"):  # more threads sum in another order
        reduced = np.round(matrix[known] @ axes.T.astype(np.float64), DECIMALS)
    names = [f"{GROUP}.{index:02d}" for index in range(len(axes))]
    reduced_users = described.filter(pl.Series(known)).select(
        "uid", *(pl.Series(name, reduced[:, index], pl.Float32) for index, name in enumerate(names))
    )
    return (
        posts.select("pid", "uid")
        .join(reduced_users, on="uid", how="left", validate="m:1", maintain_order="left")
        .drop("uid")
    )


def known_user_text(posts: pl.DataFrame, known: pl.DataFrame, context: pl.DataFrame) -> pl.DataFrame:
    """Returns (pid, columns of the group) of later posts, sorted by pid: those of the user's posts in `context`.

    Args:
        posts, known: contract POSTS.
        context: (pid, context features) of `known` posts, as `featurize` wrote them.
    """
    posts = posts.select("pid", "uid").sort("pid")
    of_users = context.select("pid", f"^{GROUP}\\..*$").join(known.select("pid", "uid"), on="pid", validate="1:1")
    of_users = of_users.sort("pid").unique("uid", keep="first").drop("pid")
    return posts.join(of_users, on="uid", how="left", validate="m:1", maintain_order="left").drop("uid")


def no_users() -> pl.DataFrame:
    """Returns the table of a data set whose user file holds no vectors."""
    return empty_table(USERS)


def _stacked(vectors: pl.Series) -> Float32Array:
    """(n, width) of lists of one width, zeros for null; (n, 0) of nulls."""
    width = int(vectors.list.len().max() or 0)  # type: ignore[arg-type]
    values = np.zeros((len(vectors), width), dtype=np.float32)
    if width:
        values[vectors.is_not_null().to_numpy()] = vectors.drop_nulls().list.to_array(width).to_numpy()
    return values


def _weighted_words(users: pl.DataFrame) -> Any:
    """(n, words) TF-IDF of the users' texts; (n, 0) where no word occurs twice."""
    texts = users.select(pl.concat_str(TEXTS, separator=" ", ignore_nulls=True))
    try:
        return text_vectorizer().fit_transform(texts.to_series().to_list())
    except ValueError:
        return np.zeros((users.height, 0), dtype=np.float32)
