"""The feature group `neighbours`: labels of the nearest earlier posts in a dense block.

Nearness is the cosine of a block's components. Only earlier train posts of other users count: most valid posts are by
users without a train row. So the columns of train rows are out of fold and made in the same way as those of valid rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from popularity.core.arrays import Float32Array, Float64Array, Int64Array, normalize_rows

TIME = "posted_at"  # in tables of features; no column of the matrix
N_NEAREST = 20  # posts that are averaged
TEMPERATURE = 0.1  # of the weights exp(cosine / TEMPERATURE)
MAX_POSTS = 32_768  # train posts that are compared with; of more a draw, or the time would grow with their square
CHUNK_ROWS = 128  # 16 MiB of cosines with MAX_POSTS, and twice that for their order
COLUMNS = ("neighbours.mean", "neighbours.weighted", "neighbours.nearest", "neighbours.distance")
FROM_LABELS = COLUMNS[:2]  # the others are distances


@dataclass(frozen=True)
class Neighbours:
    """The train posts that have a vector, or MAX_POSTS of them, drawn at random.

    Args:
        mean: (d,) of their components, subtracted from every vector.
        vectors: (n, d) of length 1.
        label: (n,).
        users: (n,) text.
        posted_at: (n,) microseconds.
    """

    mean: Float32Array
    vectors: Float32Array
    label: Float64Array
    users: npt.NDArray[np.str_]
    posted_at: Int64Array

    @classmethod
    def fit(
        cls, components: Float32Array, label: Float64Array, users: npt.NDArray[np.object_], posted_at: Int64Array
    ) -> Neighbours:
        """The neighbours of all posts, from the train rows.

        Args:
            components: (n, d); NaN where a post has no vector.
            label: (n,).
            users: (n,).
            posted_at: (n,) microseconds.
        """
        known = np.flatnonzero(~np.isnan(components).any(axis=1))
        if len(known) > MAX_POSTS:
            known = np.sort(np.random.default_rng(0).choice(known, MAX_POSTS, replace=False))
        mean = components[known].mean(axis=0)
        directions = _directions(components[known] - mean)
        return cls(mean, directions, label[known], users[known].astype(np.str_), posted_at[known])

    def columns(self, components: Float32Array, users: npt.NDArray[np.object_], posted_at: Int64Array) -> Float32Array:
        """(m, 4) in the order of COLUMNS.

        The mean label of the N_NEAREST earlier posts of other users, their mean weighted by nearness, 1 - cosine to
        the nearest and its mean over the N_NEAREST. NaN without a vector or without an earlier post of another user.

        Args:
            components: (m, d).
            users: (m,) of the posts.
            posted_at: (m,) microseconds; posts of the same time are not earlier.
        """
        result = np.full((len(components), len(COLUMNS)), np.nan, dtype=np.float32)
        known = np.flatnonzero(~np.isnan(components).any(axis=1))
        names, codes = np.unique(self.users, return_inverse=True)
        code_of = {name: code for code, name in enumerate(names.tolist())}
        own = np.array([code_of.get(str(user), -1) for user in users[known]], dtype=np.int64)
        for start in range(0, len(known), CHUNK_ROWS):
            rows = known[start : start + CHUNK_ROWS]
            cosines = _directions(components[rows] - self.mean) @ self.vectors.T
            cosines[own[start : start + CHUNK_ROWS, None] == codes] = -np.inf
            cosines[posted_at[rows][:, None] <= self.posted_at] = -np.inf
            result[rows] = self._summary(cosines)
        return result

    def _summary(self, cosines: Float32Array) -> Float32Array:
        count = min(N_NEAREST, cosines.shape[1])
        nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        near = np.take_along_axis(cosines, nearest, axis=1).astype(np.float64)
        order = np.lexsort((nearest, -near), axis=1)  # so the sums do not depend on the order of the partition
        nearest, near = np.take_along_axis(nearest, order, axis=1), np.take_along_axis(near, order, axis=1)
        others = np.isfinite(near)
        near = np.where(others, near, -1.0)
        weight = np.where(others, np.exp((near - near[:, :1]) / TEMPERATURE), 0.0)
        label = self.label[nearest]
        with np.errstate(invalid="ignore", divide="ignore"):
            columns = (
                (label * others).sum(axis=1) / others.sum(axis=1),
                (label * weight).sum(axis=1) / weight.sum(axis=1),
                np.where(others[:, 0], 1 - near[:, 0], np.nan),
                ((1 - near) * others).sum(axis=1) / others.sum(axis=1),
            )
        return np.stack(columns, axis=1).astype(np.float32)


def users_and_times(features: pl.DataFrame) -> tuple[npt.NDArray[np.object_], Int64Array]:
    """Users (n,) and times (n,) in microseconds of the posts of a table of features."""
    return features["uid"].to_numpy(), features[TIME].to_physical().cast(pl.Int64).to_numpy()


def _directions(vectors: Float32Array) -> Float32Array:
    """(n, d) scaled to length 1."""
    return normalize_rows(vectors, dtype=np.float32, min_norm=float(np.finfo(np.float32).tiny))
