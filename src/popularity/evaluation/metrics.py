"""The challenge's metrics. An undefined score is None, never NaN."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

FloatArray = npt.NDArray[np.float64]

METRICS = ("src", "mae", "mape", "bias")


def spearman(labels: FloatArray, predictions: FloatArray) -> float | None:
    """Spearman's rho with average ranks for ties (SRC); None when either side is constant."""
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return None
    return float(spearmanr(labels, predictions).statistic)


def mean_absolute_error(labels: FloatArray, predictions: FloatArray) -> float:
    """MAE in label units (log2 of views)."""
    return float(np.abs(predictions - labels).mean())


def mean_absolute_percentage_error(labels: FloatArray, predictions: FloatArray) -> float | None:
    """MAPE as a share (the video track's metric); None when a label is 0 (a post without views)."""
    if (labels == 0).any():
        return None
    return float((np.abs(predictions - labels) / np.abs(labels)).mean())


def bias(labels: FloatArray, predictions: FloatArray) -> float:
    """Mean of prediction - label: how far the level is missed."""
    return float((predictions - labels).mean())


def score(labels: FloatArray, predictions: FloatArray) -> dict[str, float | None]:
    """All of METRICS for n posts; labels and predictions are (n,), n >= 1."""
    return {
        "src": spearman(labels, predictions),
        "mae": mean_absolute_error(labels, predictions),
        "mape": mean_absolute_percentage_error(labels, predictions),
        "bias": bias(labels, predictions),
    }
