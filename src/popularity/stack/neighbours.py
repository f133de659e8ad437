"""What the nearest fit posts in a dense block earned: signals that follow no axis of the space.

The space is that of a block's components, by cosine. A post's own user never counts among its neighbours: most scored
posts are by users never seen, and so the columns of fit rows are out of fold and made as those of scored rows are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from popularity.arrays import Float32Array, Float64Array, normalize_rows

NEAREST = 20  # posts that are averaged
SHARPNESS = 0.1  # of the weights exp(cosine / SHARPNESS)
ROWS = 128  # asked at a time: with 300,000 fit posts 150 MiB of cosines, and twice that for their order
COLUMNS = ("neighbours.mean", "neighbours.weighted", "neighbours.nearest", "neighbours.distance")


@dataclass(frozen=True)
class Neighbours:
    """The fit posts that have a vector.

    Args:
        mean: (d,) of their components, taken off every vector.
        vectors: (n, d) of length 1.
        label: (n,).
        users: (n,) text.
    """

    mean: Float32Array
    vectors: Float32Array
    label: Float64Array
    users: npt.NDArray[np.str_]

    @classmethod
    def fit(cls, components: Float32Array, label: Float64Array, users: npt.NDArray[np.object_]) -> Neighbours:
        """From the components (n, d) of the fit rows, NaN where a post has no vector, their labels and users."""
        known = ~np.isnan(components).any(axis=1)
        mean = components[known].mean(axis=0)
        return cls(mean, _directions(components[known] - mean), label[known], users[known].astype(np.str_))

    def columns(self, components: Float32Array, users: npt.NDArray[np.object_]) -> Float32Array:
        """(m, 4) in the order of COLUMNS for components (m, d) of posts by `users` (m,).

        The mean label of the NEAREST posts of other users, the mean weighted by nearness, 1 - cosine to the nearest
        and its mean over the NEAREST. NaN without a vector or without a post of another user.
        """
        result = np.full((len(components), len(COLUMNS)), np.nan, dtype=np.float32)
        known = np.flatnonzero(~np.isnan(components).any(axis=1))
        names, codes = np.unique(self.users, return_inverse=True)
        place = {name: code for code, name in enumerate(names.tolist())}
        own = np.array([place.get(str(user), -1) for user in users[known]], dtype=np.int64)
        for start in range(0, len(known), ROWS):
            rows = known[start : start + ROWS]
            cosines = _directions(components[rows] - self.mean) @ self.vectors.T
            cosines[own[start : start + ROWS, None] == codes] = -np.inf
            result[rows] = self._summary(cosines)
        return result

    def _summary(self, cosines: Float32Array) -> Float32Array:
        count = min(NEAREST, cosines.shape[1])
        nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        near = np.take_along_axis(cosines, nearest, axis=1).astype(np.float64)
        order = np.lexsort((nearest, -near), axis=1)  # sums then do not depend on how the partition left them
        nearest, near = np.take_along_axis(nearest, order, axis=1), np.take_along_axis(near, order, axis=1)
        others = np.isfinite(near)
        near = np.where(others, near, -1.0)
        weight = np.where(others, np.exp((near - near[:, :1]) / SHARPNESS), 0.0)
        label = self.label[nearest]
        with np.errstate(invalid="ignore", divide="ignore"):
            columns = (
                (label * others).sum(axis=1) / others.sum(axis=1),
                (label * weight).sum(axis=1) / weight.sum(axis=1),
                np.where(others[:, 0], 1 - near[:, 0], np.nan),
                ((1 - near) * others).sum(axis=1) / others.sum(axis=1),
            )
        return np.stack(columns, axis=1).astype(np.float32)


def _directions(vectors: Float32Array) -> Float32Array:
    """(n, d) scaled to length 1."""
    return normalize_rows(vectors, dtype=np.float32, min_norm=float(np.finfo(np.float32).tiny))
