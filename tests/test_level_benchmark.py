"""The table of choices: what each row changes, and how the rows are compared."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from benchmarks.level import LEVEL, PLAIN, choices, told
from popularity.evaluation.metrics import mean_absolute_error, spearman
from tests.stack.small_stack import ALL_PARTS, STACK


def test_every_row_is_another_stack_whatever_params_say() -> None:
    rows, plain = choices(STACK), replace(STACK, half_life_days=365.0)
    assert rows[PLAIN] == plain
    assert rows[LEVEL] == replace(plain, level="residual")
    assert len({str(params) for params in rows.values()}) == len(rows)
    changed = choices(replace(ALL_PARTS, max_rounds=STACK.max_rounds, half_life_days=0.0))
    assert changed[PLAIN] == plain


def test_scores_are_means_over_cuts_and_differences_are_to_both_references() -> None:
    rng = np.random.default_rng(0)
    n = 300
    label = rng.normal(9, 2, n)
    rows = pl.DataFrame(
        {
            "pid": [f"{row:04d}" for row in range(n)],
            "uid": [f"{user}" for user in rng.integers(40, size=n)],
            "label": label,
            "scheme": ["matched"] * n,
            "cut": np.repeat([0, 1, 2], n // 3),
            PLAIN: label + 3 + rng.normal(0, 2, n),
            LEVEL: label + rng.normal(0, 2, n),
            "perfect": label,
        }
    )
    table = told(rows, 50)
    for metric, measure in (("mae", mean_absolute_error), ("src", spearman)):
        for name in (PLAIN, LEVEL, "perfect"):
            (row,) = table.filter(metric=metric, system=name).to_dicts()
            parts = rows.partition_by("cut", maintain_order=True)
            each = [measure(part["label"].to_numpy(), part[name].to_numpy()) or 0.0 for part in parts]
            assert [row[f"cut {cut}"] for cut in range(3)] == pytest.approx(each)
            assert row["mean"] == pytest.approx(np.mean(each))
            for reference in (PLAIN, LEVEL):
                value, low, high = map(float, re.findall(r"[+-][0-9.]+", row[f"minus {reference}"]))
                (other,) = table.filter(metric=metric, system=reference)["mean"]
                assert value == pytest.approx(row["mean"] - other, abs=1e-4)
                assert low <= value <= high
