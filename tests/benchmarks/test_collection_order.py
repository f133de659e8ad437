"""benchmarks.collection_order on a small data set: what reads the order of collection is worth something there."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from benchmarks.collection_order import MATCHED, TEST, main
from popularity.ensemble.members import CONSTANT
from popularity.profile import main as choose_profile
from tests.repository import write_profile


@pytest.mark.slow
def test_the_order_is_worth_something_on_the_test_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = write_profile(tmp_path)
    patch = tmp_path / "patch.yaml"
    patch.write_text("stack:\n  num_boost_round: 150\n  lightgbm:\n    learning_rate: 0.1\n", encoding="utf-8")
    choose_profile(["--patch", str(patch), "--params", str(params)])
    main(["--params", str(params), "--seeds", "1", "--posts", "1500", "--csv", str(tmp_path / "table.csv")])
    assert "MAE forward, matched" in capsys.readouterr().out
    table = pl.read_csv(tmp_path / "table.csv").filter(metric="mae")
    mae = {(system, posts): score for system, posts, score in table.select("system", "posts", "score").iter_rows()}
    assert (CONSTANT, MATCHED) in mae
    gain = {posts: mae["default", posts] - mae["both", posts] for posts in ("forward", MATCHED, TEST)}
    assert gain[TEST] > 0.1
    assert max(gain["forward"], gain[MATCHED]) < gain[TEST]
