"""The same clean clone twice, at the second time by two stages at once: the same md5 of every out, but for costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from popularity.core.config import read_yaml
from tests.clones import Clone, make_clone, switch_to_tiny
from tests.faults.test_stages import KILLS

pytestmark = pytest.mark.slow


def sums(clone: Clone) -> dict[str, str]:
    """Out to md5 as DVC computed it."""
    stages: dict[str, Any] = read_yaml(clone.root / "dvc.lock")["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


@pytest.mark.skipif(KILLS == 1, reason="make faults does; test_stages runs each stage again")
def test_the_same_clean_clone_twice(clone: Clone, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_clone(tmp_path / "clone")
    switch_to_tiny(other)
    ran = other.stages_run(other.run("python", "-m", "popularity.repro", "--jobs", "2").stdout)
    first, second = sums(clone), sums(other)
    assert first.keys() == second.keys()
    assert len(ran) == len(read_yaml(other.root / "dvc.yaml")["stages"])  # nothing came out of a cache
    costs = {name for name in first if name.startswith("reports/resources/")} | {"reports/report.html"}
    with capsys.disabled():
        print(f"\nthe graph twice: {len(first) - len(costs)} outs with the same md5, {len(costs)} that tell of costs")
    assert {name: md5 for name, md5 in first.items() if name not in costs and md5 != second[name]} == {}
