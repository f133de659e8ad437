"""Outputs of two runs are compared by their new names; a name that both have is its own."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from benchmarks.same_bytes import NAMES, Renamed, differences

GRAPH = "stages:\n  one:\n    cmd: none\n    outs: [data]\n"


def run(folder: Path, files: dict[str, pl.DataFrame]) -> Path:
    """A finished graph with one folder of tables."""
    (folder / "data").mkdir(parents=True)
    (folder / "dvc.yaml").write_text(GRAPH, encoding="utf-8")
    (folder / "params.yaml").write_text("profile: demo\n", encoding="utf-8")
    for name, table in files.items():
        table.write_parquet(folder / "data" / name)
    return folder


@pytest.fixture
def renamed() -> Renamed:
    return Renamed([("data/old(.*)", r"data/new\1")], [("score", "valid")], {}, {}, [], ["cost"], {})


TABLE = pl.DataFrame({"pid": ["1", "2"], "score": [0.5, 0.25], "cost": [1.0, 2.0]})


def test_renamed_files_and_columns_are_compared(tmp_path: Path, renamed: Renamed) -> None:
    new = TABLE.rename({"score": "valid"}).with_columns(cost=pl.lit(9.0))
    before = run(tmp_path / "before", {"old.parquet": TABLE})
    assert list(differences(before, run(tmp_path / "same", {"new.parquet": new}), renamed)) == []
    moved = new.with_columns(valid=pl.Series([0.5, 0.75]))
    (line,) = differences(before, run(tmp_path / "moved", {"new.parquet": moved}), renamed)
    assert line.startswith("data/new.parquet: valid in 1 rows, by 0.5")


def test_a_name_that_both_runs_have_is_not_mapped(tmp_path: Path, renamed: Renamed) -> None:
    before = run(tmp_path / "before", {"old.parquet": TABLE})
    after = run(tmp_path / "after", {"old.parquet": TABLE.with_columns(score=pl.Series([0.5, 0.0]))})
    (line,) = differences(before, after, renamed)
    assert line.startswith("data/old.parquet: ")
    assert "only" not in line


def test_a_missing_file_is_a_difference(tmp_path: Path, renamed: Renamed) -> None:
    before = run(tmp_path / "before", {"old.parquet": TABLE})
    assert list(differences(before, run(tmp_path / "after", {}), renamed)) == ["data/new.parquet: only before"]


def test_the_projects_own_file_of_names_is_read() -> None:
    assert Renamed.read(NAMES).files
