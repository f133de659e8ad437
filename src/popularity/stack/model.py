"""The fitted stack: encoders and boosters together, saved as text and plain arrays, loaded without pickle."""

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
from popularity.stack.blocks import Blocks
from popularity.stack.heads import RidgeHead
from popularity.stack.matrix import BlockReducer, CategoryEncoder, DenseEncoder, Matrix, MatrixEncoder


@dataclass(frozen=True)
class StackModel:
    """One encoder and a booster per seed; the prediction is the mean over the boosters."""

    encoder: MatrixEncoder
    boosters: Sequence[lgb.Booster]

    def predict_each(self, matrix: Matrix) -> npt.NDArray[np.float64]:
        """(seeds, n) predicted labels."""
        return np.stack([np.asarray(booster.predict(matrix.values)) for booster in self.boosters])

    def predict(self, features: pl.DataFrame, blocks: Blocks) -> npt.NDArray[np.float64]:
        """(n,) predicted labels of `features` (pid, features)."""
        mean: npt.NDArray[np.float64] = self.predict_each(self.encoder.apply(features, blocks)).mean(axis=0)
        return mean

    def save(self, folder: Path) -> None:
        """Writes encoder.json, <block>.npz of every dense block and booster_<seed position>.txt into `folder`."""
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
                "boosters": len(self.boosters),
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

    @classmethod
    def load(cls, folder: Path) -> StackModel:
        """The model that `save` wrote."""
        stored = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        dense: dict[str, DenseEncoder] = {}
        for facts in stored["dense"]:
            with np.load(folder / f"{facts['block']}.npz", allow_pickle=False) as arrays:
                reducers = {
                    part: BlockReducer(arrays[f"{part}_mean"], arrays.get(f"{part}_components"))
                    for part in facts["parts"]
                }
                head = None
                if "head_weights" in arrays:
                    head = RidgeHead(arrays["head_mean"], arrays["head_scale"], arrays["head_weights"])
            dense[facts["block"]] = DenseEncoder(reducers, tuple(facts["scalars"]), head)
        categories = CategoryEncoder({column: dict(codes) for column, codes in stored["categories"]})
        boosters = [
            lgb.Booster(model_str=(folder / f"booster_{position}.txt").read_text(encoding="utf-8"))
            for position in range(stored["boosters"])
        ]
        return cls(MatrixEncoder(tuple(stored["numeric"]), categories, dense), boosters)
