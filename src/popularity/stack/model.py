"""The fitted stack: encoders, learners, blend, level and scale together, saved without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from popularity.core.arrays import Float64Array
from popularity.core.atomic import reading, write_json
from popularity.ensemble.weights import EnsembleWeights
from popularity.stack.error_scale import ErrorScale
from popularity.stack.feature_blocks import Blocks
from popularity.stack.learners import LEARNERS
from popularity.stack.matrix import BlockReducer, CategoryEncoder, DenseEncoder, Matrix, MatrixEncoder
from popularity.stack.neighbours import TIME, Neighbours
from popularity.stack.oof_ridge import BlockRidge
from popularity.stack.oof_ridge_characters import CharacterRidge
from popularity.stack.params import LearnerName
from popularity.target.rank_gauss import RankGauss
from popularity.target.trend import Trend


@dataclass(frozen=True)
class Predicted:
    """Predictions of n posts in label units.

    Args:
        values: (n,) mean over the seeds.
        scale: (n,) expected |label - prediction|, above 0.
    """

    values: Float64Array
    scale: Float64Array


@dataclass(frozen=True)
class ShapValues:
    """What made the predictions of n posts, in the scale that the learners fit.

    That scale is the label's under `stack.target_transform: none`; then base and contributions add up to the prediction. Under
    `rank_gauss` they add up to its normal score, which is not in label units and has no level.

    Args:
        base: (n,) what all posts share, and the level at the post's date.
        blocks: pid, block, contribution: the sum over the block's columns, largest size first.
        features: pid, rank (0 is the largest in size), block, feature, value (null: missing; a code in a
            column of categories), contribution.
    """

    base: Float64Array
    blocks: pl.DataFrame
    features: pl.DataFrame


@dataclass(frozen=True)
class StackModel:
    """Encoder, one model per seed and learner, and what makes a label of their predictions.

    Args:
        encoder: from features and blocks to the matrix.
        models: of each learner, one a seed.
        blend: of the learners.
        target: what the learners fit of what the level leaves.
        level: of the label in time.
        scale: of the error.
    """

    encoder: MatrixEncoder
    models: Mapping[LearnerName, Sequence[Any]]
    blend: EnsembleWeights
    target: RankGauss
    level: Trend
    scale: ErrorScale

    def predict_each(self, matrix: Matrix, posted_at: npt.NDArray[np.int64]) -> Float64Array:
        """(seeds, n) predicted labels of posts with the dates (n,), microseconds."""
        each = blended(self.models, self.blend, matrix)
        return np.stack([self.level.retrend(self.target.invert(row), posted_at) for row in each])

    def predict(self, features: pl.DataFrame, blocks: Blocks, posted_at: npt.NDArray[np.int64]) -> Predicted:
        """Predictions of `features` (pid, features), in its row order, with the dates (n,)."""
        matrix = self.encoder.apply(features.with_columns(pl.Series(TIME, posted_at)), blocks)
        values = self.predict_each(matrix, posted_at).mean(axis=0)
        return Predicted(values, self.scale.predict(matrix, values))

    def added(self, matrix: Matrix) -> Float64Array:
        """(n, columns + 1) what each column adds to the blended mean, and last what all posts share (TreeSHAP).

        Means over the seeds, the learners weighted as in the blend.
        """
        parts = [
            share * np.mean([LEARNERS[learner].contributions(model, matrix) for model in models], axis=0)
            for (learner, models), share in zip(self.models.items(), self.blend.weights, strict=True)
        ]
        total: Float64Array = np.sum(parts, axis=0)
        return total

    def contributions(
        self, features: pl.DataFrame, blocks: Blocks, posted_at: npt.NDArray[np.int64], largest: int
    ) -> ShapValues:
        """What raised and lowered the predictions of `features`, with the `largest` columns of each post."""
        matrix = self.encoder.apply(features.with_columns(pl.Series(TIME, posted_at)), blocks)
        values = self.added(matrix)
        base, values = values[:, -1], values[:, :-1]
        if self.target.kind == "none":
            base = self.level.retrend(base, posted_at)
        order = np.argsort(-np.abs(values), axis=1, kind="stable")[:, :largest]
        rows = np.arange(len(values))[:, None]
        kept = order.shape[1]
        single = pl.DataFrame(
            {
                "pid": np.repeat(matrix.pids, kept),
                "rank": np.tile(np.arange(kept, dtype=np.int32), len(values)),
                "block": np.array(matrix.blocks, dtype=object)[order].ravel(),
                "feature": np.array(matrix.names, dtype=object)[order].ravel(),
                "value": matrix.values[rows, order].ravel(),
                "contribution": values[rows, order].ravel(),
            },
            schema_overrides={"pid": pl.String, "block": pl.String, "feature": pl.String},
        ).with_columns(pl.col("value").fill_nan(None))
        names = list(dict.fromkeys(matrix.blocks))
        sums = [values[:, [block == name for block in matrix.blocks]].sum(axis=1) for name in names]
        by_block = (
            pl.DataFrame(
                {"pid": matrix.pids, **dict(zip(names, sums, strict=True))}, schema_overrides={"pid": pl.String}
            )
            .with_row_index("post")
            .unpivot(index=["post", "pid"], variable_name="block", value_name="contribution")
            .sort(["post", pl.col("contribution").abs()], descending=[False, True], maintain_order=True)
            .drop("post")
        )
        return ShapValues(base, by_block, single)

    def save(self, folder: Path) -> None:
        """Writes model.json, encoder.json, <block>.npz of every dense block, <learner>_<seed position> of every model,
        scale.json and scale.txt into `folder`."""
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
            },
        )
        write_json(
            folder / "model.json",
            {
                "models": [[learner, len(models)] for learner, models in self.models.items()],
                "blend": self.blend.to_json(),
                "target": self.target.to_json(),
                "level": self.level.to_json(),
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
            if dense.head is not None:
                arrays |= {
                    "head_mean": dense.head.mean,
                    "head_scale": dense.head.scale,
                    "head_weights": dense.head.weights,
                }
            if dense.characters is not None:
                arrays |= {
                    "characters_weights": dense.characters.weights,
                    "characters_constant": np.array(dense.characters.constant),
                }
            with (folder / f"{name}.npz").open("wb") as stream:
                np.savez(stream, allow_pickle=False, **arrays)
        for learner, models in self.models.items():
            for position, model in enumerate(models):
                LEARNERS[learner].save(model, _model_file(folder, learner, position))
        self.scale.save(folder)

    @classmethod
    def load(cls, folder: Path) -> StackModel:
        """The model that `save` wrote.

        Raises:
            ConfigError: CatBoost is one of its learners, and not installed.
        """
        stored = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        dense: dict[str, DenseEncoder] = {}
        for block in stored["dense"]:
            path = folder / f"{block['block']}.npz"
            with reading(path), np.load(path, allow_pickle=False) as arrays:
                reducers = {
                    part: BlockReducer(arrays[f"{part}_mean"], arrays.get(f"{part}_components"))
                    for part in block["parts"]
                }
                head = None
                if "head_weights" in arrays:
                    head = BlockRidge(arrays["head_mean"], arrays["head_scale"], arrays["head_weights"])
                characters = None
                if "characters_weights" in arrays:
                    characters = CharacterRidge(arrays["characters_weights"], float(arrays["characters_constant"]))
                neighbours = None
                if "neighbours_vectors" in arrays:
                    names = (field.name for field in fields(Neighbours))
                    neighbours = Neighbours(*(arrays[f"neighbours_{name}"] for name in names))
            dense[block["block"]] = DenseEncoder(reducers, tuple(block["scalars"]), head, neighbours, characters)
        categories = CategoryEncoder({column: dict(codes) for column, codes in stored["categories"]})
        facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        models = {
            learner: [LEARNERS[learner].load(_model_file(folder, learner, position)) for position in range(count)]
            for learner, count in facts["models"]
        }
        return cls(
            MatrixEncoder(tuple(stored["numeric"]), categories, dense),
            models,
            EnsembleWeights.from_json(facts["blend"]),
            RankGauss.from_json(facts["target"]),
            Trend.from_json(facts["level"]),
            ErrorScale.load(folder),
        )


def blended(models: Mapping[LearnerName, Sequence[Any]], blend: EnsembleWeights, matrix: Matrix) -> Float64Array:
    """(seeds, n) predictions of all learners together, in the scale that they fit."""
    each = [[LEARNERS[learner].predict(model, matrix) for model in own] for learner, own in models.items()]
    return np.stack([blend.apply(np.stack(seed)) for seed in zip(*each, strict=True)])


def _model_file(folder: Path, learner: LearnerName, position: int) -> Path:
    return folder / f"{learner}_{position}.{LEARNERS[learner].SUFFIX}"
