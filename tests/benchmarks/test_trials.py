"""benchmarks.trials at profile tiny."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import trials
from benchmarks.graph import change_params
from popularity.core.config import read_yaml
from popularity.core.errors import DataError
from tests.clones import Clone
from tests.repository import write_profile


@pytest.mark.parametrize("kind", trials.CHANGES)
def test_a_change_is_one_of_its_section(kind: str, tmp_path: Path) -> None:
    file = write_profile(tmp_path)
    before = read_yaml(file)
    change_params(file, trials.CHANGES[kind])
    after = read_yaml(file)
    sections = {name for name in after if after[name] != before[name]}
    own = {"split": {"split"}, "network": {"train"}, "encoder": {"embed_text", "encoders"}}
    searched = set() if kind in ("search", trials.FOUND) else {"tune"}
    assert sections == own.get(kind, {"stack"}) | searched


def test_a_trial_leaves_the_run_and_names_what_ran(
    clone: Clone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = (clone.root / "params.yaml").read_bytes()
    trials.main(["--folder", str(clone.root), "--only", "stack", "--work", str(tmp_path), "--csv", str(tmp_path / "t")])
    printed = capsys.readouterr().out
    assert "a stack parameter" in printed
    listed = [name.split()[0] for name in printed.splitlines()[-1].split(", ")]
    assert listed[1:-1] == ["stack", "ensemble", "evaluate", "submit"]
    assert (clone.root / "params.yaml").read_bytes() == params
    assert sorted(tmp_path.iterdir()) == [tmp_path / "t"]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected: a finished run"):
        trials.main(["--folder", str(tmp_path)])
