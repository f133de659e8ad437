"""The error scale: the expected absolute error of a post's prediction, which sets the width of its interval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import lightgbm as lgb
import numpy as np

from popularity.core.arrays import Float64Array, Int64Array
from popularity.core.atomic import read_json, reading, write_json, write_text
from popularity.stack.matrix import Matrix

# Few and shallow trees: absolute errors are mostly noise, and conformal intervals need only the order of posts from
# small to large errors. The large leaves and the low rate keep one odd error from making a region.
N_TREES = 100
LIGHTGBM_PARAMS = {
    "objective": "regression",  # the mean of |error|, which is the expected size
    "learning_rate": 0.05,
    "num_leaves": 7,
    "min_data_in_leaf": 40,
    "feature_fraction": 0.5,
    "lambda_l2": 10.0,
}
MIN_RELATIVE_SCALE = 0.25  # of the mean error: otherwise an interval could have no width
MIN_SCALE = 0.01  # label units: published labels have two decimals


@dataclass(frozen=True)
class ErrorScale:
    """The expected |label - prediction| of a post, from its metadata columns and its prediction.

    Args:
        booster: None: every post has the scale `mean`.
        mean: of the absolute errors that it was fitted on, in label units.
    """

    booster: lgb.Booster | None
    mean: float

    @classmethod
    def fit(
        cls,
        matrix: Matrix,
        rows: Int64Array,
        prediction: Float64Array,
        label: Float64Array,
        *,
        seed: int,
        num_threads: int,
    ) -> ErrorScale:
        """The error scale fitted on out-of-fold predictions of some train rows.

        Args:
            matrix: (n, columns) of all train rows.
            rows: (m,) positions of the predicted rows; if there are none, all posts have the same scale, the mean
                distance of the labels to their median.
            prediction: (m,) in label units.
            label: (n,) of all train rows.
            seed: of the columns drawn for a tree.
            num_threads: part of the result, as in the learners.
        """
        if not len(rows):
            return cls(None, float(np.abs(label - np.median(label)).mean()))
        errors = np.abs(label[rows] - prediction)
        design, categorical = _design(matrix, prediction, rows)
        booster = lgb.train(
            {
                **LIGHTGBM_PARAMS,
                "seed": seed,
                "num_threads": num_threads,
                "deterministic": True,
                "force_row_wise": True,
                "verbosity": -1,
            },
            lgb.Dataset(design, errors, categorical_feature=categorical, params={"verbosity": -1}),
            num_boost_round=N_TREES,
        )
        return cls(booster, float(errors.mean()))

    def predict(self, matrix: Matrix, prediction: Float64Array) -> Float64Array:
        """(n,) scales in label units, above 0, of posts with predictions (n,) in label units."""
        if self.booster is None:
            expected = np.full(len(prediction), self.mean)
        else:
            expected = np.asarray(self.booster.predict(_design(matrix, prediction)[0]))
        bounded: Float64Array = np.maximum(expected, max(MIN_RELATIVE_SCALE * self.mean, MIN_SCALE))
        return bounded

    def save(self, folder: Path) -> None:
        """Writes error_scale.json and, if there are trees, error_scale.txt into `folder`."""
        write_json(folder / "error_scale.json", {"mean": self.mean})
        if self.booster is not None:
            write_text(folder / "error_scale.txt", self.booster.model_to_string())

    @classmethod
    def load(cls, folder: Path) -> ErrorScale:
        """The model that `save` wrote.

        Raises:
            ContractError: a file is damaged.
        """
        trees = folder / "error_scale.txt"
        with reading(trees, lgb.basic.LightGBMError):
            booster = lgb.Booster(model_str=trees.read_text(encoding="utf-8")) if trees.exists() else None
        return cls(booster, read_json(folder / "error_scale.json")["mean"])


def _design(matrix: Matrix, prediction: Float64Array, rows: Int64Array | None = None) -> tuple[Float64Array, list[int]]:
    """(n, metadata columns + 1) with the prediction last, and the positions of categories.

    Args:
        matrix: of the posts.
        prediction: (n,) in label units.
        rows: (n,) rows of the matrix that are used; None: all.
    """
    metadata = [index for index, block in enumerate(matrix.blocks) if block == "metadata"]
    values = matrix.values[:, metadata]
    categorical = [metadata.index(index) for index in matrix.categorical]
    return np.column_stack([values if rows is None else values[rows], prediction]), categorical
