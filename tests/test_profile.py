from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from popularity.core.config import leaves, load_params, read_yaml
from popularity.core.errors import ConfigError
from popularity.evaluation.scores import EvaluateConfig
from popularity.profile import main, read_profiles
from tests.repository import PROFILES, REPOSITORY, profile_text, write_profile


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the repository's params.yaml, in the demo profile, and of its profiles."""
    write_profile(tmp_path, "demo")
    shutil.copytree(PROFILES, tmp_path / "profiles")
    return tmp_path


def _switch(project: Path, name: str, *more: str) -> None:
    main([name, "--params", str(project / "params.yaml"), "--profiles", str(project / "profiles"), *more])


def _text(project: Path) -> str:
    return (project / "params.yaml").read_text(encoding="utf-8")


def test_the_committed_parameters_are_those_of_profile_demo() -> None:
    """A clean clone starts from them."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("no git repository: whether the file is as it was committed, nobody can say")
    changed = subprocess.run(
        ["git", "status", "--porcelain", "params.yaml"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    if changed.stdout:
        pytest.skip("params.yaml has been edited since the last commit")
    assert (REPOSITORY / "params.yaml").read_text(encoding="utf-8") == profile_text("demo")


def test_the_profiles_exist_and_leave_the_data_set_alone() -> None:
    profiles = read_profiles(PROFILES)
    assert set(profiles) == {"tiny", "demo", "full", "paper"}
    assert not any(key[0] in ("dataset", "profile") for values in profiles.values() for key in values)


def test_there_and_back_gives_the_same_bytes(project: Path) -> None:
    before = _text(project)
    for name in ("tiny", "full", "tiny", "demo"):
        _switch(project, name)
    assert _text(project) == before


@pytest.mark.parametrize("name", ["tiny", "full", "paper"])
def test_only_listed_values_change_and_comments_stay(project: Path, name: str) -> None:
    before, old = leaves(read_yaml(project / "params.yaml")), _text(project)
    _switch(project, name)
    after = leaves(read_yaml(project / "params.yaml"))
    assert list(after) == list(before)
    profile = leaves(read_yaml(project / "profiles" / f"{name}.yaml"))
    assert after == {**before, **profile, ("profile",): name}
    assert [line.partition("#")[2] for line in _text(project).splitlines()] == [
        line.partition("#")[2] for line in old.splitlines()
    ]


def test_tiny_is_read_by_the_stages(project: Path) -> None:
    _switch(project, "tiny")
    assert load_params("evaluate", EvaluateConfig, project / "params.yaml").n_resamples == 50
    assert read_yaml(project / "params.yaml")["demo"]["posts"] == 300


def test_the_printed_diff_says_what_changed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    before = _text(project)
    _switch(project, "tiny", "--show")
    lines = capsys.readouterr().out.splitlines()
    assert "-profile: demo" in lines
    assert "+profile: tiny" in lines
    assert _text(project) == before
    _switch(project, "demo")
    assert "already" in capsys.readouterr().out


def test_values_set_by_hand_outside_the_profile_stay(project: Path) -> None:
    (project / "params.yaml").write_text(_text(project).replace("root: data/demo", "root: /elsewhere/data"))
    _switch(project, "full")
    assert read_yaml(project / "params.yaml")["dataset"]["root"] == "/elsewhere/data"


def test_a_key_that_params_lack_is_an_error(project: Path) -> None:
    for file in (project / "profiles").iterdir():
        file.write_text(file.read_text() + "nowhere:\n  trees: 5\n")
    with pytest.raises(ConfigError, match=r"has no nowhere\.trees"):
        _switch(project, "tiny")


def test_profiles_with_different_keys_are_an_error(project: Path) -> None:
    with (project / "profiles" / "tiny.yaml").open("a") as stream:
        stream.write("submit:\n  decimals: 5\n")
    with pytest.raises(ConfigError, match=r"demo\.yaml: every profile must list the same keys.*submit\.decimals"):
        _switch(project, "tiny")


def test_an_unknown_name_is_an_error(project: Path) -> None:
    with pytest.raises(ConfigError, match="no profile 'huge'; there are demo, full, paper, tiny"):
        _switch(project, "huge")
