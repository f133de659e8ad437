"""Which train rows are kept: by loss or at random, and never one that has no loss."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
import pytest

from popularity.core.contracts import CLASS_LOSSES, check_table, empty_table
from popularity.core.errors import ConfigError
from popularity.stack.row_selection import RowSelectionParams, kept_rows

PIDS = [f"{row:03d}" for row in range(200)]
LOSSES = np.random.default_rng(0).exponential(size=(200, 3)).astype(np.float32)
TOTAL = LOSSES.astype(np.float64).sum(axis=1)


def losses_table(losses: np.ndarray[tuple[int, int], np.dtype[np.float32]] = LOSSES) -> pl.DataFrame:
    columns = {name: losses[:, index] for index, name in enumerate(("global", "local", "attention"))}
    table = pl.DataFrame({"pid": PIDS, **columns}).fill_nan(None)
    check_table(table, CLASS_LOSSES)
    return table


@pytest.mark.parametrize(("by", "sign"), [("low_loss", 1), ("high_loss", -1)])
def test_the_share_with_the_least_or_most_total_loss_is_kept(by: Literal["low_loss", "high_loss"], sign: int) -> None:
    kept = kept_rows(PIDS, losses_table(), RowSelectionParams(0.77, by), seed=0)
    assert kept.sum() == 154
    assert set(np.flatnonzero(kept)) == set(np.argsort(sign * TOTAL)[:154])
    turned = kept_rows(PIDS[::-1], losses_table(), RowSelectionParams(0.77, by), seed=0)  # by pid, not by position
    np.testing.assert_array_equal(turned[::-1], kept)


def test_random_is_seeded_and_blind_to_the_loss() -> None:
    keep = RowSelectionParams(0.77, "random")
    kept = kept_rows(PIDS, losses_table(), keep, seed=0)
    assert kept.sum() == 154
    np.testing.assert_array_equal(kept_rows(PIDS, losses_table(), keep, seed=0), kept)
    assert not np.array_equal(kept_rows(PIDS, losses_table(), keep, seed=1), kept)
    np.testing.assert_array_equal(kept_rows(PIDS, empty_table(CLASS_LOSSES), keep, seed=0), kept)
    many = np.mean([kept_rows(PIDS, losses_table(), keep, seed=seed) for seed in range(200)], axis=0)
    assert abs(np.corrcoef(many, TOTAL)[0, 1]) < 0.25


@pytest.mark.parametrize("by", ["low_loss", "high_loss"])
def test_rows_without_a_loss_are_kept_and_do_not_count(by: Literal["low_loss", "high_loss"]) -> None:
    losses = LOSSES.copy()
    losses[:40] = np.nan
    table = losses_table(losses).filter(pl.col("pid") != PIDS[0])  # absent altogether, as good as null
    kept = kept_rows(PIDS, table, RowSelectionParams(0.5, by), seed=0)
    assert kept[:40].all()
    assert kept[40:].sum() == 80


def test_a_post_that_lacks_a_term_is_ranked_by_the_mean_of_the_others() -> None:
    losses = np.tile(np.linspace(1, 2, 200, dtype=np.float32)[:, None], (1, 3))
    losses[150, 1] = np.nan  # its sum would be less than any, its mean lies at three quarters
    assert not kept_rows(PIDS, losses_table(losses), RowSelectionParams(0.5, "low_loss"), seed=0)[150]
    assert kept_rows(PIDS, losses_table(losses), RowSelectionParams(0.8, "low_loss"), seed=0)[150]


def test_everything_is_kept_by_default_and_needs_no_losses() -> None:
    assert kept_rows(PIDS, empty_table(CLASS_LOSSES), RowSelectionParams(1.0, "low_loss"), seed=0).all()


def test_no_losses_to_go_by_is_a_named_error() -> None:
    nothing = losses_table(np.full_like(LOSSES, np.nan))
    with pytest.raises(ConfigError, match=r"stack\.row_selection\.order: low_loss .*train\.network\.weights"):
        kept_rows(PIDS, nothing, RowSelectionParams(0.77, "low_loss"), seed=0)
