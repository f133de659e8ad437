"""Which fit rows of a fold the stack learns from (method.md, "Selection"; the paper keeps 77 % of them)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from popularity.core.config import Section
from popularity.core.errors import ConfigError
from popularity.stack.feature_blocks import prototype_scalars


@dataclass(frozen=True)
class RowSelectionParams(Section):
    """The share of the fit rows that is kept, and which: those of least loss, some at random, those of most loss."""

    fraction: Annotated[float, Field(gt=0, le=1)]
    order: Literal["low_loss", "random", "high_loss"]


def kept_rows(
    pids: Sequence[str], scalars: pl.DataFrame, selection: RowSelectionParams, seed: int
) -> npt.NDArray[np.bool_]:
    """(n,) which of a fold's fit rows are kept; rows without a loss (unseen class) always are.

    A post's loss is the mean of its stage-1 terms (`losses.*`): for a post that has all of them this orders as
    their sum (Eq 8) does, and one that lacks a picture or a text is not taken for an easy one.

    Raises:
        ConfigError: there are no losses to go by.
    """
    kept = np.ones(len(pids), dtype=np.bool_)
    if selection.fraction == 1:
        return kept
    if selection.order == "random":
        rank = np.random.default_rng(seed).random(len(pids))
    else:
        terms = [column for column in scalars.columns if column.startswith("losses.")]
        if not terms:
            raise ConfigError(
                f"stack.row_selection.order: {selection.order} needs the posts' losses, which are features only under "
                "train.transductive: true; "
                "set stack.row_selection.fraction: 1.0 or stack.row_selection.order: random"
            )
        table = prototype_scalars(scalars.select("pid", *terms), pids)
        loss = table.select(pl.mean_horizontal(terms)).to_series().cast(pl.Float64)
        rank = loss.fill_null(float("nan")).to_numpy() * (1 if selection.order == "low_loss" else -1)
    judged = np.flatnonzero(~np.isnan(rank))
    order = judged[np.argsort(rank[judged], kind="stable")]
    kept[order[round(selection.fraction * len(order)) :]] = False
    return kept
