"""RankGauss: the learners fit the label as it is, or normal scores of its ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from sklearn.preprocessing import QuantileTransformer

from popularity.core.arrays import Float64Array

TargetTransform = Literal["none", "rank_gauss"]

MAX_QUANTILES = 1000  # of the label's distribution; the map is linear between them
# Normal scores are clipped here: the least and the greatest label would otherwise lie at -5.2 and 5.2.
MAX_ABS_Z = 3.3  # the normal score of the middle of the outermost of 1,000 steps


@dataclass(frozen=True)
class RankGauss:
    """The rank_gauss transform: a monotone map from labels to what the learners fit.

    Args:
        kind: none (the label itself) or rank_gauss (the normal score of its rank among the train rows).
        quantiles: (k,) labels at k even steps of the train rows' distribution; None for none.
    """

    kind: TargetTransform
    quantiles: Float64Array | None

    @classmethod
    def fit(cls, label: Float64Array, kind: TargetTransform) -> RankGauss:
        """Returns the transform of the labels (n,) of the train rows."""
        if kind == "none":
            return cls(kind, None)
        # All rows, not a random sample of them: the same rows give the same quantiles.
        fitted = QuantileTransformer(
            n_quantiles=min(MAX_QUANTILES, len(label)), output_distribution="normal", subsample=None
        ).fit(label[:, None])
        return cls(kind, fitted.quantiles_[:, 0])

    def apply(self, label: Float64Array) -> Float64Array:
        """Returns (n,) what a learner fits for labels (n,)."""
        return label if self.quantiles is None else np.clip(self._map(label, inverse=False), -MAX_ABS_Z, MAX_ABS_Z)

    def invert(self, prediction: Float64Array) -> Float64Array:
        """Returns labels (n,) for predictions (n,) of a learner, within the range of the train rows' labels."""
        return prediction if self.quantiles is None else self._map(prediction, inverse=True)

    def _map(self, values: Float64Array, *, inverse: bool) -> Float64Array:
        if not len(values):
            return values  # scikit-learn refuses an empty array
        transformer = QuantileTransformer(output_distribution="normal")
        transformer.quantiles_ = self.quantiles[:, None]  # type: ignore[index]
        transformer.references_ = np.linspace(0, 1, len(transformer.quantiles_))
        transformer.n_features_in_ = 1
        transform = transformer.inverse_transform if inverse else transformer.transform
        mapped: Float64Array = transform(np.asarray(values, dtype=np.float64)[:, None])[:, 0]
        return mapped

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` reads back to the last bit."""
        return {"kind": self.kind, "quantiles": None if self.quantiles is None else self.quantiles.tolist()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RankGauss:
        """Returns the transform that `to_json` described."""
        quantiles = content["quantiles"]
        return cls(content["kind"], None if quantiles is None else np.array(quantiles, dtype=np.float64))
