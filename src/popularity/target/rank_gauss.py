"""What the learners fit: the label as it is, or its normal scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.preprocessing import QuantileTransformer

Array = npt.NDArray[np.float64]
TargetTransform = Literal["none", "rank_gauss"]

QUANTILES = 1000  # landmarks of the label's distribution, at most: between them it is interpolated
# Scores stay inside it: the least and the greatest label would otherwise lie at -5.2 and 5.2, however few the rows.
MAX_ABS_Z = 3.3  # the normal score of the middle of the outermost of 1,000 steps


@dataclass(frozen=True)
class Target:
    """A monotone map from labels to what is learned.

    Args:
        kind: none (the label itself) or rank_gauss (the normal score of its rank among the fit rows).
        quantiles: (k,) labels at k even steps of the fit rows' distribution; None for none.
    """

    kind: TargetTransform
    quantiles: Array | None

    @classmethod
    def fit(cls, label: Array, kind: TargetTransform) -> Target:
        """From the labels (n,) of the fit rows."""
        if kind == "none":
            return cls(kind, None)
        # All rows, not a random sample of them: the same rows give the same landmarks.
        fitted = QuantileTransformer(
            n_quantiles=min(QUANTILES, len(label)), output_distribution="normal", subsample=None
        ).fit(label[:, None])
        return cls(kind, fitted.quantiles_[:, 0])

    def apply(self, label: Array) -> Array:
        """(n,) what a learner fits for labels (n,)."""
        return label if self.quantiles is None else np.clip(self._map(label, inverse=False), -MAX_ABS_Z, MAX_ABS_Z)

    def invert(self, prediction: Array) -> Array:
        """(n,) labels for predictions (n,) of a learner; normal scores end at the labels of the fit rows."""
        return prediction if self.quantiles is None else self._map(prediction, inverse=True)

    def _map(self, values: Array, *, inverse: bool) -> Array:
        if not len(values):
            return values  # scikit-learn refuses an empty array
        transformer = QuantileTransformer(output_distribution="normal")
        transformer.quantiles_ = self.quantiles[:, None]  # type: ignore[index]
        transformer.references_ = np.linspace(0, 1, len(transformer.quantiles_))
        transformer.n_features_in_ = 1
        turned = transformer.inverse_transform if inverse else transformer.transform
        mapped: Array = turned(np.asarray(values, dtype=np.float64)[:, None])[:, 0]
        return mapped

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads back to the last bit."""
        return {"kind": self.kind, "quantiles": None if self.quantiles is None else self.quantiles.tolist()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Target:
        """The target that `to_json` described."""
        quantiles = content["quantiles"]
        return cls(content["kind"], None if quantiles is None else np.array(quantiles, dtype=np.float64))
