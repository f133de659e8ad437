"""The fitted stack: encoders, boosters, blend and scale together, saved without pickle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import polars as pl

from popularity.files import write_json, write_text
from popularity.stack import catboost_learner, lightgbm_learner
from popularity.stack.blocks import Blocks
from popularity.stack.heads import RidgeHead
from popularity.stack.inner import Array, blend
from popularity.stack.matrix import BlockReducer, CategoryEncoder, DenseEncoder, Matrix, MatrixEncoder
from popularity.stack.scale import ScaleModel
from popularity.stack.target import Target


@dataclass(frozen=True)
class Predicted:
    """Predictions of n posts in label units.

    Args:
        values: (n,) mean over the seeds.
        scale: (n,) expected |label - prediction|, above 0.
    """

    values: Array
    scale: Array


@dataclass(frozen=True)
class Contributions:
    """What made the predictions of n posts, in the scale that the learners fit.

    That scale is the label's under `stack.target: raw`; then base and contributions add up to the prediction. Under
    `normal` they add up to its normal score, which is not in label units.

    Args:
        base: (n,) what all posts share.
        blocks: pid, block, contribution: the sum over the block's columns, largest size first.
        features: pid, rank (0 is the largest in size), block, feature, value (null: missing; a code in a
            column of categories), contribution.
    """

    base: Array
    blocks: pl.DataFrame
    features: pl.DataFrame


@dataclass(frozen=True)
class StackModel:
    """Encoder, one booster per seed and learner, and the scale of the error.

    Args:
        encoder: from features and blocks to the matrix.
        boosters: LightGBM's, one a seed.
        second: CatBoost's models, one a seed; empty without a second learner.
        share: of the first learner in the blend; 1 without a second.
        target: what the learners fit.
        scale: of the error.
    """

    encoder: MatrixEncoder
    boosters: Sequence[lgb.Booster]
    second: Sequence[Any]
    share: float
    target: Target
    scale: ScaleModel

    def predict_each(self, matrix: Matrix) -> Array:
        """(seeds, n) predicted labels."""
        first = np.stack([lightgbm_learner.predict(booster, matrix) for booster in self.boosters])
        if self.second:
            second = np.stack([catboost_learner.predict(model, matrix) for model in self.second])
            first = blend(first, second, self.share)
        return np.stack([self.target.invert(row) for row in first])

    def predict(self, features: pl.DataFrame, blocks: Blocks) -> Predicted:
        """Predictions of `features` (pid, features), in its row order."""
        matrix = self.encoder.apply(features, blocks)
        values = self.predict_each(matrix).mean(axis=0)
        return Predicted(values, self.scale.predict(matrix, values))

    def contributions(self, features: pl.DataFrame, blocks: Blocks, largest: int) -> Contributions:
        """What raised and lowered the predictions of `features`, with the `largest` columns of each post (TreeSHAP).

        Means over the seeds, the learners weighted as in the blend.
        """
        matrix = self.encoder.apply(features, blocks)
        values = np.mean([lightgbm_learner.contributions(booster, matrix) for booster in self.boosters], axis=0)
        if self.second:
            second = np.mean([catboost_learner.contributions(model, matrix) for model in self.second], axis=0)
            values = blend(values, second, self.share)
        base, values = values[:, -1], values[:, :-1]
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
        return Contributions(base, by_block, single)

    def save(self, folder: Path) -> None:
        """Writes model.json, encoder.json, <block>.npz of every dense block, booster_<seed position>.txt,
        second_<seed position>.cbm of a second learner, scale.json and scale.txt into `folder`."""
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
                "boosters": len(self.boosters),
                "second": len(self.second),
                "share": self.share,
                "target": self.target.to_json(),
            },
        )
        for name, dense in self.encoder.dense.items():
            arrays: dict[str, npt.NDArray[Any]] = {}
            for part, reducer in dense.reducers.items():
                arrays[f"{part}_mean"] = reducer.mean
                if reducer.components is not None:
                    arrays[f"{part}_components"] = reducer.components
            if dense.head is not None:
                arrays |= {
                    "head_mean": dense.head.mean,
                    "head_scale": dense.head.scale,
                    "head_weights": dense.head.weights,
                }
            with (folder / f"{name}.npz").open("wb") as stream:
                np.savez(stream, allow_pickle=False, **arrays)
        for position, booster in enumerate(self.boosters):
            write_text(folder / f"booster_{position}.txt", booster.model_to_string())
        for position, model in enumerate(self.second):
            catboost_learner.save(model, folder / f"second_{position}.cbm")
        self.scale.save(folder)

    @classmethod
    def load(cls, folder: Path) -> StackModel:
        """The model that `save` wrote.

        Raises:
            ConfigError: it has a second learner, and CatBoost is not installed.
        """
        stored = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        dense: dict[str, DenseEncoder] = {}
        for block in stored["dense"]:
            with np.load(folder / f"{block['block']}.npz", allow_pickle=False) as arrays:
                reducers = {
                    part: BlockReducer(arrays[f"{part}_mean"], arrays.get(f"{part}_components"))
                    for part in block["parts"]
                }
                head = None
                if "head_weights" in arrays:
                    head = RidgeHead(arrays["head_mean"], arrays["head_scale"], arrays["head_weights"])
            dense[block["block"]] = DenseEncoder(reducers, tuple(block["scalars"]), head)
        categories = CategoryEncoder({column: dict(codes) for column, codes in stored["categories"]})
        facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        boosters = [
            lgb.Booster(model_str=(folder / f"booster_{position}.txt").read_text(encoding="utf-8"))
            for position in range(facts["boosters"])
        ]
        return cls(
            MatrixEncoder(tuple(stored["numeric"]), categories, dense),
            boosters,
            [catboost_learner.load(folder / f"second_{position}.cbm") for position in range(facts["second"])],
            facts["share"],
            Target.from_json(facts["target"]),
            ScaleModel.load(folder),
        )
