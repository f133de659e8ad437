"""The challenge's metrics, and the loss that every search minimises. An undefined score is None, never NaN."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import spearmanr

from popularity.core.arrays import Float64Array, Int64Array

METRICS = ("src", "mae", "mape", "bias")


def spearman(labels: Float64Array, predictions: Float64Array) -> float | None:
    """Spearman's rho with average ranks for ties (SRC); None when either side is constant."""
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return None
    return float(spearmanr(labels, predictions).statistic)


def mean_absolute_error(labels: Float64Array, predictions: Float64Array) -> float:
    """MAE in label units (log2 of views)."""
    return float(np.abs(predictions - labels).mean())


def relative_error(error: ArrayLike, baseline_error: ArrayLike) -> Float64Array:
    """MAE divided by the MAE of a constant prediction (...,); the MAE itself where the latter is 0."""
    known = np.asarray(baseline_error, dtype=np.float64)
    return np.asarray(error, dtype=np.float64) / np.where(known > 0, known, 1.0)


def selection_loss(label: Float64Array, prediction: Float64Array, baseline: ArrayLike) -> float:
    """The loss of every search and selection: MAE over the baseline's MAE, minus SRC. The baseline itself has 1.

    Args:
        label: (n,) true labels, n >= 1.
        prediction: (n,) predicted labels.
        baseline: (n,) or a number: a constant prediction, the median label of the training rows.
    """
    baseline_mae = mean_absolute_error(label, np.asarray(baseline, dtype=np.float64))
    src = spearman(label, prediction)
    return float(loss_of_scores(mean_absolute_error(label, prediction), baseline_mae, np.nan if src is None else src))


def loss_of_scores(mae: ArrayLike, baseline_mae: ArrayLike, src: ArrayLike) -> Float64Array:
    """`selection_loss` (...,) from known scores; an undefined SRC (NaN) counts as 0."""
    return relative_error(mae, baseline_mae) - np.nan_to_num(np.asarray(src, dtype=np.float64))


def mean_absolute_percentage_error(labels: Float64Array, predictions: Float64Array) -> float | None:
    """MAPE as a fraction (the metric of the video track); None if a label is 0 (a post without views)."""
    if (labels == 0).any():
        return None
    return float((np.abs(predictions - labels) / np.abs(labels)).mean())


def bias(labels: Float64Array, predictions: Float64Array) -> float:
    """Mean of prediction - label."""
    return float((predictions - labels).mean())


def score(labels: Float64Array, predictions: Float64Array, folds: Int64Array | None = None) -> dict[str, float | None]:
    """All of METRICS for n posts; labels and predictions are (n,), n >= 1.

    With `folds` (n,), the fold of each post, a score is the mean over the folds, None if it is undefined in one.
    """
    each = [(labels[rows], predictions[rows]) for rows in fold_rows(len(labels), folds)]
    metrics = (spearman, mean_absolute_error, mean_absolute_percentage_error, bias)
    return {name: _mean([metric(*fold) for fold in each]) for name, metric in zip(METRICS, metrics, strict=True)}


def fold_rows(n: int, folds: Int64Array | None) -> list[Int64Array]:
    """The rows of each fold, in order; one entry with all n rows without `folds` (n,)."""
    return [np.arange(n)] if folds is None else [np.flatnonzero(folds == fold) for fold in np.unique(folds)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
