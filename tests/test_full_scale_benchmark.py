"""The benchmark of full scale at a small size: its table, and that pandas and ours agree."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import full_scale
from benchmarks.full_scale import Row, growth, table
from benchmarks.measuring import environment
from benchmarks.scale_features import (
    differences,
    part_features_all,
    part_features_pandas,
    part_generate,
    part_ingest,
    part_split,
)


def row(what: str, posts: int, cpu: float) -> Row:
    return Row(what, posts, seconds=2 * cpu, cpu=cpu, mib=100.0, beside="other", other_cpu=3 * cpu, other_seconds=1.0)


def test_the_table_names_ratios_and_growth() -> None:
    rows = [row("step", posts, 0.01 * posts**1.2) for posts in (100, 300, 1000)] + [row("once", 5, 1.0)]
    lines = table(rows).splitlines()
    assert len(lines) == 5
    assert all("3.00" in line for line in lines[1:])
    assert growth(rows).split() == ["step", "cpu", "~", "posts", "^", "1.20"]


def test_ours_and_pandas_agree(tmp_path: Path) -> None:
    part_generate(tmp_path, "600", "B")
    part_ingest(tmp_path)
    part_split(tmp_path)
    part_features_all(tmp_path)
    part_features_pandas(tmp_path)
    assert differences(tmp_path) < 1e-9


def test_a_section_runs_and_writes_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def section(folder: Path, posts: int) -> list[Row]:
        assert folder.is_dir()
        return [row("fake", posts, posts / 1000)]

    monkeypatch.setitem(full_scale.SECTIONS, "text", section)
    monkeypatch.setitem(full_scale.BETWEEN, "text", lambda *_: [row("between", 3000, 3.0)])
    out = tmp_path / "reports" / "bench.txt"
    full_scale.main(["--only", "text", "--posts", "10000", "--out", str(out), "--folder", str(tmp_path)])
    assert "posts ^ 1.00" in out.read_text()
    with out.with_suffix(".csv").open(encoding="utf-8") as stream:
        lines = [(line["what"], line["posts"]) for line in csv.DictReader(stream)]
    assert lines == [("fake", "1000"), ("between", "3000"), ("fake", "10000")]


def test_with_stand_ins_for_its_outputs_the_graph_has_nothing_to_do(tmp_path: Path) -> None:
    (found,) = full_scale.dvc(tmp_path, 300)
    assert found.seconds > 0


def test_features_are_measured_without_torch() -> None:
    """Or the memory of a stage's features would be that of torch."""
    code = "import sys; import benchmarks.scale_features; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment(), check=False).returncode == 0
