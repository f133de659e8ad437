"""The fitted stack: encoder, learners and their weights, trend and error scale, saved without pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from popularity.core.arrays import Float64Array, Int64Array
from popularity.core.atomic import read_json, reading, write_json
from popularity.ensemble.weights import EnsembleWeights
from popularity.stack.error_scale import ErrorScale
from popularity.stack.feature_blocks import Blocks
from popularity.stack.learners import LEARNERS
from popularity.stack.matrix import BlockReducer, CategoryEncoder, DenseEncoder, Matrix, MatrixEncoder
from popularity.stack.neighbours import TIME, Neighbours
from popularity.stack.oof_ridge import BlockRidge
from popularity.stack.oof_ridge_characters import CharacterRidge
from popularity.stack.params import LearnerName
from popularity.target.collection_order import along
from popularity.target.rank_gauss import RankGauss
from popularity.target.trend import Trend

MIN_TOTAL = 1e-6  # of SHAP values in normal scores: less moves no label


@dataclass(frozen=True)
class Predicted:
    """Predictions of n posts in label units.

    Args:
        values: (n,) mean over the seeds.
        error_scale: (n,) expected |label - prediction|, above 0.
    """

    values: Float64Array
    error_scale: Float64Array


@dataclass(frozen=True)
class Explained:
    """A member's predictions of n posts, and the SHAP values of its columns, in label units.

    Args:
        matrix: (n, columns).
        predicted: of the posts.
        expected_value: (n,) what all posts share, with the trend at the post's date.
        shap_values: (n, columns); with the expected value they add up to the prediction.
    """

    matrix: Matrix
    predicted: Predicted
    expected_value: Float64Array
    shap_values: Float64Array


@dataclass(frozen=True)
class StackModel:
    """The fitted stack.

    Args:
        encoder: from features and blocks to the matrix.
        models: one for each seed, by learner.
        weights: of the learners.
        target_transform: from the detrended label to the target of the learners.
        trend: of the label in time.
        error_scale: of the predictions.
    """

    encoder: MatrixEncoder
    models: Mapping[LearnerName, Sequence[Any]]
    weights: EnsembleWeights
    target_transform: RankGauss
    trend: Trend
    error_scale: ErrorScale

    def predict_each(
        self, matrix: Matrix, posted_at: Int64Array, days_after: Float64Array | None = None
    ) -> Float64Array:
        """(seeds, n) predicted labels.

        Args:
            matrix: of n posts.
            posted_at: (n,) microseconds.
            days_after: (n,) days from the post until its count is read; None or nan: until the collection.
        """
        targets = predict_targets(self.models, self.weights, matrix)
        each = [self.target_transform.invert(row) for row in targets]
        axis = along(self.trend.kind, matrix.pids, posted_at)
        return np.stack([self.trend.retrend(row, axis, days_after) for row in each])

    def predict(
        self, features: pl.DataFrame, blocks: Blocks, posted_at: Int64Array, days_after: Float64Array | None = None
    ) -> Predicted:
        """Predictions of n posts, in the row order of `features`.

        Args:
            features: (pid, features).
            blocks: of all posts.
            posted_at: (n,) microseconds.
            days_after: (n,) days from the post until its count is read; None or nan: until the collection.
        """
        matrix = self.encoder.apply(features.with_columns(pl.Series(TIME, posted_at)), blocks)
        values = self.predict_each(matrix, posted_at, days_after).mean(axis=0)
        return Predicted(values, self.error_scale.predict(matrix, values))

    def shap_values(self, matrix: Matrix) -> Float64Array:
        """(n, columns + 1) SHAP values of the columns, and the expected value last: weighted means over learners."""
        weighted = [
            weight * np.mean([LEARNERS[learner].shap_values(model, matrix) for model in models], axis=0)
            for (learner, models), weight in zip(self.models.items(), self.weights.weights, strict=True)
        ]
        total: Float64Array = np.sum(weighted, axis=0)
        return total

    def explain(
        self, features: pl.DataFrame, blocks: Blocks, posted_at: Int64Array, days_after: Float64Array | None = None
    ) -> Explained:
        """Predictions and SHAP values of n posts, in the row order of `features`.

        SHAP values belong to the fitted target. Under `stack.target_transform: rank_gauss` they are scaled, post by
        post, so that they add up to the difference that they make to the label.

        Args:
            features: (pid, features).
            blocks: of all posts.
            posted_at: (n,) microseconds.
            days_after: (n,) days from the post until its count is read; None or nan: until the collection.
        """
        matrix = self.encoder.apply(features.with_columns(pl.Series(TIME, posted_at)), blocks)
        values = self.predict_each(matrix, posted_at, days_after).mean(axis=0)
        predicted = Predicted(values, self.error_scale.predict(matrix, values))
        found = self.shap_values(matrix)
        expected_value, shap_values = found[:, -1], found[:, :-1]
        if self.target_transform.kind != "none":
            expected_value = self.target_transform.invert(expected_value)
        axis = along(self.trend.kind, matrix.pids, posted_at)
        expected_value = self.trend.retrend(expected_value, axis, days_after)
        if self.target_transform.kind != "none":
            total = shap_values.sum(axis=1)
            known = np.abs(total) > MIN_TOTAL
            scale = np.where(known, (values - expected_value) / np.where(known, total, 1.0), 0.0)
            shap_values = shap_values * scale[:, None]
            expected_value = values - shap_values.sum(axis=1)
        return Explained(matrix, predicted, expected_value, shap_values)

    def save(self, folder: Path) -> None:
        """Writes the model into `folder`.

        Files: model.json, encoder.json, <block>.npz of every dense block, <learner>_<position of the seed> of every
        model, error_scale.json and error_scale.txt.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_json(
            folder / "encoder.json",
            {
                "numeric": list(self.encoder.numeric),
                "categories": [[column, dict(codes)] for column, codes in self.encoder.categories.codes.items()],
                "dense": [
                    {"block": name, "parts": list(dense.reducers), "scalars": list(dense.scalars)}
                    for name, dense in self.encoder.dense.items()
                ],
                "classes": None if self.encoder.classes is None else sorted(self.encoder.classes),
            },
        )
        write_json(
            folder / "model.json",
            {
                "models": [[learner, len(models)] for learner, models in self.models.items()],
                "weights": self.weights.to_json(),
                "target_transform": self.target_transform.to_json(),
                "trend": self.trend.to_json(),
            },
        )
        for name, dense in self.encoder.dense.items():
            arrays: dict[str, npt.NDArray[Any]] = {}
            for part, reducer in dense.reducers.items():
                arrays[f"{part}_mean"] = reducer.mean
                if reducer.components is not None:
                    arrays[f"{part}_components"] = reducer.components
            if dense.neighbours is not None:
                arrays |= {f"neighbours_{name}": values for name, values in vars(dense.neighbours).items()}
            if dense.ridge is not None:
                arrays |= {f"oof_ridge_{name}": values for name, values in vars(dense.ridge).items()}
            if dense.characters is not None:
                arrays |= {
                    "characters_weights": dense.characters.weights,
                    "characters_intercept": np.array(dense.characters.intercept),
                }
            with (folder / f"{name}.npz").open("wb") as stream:
                np.savez(stream, allow_pickle=False, **arrays)
        for learner, models in self.models.items():
            for position, model in enumerate(models):
                LEARNERS[learner].save(model, _model_file(folder, learner, position))
        self.error_scale.save(folder)

    @classmethod
    def load(cls, folder: Path) -> StackModel:
        """The model that `save` wrote.

        Raises:
            ConfigError: CatBoost is one of its learners and is not installed.
            ContractError: a file is damaged.
        """
        stored = read_json(folder / "encoder.json")
        dense: dict[str, DenseEncoder] = {}
        for block in stored["dense"]:
            path = folder / f"{block['block']}.npz"
            with reading(path), np.load(path, allow_pickle=False) as arrays:
                reducers = {
                    part: BlockReducer(arrays[f"{part}_mean"], arrays.get(f"{part}_components"))
                    for part in block["parts"]
                }
                ridge = None
                if "oof_ridge_weights" in arrays:
                    ridge = BlockRidge(*(arrays[f"oof_ridge_{field.name}"] for field in fields(BlockRidge)))
                characters = None
                if "characters_weights" in arrays:
                    characters = CharacterRidge(arrays["characters_weights"], float(arrays["characters_intercept"]))
                neighbours = None
                if "neighbours_vectors" in arrays:
                    names = (field.name for field in fields(Neighbours))
                    neighbours = Neighbours(*(arrays[f"neighbours_{name}"] for name in names))
            dense[block["block"]] = DenseEncoder(reducers, tuple(block["scalars"]), ridge, neighbours, characters)
        categories = CategoryEncoder({column: dict(codes) for column, codes in stored["categories"]})
        classes = None if stored["classes"] is None else frozenset(stored["classes"])
        fitted = read_json(folder / "model.json")
        models = {
            learner: [LEARNERS[learner].load(_model_file(folder, learner, position)) for position in range(count)]
            for learner, count in fitted["models"]
        }
        return cls(
            MatrixEncoder(tuple(stored["numeric"]), categories, dense, classes),
            models,
            EnsembleWeights.from_json(fitted["weights"]),
            RankGauss.from_json(fitted["target_transform"]),
            Trend.from_json(fitted["trend"]),
            ErrorScale.load(folder),
        )


def predict_targets(
    models: Mapping[LearnerName, Sequence[Any]], weights: EnsembleWeights, matrix: Matrix
) -> Float64Array:
    """(seeds, n) weighted means of the learners' predictions, in the unit of the fitted target."""
    each = [[LEARNERS[learner].predict(model, matrix) for model in own] for learner, own in models.items()]
    return np.stack([weights.apply(np.stack(seed)) for seed in zip(*each, strict=True)])


def _model_file(folder: Path, learner: LearnerName, position: int) -> Path:
    return folder / f"{learner}_{position}.{LEARNERS[learner].SUFFIX}"
