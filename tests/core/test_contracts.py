"""The quick look at a table's key agrees with sorting it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from popularity.core.contracts import FEATURES, Column, Contract, check_table, write_table
from popularity.core.errors import ContractError

PAIRS = Contract("pairs", {"a": Column(pl.Int64), "b": Column(pl.String, nullable=True)}, key=("a", "b"))


def test_sorted_and_unique_keys_alone_pass() -> None:
    rng = np.random.default_rng(0)
    seen = {True: 0, False: 0}
    for _ in range(300):
        rows = int(rng.integers(0, 6))
        texts = [None if value == 0 else str(value) for value in rng.integers(0, 3, rows)]
        table = pl.DataFrame({"a": rng.integers(0, 2, rows), "b": texts}, schema={"a": pl.Int64, "b": pl.String})
        table = table.sort("a", "b") if rng.random() < 0.6 else table
        good = table.equals(table.sort("a", "b")) and not table.is_duplicated().any()
        seen[good] += 1
        if good:
            check_table(table, PAIRS)
        else:
            with pytest.raises(ContractError, match=r"unique|sorted"):
                check_table(table, PAIRS)
    assert min(seen.values()) > 30


def test_pieces_in_order_are_written_as_the_whole(tmp_path: Path) -> None:
    whole = pl.DataFrame({"pid": [f"{number:04d}" for number in range(900)], "value": np.arange(900.0)})
    pieces = pl.concat([whole[:10], whole[10:500], whole[500:]], rechunk=False)
    for name, table in (
        ("whole", whole),
        ("pieces", pieces),
        ("shuffled", whole.sample(fraction=1, shuffle=True, seed=1)),
    ):
        write_table(table, tmp_path / name, FEATURES)
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1
