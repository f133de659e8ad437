"""How large an error to expect of a prediction: what makes an interval wide for one post and narrow for another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import lightgbm as lgb
import numpy as np

from popularity.core.atomic import reading, write_json, write_text
from popularity.stack.matrix import Matrix
from popularity.validation.inner_cv import Array, Rows

# Few and shallow trees: absolute errors are mostly noise, and conformal intervals need no more than an order of posts
# from sure to unsure. The wide leaves and the small step keep one odd error from making a region.
TREES = 100
SETTINGS = {
    "objective": "regression",  # the mean of |error|, which is the expected size
    "learning_rate": 0.05,
    "num_leaves": 7,
    "min_data_in_leaf": 40,
    "feature_fraction": 0.5,
    "lambda_l2": 10.0,
}
FLOOR = 0.25  # share of the mean error below which no scale falls: a post believed certain would have no width
LEAST = 0.01  # label units: the two decimals of a published label


@dataclass(frozen=True)
class ScaleModel:
    """Expected |label - prediction| of a post, from its metadata columns and its prediction.

    Args:
        booster: None: every post has the scale `mean`.
        mean: of the absolute errors that it was fitted on, in label units.
    """

    booster: lgb.Booster | None
    mean: float

    @classmethod
    def fit(cls, matrix: Matrix, rows: Rows, prediction: Array, label: Array, *, seed: int, threads: int) -> ScaleModel:
        """From out-of-fold predictions (m,) of some fit rows.

        Args:
            matrix: of all fit rows (n, columns).
            rows: (m,) positions of the predicted ones; without one the scale is the same for all, the mean distance
                of the labels to their median.
            prediction: (m,) in label units.
            label: (n,) of all fit rows.
            seed: of the columns drawn for a tree.
            threads: part of the result, as in the learners.
        """
        if not len(rows):
            return cls(None, float(np.abs(label - np.median(label)).mean()))
        errors = np.abs(label[rows] - prediction)
        design, categorical = _design(matrix, prediction, rows)
        booster = lgb.train(
            {
                **SETTINGS,
                "seed": seed,
                "num_threads": threads,
                "deterministic": True,
                "force_row_wise": True,
                "verbosity": -1,
            },
            lgb.Dataset(design, errors, categorical_feature=categorical, params={"verbosity": -1}),
            num_boost_round=TREES,
        )
        return cls(booster, float(errors.mean()))

    def predict(self, matrix: Matrix, prediction: Array) -> Array:
        """(n,) scales in label units, above 0, of posts with predictions (n,) in label units."""
        if self.booster is None:
            expected = np.full(len(prediction), self.mean)
        else:
            expected = np.asarray(self.booster.predict(_design(matrix, prediction)[0]))
        above: Array = np.maximum(expected, max(FLOOR * self.mean, LEAST))
        return above

    def save(self, folder: Path) -> None:
        """Writes scale.json and, where there are trees, scale.txt into `folder`."""
        write_json(folder / "scale.json", {"mean": self.mean})
        if self.booster is not None:
            write_text(folder / "scale.txt", self.booster.model_to_string())

    @classmethod
    def load(cls, folder: Path) -> ScaleModel:
        """The model that `save` wrote."""
        trees = folder / "scale.txt"
        with reading(trees, lgb.basic.LightGBMError):
            booster = lgb.Booster(model_str=trees.read_text(encoding="utf-8")) if trees.exists() else None
        return cls(booster, json.loads((folder / "scale.json").read_text(encoding="utf-8"))["mean"])


def _design(matrix: Matrix, prediction: Array, rows: Rows | None = None) -> tuple[Array, list[int]]:
    """(n, metadata columns + 1) with the prediction last, and the positions of categories; `rows`: only those."""
    metadata = [place for place, block in enumerate(matrix.blocks) if block == "metadata"]
    values = matrix.values[:, metadata]
    categorical = [metadata.index(place) for place in matrix.categorical]
    return np.column_stack([values if rows is None else values[rows], prediction]), categorical
