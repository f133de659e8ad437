"""Rows of the score tables, and their cells on the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from popularity.core.metrics import METRICS
from popularity.report.wording import NONE, estimate

Metrics = Mapping[str, Mapping[str, Any]]  # metric -> row of the score table


def overall(scores: pl.DataFrame) -> pl.DataFrame:
    """The scores themselves, without differences and without single splits."""
    return scores.filter(pl.col("minus").is_null() & pl.col("fold").is_null())


def single_splits(scores: pl.DataFrame) -> pl.DataFrame:
    """The scores of each split of a scheme that has several; no differences."""
    return scores.filter(pl.col("minus").is_null() & pl.col("fold").is_not_null())


def differences(scores: pl.DataFrame) -> pl.DataFrame:
    """The differences between two models, without single splits."""
    return scores.filter(pl.col("minus").is_not_null() & pl.col("fold").is_null())


def by_metric(scores: pl.DataFrame, names: Sequence[str]) -> list[tuple[tuple[Any, ...], Metrics]]:
    """The rows gathered by the values of the columns `names`, in the order of the table."""
    parts = scores.partition_by(names, maintain_order=True, as_dict=True)
    return [(key, {row["metric"]: row for row in part.iter_rows(named=True)}) for key, part in parts.items()]


def metric_cells(metrics: Metrics, wanted: Iterable[str] = METRICS) -> list[str]:
    """Value and interval of each wanted metric."""
    rows = [(metric, metrics[metric]) for metric in wanted]
    return [estimate(row["value"], row["low"], row["high"], sign=metric == "bias") for metric, row in rows]


def verdict(difference: Mapping[str, Any]) -> str:
    """`better`, `worse` or `no clear difference`, by the interval of a difference between two models."""
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return NONE
    if low <= 0 <= high:
        return "no clear difference"
    return "better" if (low > 0) == (difference["metric"] == "src") else "worse"
