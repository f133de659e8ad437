"""Row selection: which train rows of a fold the stack learns from (docs/method.md; the paper keeps 77 %)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import polars as pl
from pydantic import Field

from popularity.core.arrays import BoolArray
from popularity.core.config import Section
from popularity.core.errors import ConfigError
from popularity.stack.feature_blocks import scalar_rows


@dataclass(frozen=True)
class RowSelectionParams(Section):
    """Which train rows are kept.

    Args:
        fraction: of the train rows that have a loss.
        order: low_loss (rows of least loss are kept), random, or high_loss.
    """

    fraction: Annotated[float, Field(gt=0, le=1)]
    order: Literal["low_loss", "random", "high_loss"]


def kept_rows(pids: Sequence[str], losses: pl.DataFrame, selection: RowSelectionParams, seed: int) -> BoolArray:
    """(n,) whether row selection keeps a train row; rows without a loss (unseen class) are always kept.

    The loss of a post is the mean of its network losses. Posts that have all terms are ordered as by their sum (Eq 8),
    and a post without an image or a text does not count as easy.

    Args:
        pids: n of the train rows.
        losses: contract CLASS_LOSSES.
        selection: section stack.row_selection.
        seed: of the order `random`.

    Raises:
        ConfigError: no post has a loss.
    """
    kept = np.ones(len(pids), dtype=np.bool_)
    if selection.fraction == 1:
        return kept
    if selection.order == "random":
        rank = np.random.default_rng(seed).random(len(pids))
    else:
        terms = losses.columns[1:]
        if not any(losses[term].count() for term in terms):
            raise ConfigError(
                f"stack.row_selection.order: {selection.order} needs the posts' losses, but train.network.weights "
                "trains no class loss; set stack.row_selection.fraction: 1.0 or stack.row_selection.order: random"
            )
        loss = scalar_rows(losses, pids).select(pl.mean_horizontal(terms)).to_series().cast(pl.Float64)
        rank = loss.fill_null(float("nan")).to_numpy() * (1 if selection.order == "low_loss" else -1)
    ranked = np.flatnonzero(~np.isnan(rank))
    order = ranked[np.argsort(rank[ranked], kind="stable")]
    kept[order[round(selection.fraction * len(order)) :]] = False
    return kept
