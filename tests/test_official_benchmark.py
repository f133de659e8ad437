"""The forecast for the official data: its line, what it reads of a run, its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from benchmarks import official
from benchmarks.official import Cost, costs_of, on_line, table
from benchmarks.scale import POSTS
from popularity.errors import ConfigError


def finished_run(folder: Path, posts: int) -> Path:
    """What a run leaves of its costs: seconds and bytes in proportion to the posts."""
    stages = ("demo_data", "ingest", "tune")
    outs = {"outs": [{"path": "a", "size": 1000 * posts}, {"path": "b.json", "size": 500 * posts}]}
    records = folder / "reports/resources"
    records.mkdir(parents=True)
    for name, content in (("dvc.yaml", dict.fromkeys(stages)), ("dvc.lock", dict.fromkeys(stages, outs))):
        with (folder / name).open("w", encoding="utf-8") as stream:
            YAML(typ="safe").dump({"stages": content}, stream)
    for stage in stages:
        record = {"stage": stage, "seconds": posts / 100, "peak_mib": 200, "largest_child_mib": 100}
        (records / f"{stage}.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def test_a_line_is_continued_but_never_falls() -> None:
    assert on_line([10, 20], [3.0, 5.0], 100) == pytest.approx(21.0)
    assert on_line([10, 20], [5.0, 3.0], 100) == 3.0


def test_a_run_is_read_and_the_search_multiplied(tmp_path: Path) -> None:
    costs = costs_of(finished_run(tmp_path, 1000))
    assert list(costs) == ["ingest", "tune"]
    assert costs["ingest"] == Cost(seconds=10.0, mib=200.0, mb=1.5)
    assert costs["tune"].seconds == 10.0 * official.TRIALS


def test_the_table_ends_with_sums_and_the_highest_memory() -> None:
    lines = table(
        {
            1000: {"ingest": Cost(10, 1024, 1), "stack": Cost(36, 1024, 2)},
            2000: {"ingest": Cost(20, 1024, 2), "stack": Cost(36, 2048, 2)},
        }
    ).splitlines()
    assert [line.split()[0] for line in lines] == ["stage", "ingest", "stack", "total"]
    posts = POSTS
    assert lines[1].split()[-2:] == [f"{posts / 100 / 3600:.2f}", f"{posts / 1e6:.2f}"]
    assert lines[2].split()[-2:] == ["0.01", "0.00"]
    assert lines[3].split()[1:5] == ["46.0", "56.0", "1,024.0", "2,048.0"]
    assert lines[3].split()[-2:] == [f"{(posts / 100 + 36) / 3600:.2f}", f"{(posts / 1000 + 2) / 1000:.2f}"]


def test_the_command_prints_and_keeps_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(official, "finished", lambda clone, _, posts: finished_run(clone, posts))
    out = tmp_path / "official.txt"
    official.main(["--posts", "3000", "1000", "--folder", str(tmp_path / "runs"), "--out", str(out)])
    assert capsys.readouterr().out == out.read_text(encoding="utf-8")
    assert "s 1,000" in out.read_text(encoding="utf-8").splitlines()[0]
    with pytest.raises(ConfigError, match="two numbers"):
        official.main(["--posts", "1000", "1000"])
