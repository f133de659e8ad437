"""The challenge's metrics, and the loss that every search minimises. An undefined score is None, never NaN."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike
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


def relative_error(error: ArrayLike, constant: ArrayLike) -> FloatArray:
    """MAE over that of a constant prediction (...,); the MAE itself where that one is 0."""
    known = np.asarray(constant, dtype=np.float64)
    return np.asarray(error, dtype=np.float64) / np.where(known > 0, known, 1.0)


def selection_loss(label: FloatArray, prediction: FloatArray, baseline: ArrayLike) -> float:
    """What every search and selection minimises: MAE over the baseline's MAE, minus SRC; the baseline itself has 1.

    Args:
        label: (n,) true labels, n >= 1.
        prediction: (n,) predicted labels.
        baseline: (n,) or a number: a constant prediction, the median label of the training rows.
    """
    baseline_mae = mean_absolute_error(label, np.asarray(baseline, dtype=np.float64))
    src = spearman(label, prediction)
    return float(loss_of_scores(mean_absolute_error(label, prediction), baseline_mae, np.nan if src is None else src))


def loss_of_scores(mae: ArrayLike, baseline_mae: ArrayLike, src: ArrayLike) -> FloatArray:
    """`selection_loss` (...,) of scores that are known already; an undefined SRC (NaN) counts as 0."""
    return relative_error(mae, baseline_mae) - np.nan_to_num(np.asarray(src, dtype=np.float64))


def mean_absolute_percentage_error(labels: FloatArray, predictions: FloatArray) -> float | None:
    """MAPE as a share (the video track's metric); None when a label is 0 (a post without views)."""
    if (labels == 0).any():
        return None
    return float((np.abs(predictions - labels) / np.abs(labels)).mean())


def bias(labels: FloatArray, predictions: FloatArray) -> float:
    """Mean of prediction - label: how far the level is missed."""
    return float((predictions - labels).mean())


def score(
    labels: FloatArray, predictions: FloatArray, cuts: npt.NDArray[np.int64] | None = None
) -> dict[str, float | None]:
    """All of METRICS for n posts; labels and predictions are (n,), n >= 1.

    With `cuts` (n,), the cut that scores each post, the mean over the cuts; None if it is undefined in one of them.
    """
    each = [(labels[rows], predictions[rows]) for rows in fold_rows(len(labels), cuts)]
    metrics = (spearman, mean_absolute_error, mean_absolute_percentage_error, bias)
    return {name: _mean([metric(*cut) for cut in each]) for name, metric in zip(METRICS, metrics, strict=True)}


def fold_rows(n: int, cuts: npt.NDArray[np.int64] | None) -> list[npt.NDArray[np.int64]]:
    """The rows of each cut, in order; all n rows without `cuts` (n,)."""
    return [np.arange(n)] if cuts is None else [np.flatnonzero(cuts == cut) for cut in np.unique(cuts)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
