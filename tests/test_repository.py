"""The helpers of tests.repository: parameters that no working file changes, and flags that the stages take."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest

from popularity.core.config import leaves, read_yaml
from popularity.profile import main, read_profiles
from tests import clones, repository
from tests.clones import make_clone
from tests.repository import PROFILES, REPOSITORY, STAGES, profile_text, stage_command, stage_flags, write_profile


@pytest.mark.parametrize("profile", ["tiny", "demo"])
def test_the_parameters_do_not_depend_on_the_working_file(
    profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = profile_text(profile)
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    working = write_profile(tmp_path)
    main(["full", "--params", str(working), "--profiles", str(PROFILES)])
    working.write_text(working.read_text(encoding="utf-8").replace("root: data/demo", "root: /my/own/posts"))
    monkeypatch.setattr(repository, "REPOSITORY", tmp_path)
    assert profile_text(profile) == expected
    values = leaves(read_yaml(write_profile(tmp_path, profile)))
    assert values.items() >= read_profiles(PROFILES)[profile].items()
    assert (values["profile",], values["dataset", "root"]) == (profile, "data/demo")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_takes_the_flags_of_its_command(stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its parser stops at the one flag that it does not know."""
    module = importlib.import_module(stage_command(stage)[0])
    with pytest.raises(SystemExit):
        module.main([*stage_flags(stage, tmp_path), "--no-such-flag"])
    assert "unrecognized arguments: --no-such-flag\n" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_paths_are_placed_below_the_folder_and_can_be_changed(tmp_path: Path) -> None:
    flags = stage_flags("split", tmp_path, posts="mine.parquet", summary=Path("/elsewhere/split.json"), resources=None)
    assert flags == [
        "--params", f"{tmp_path}/params.yaml", "--posts", f"{tmp_path}/mine.parquet",
        "--splits", f"{tmp_path}/data/interim/splits.parquet", "--summary", "/elsewhere/split.json",
    ]  # fmt: skip


def test_a_clone_starts_from_profile_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made from a working tree that `make dataset` and `popularity.profile` have edited."""
    edited = make_clone(tmp_path / "edited")
    edited.run("python", "-m", "popularity.profile", "full")
    params = edited.root / "params.yaml"
    params.write_text(params.read_text(encoding="utf-8").replace("root: data/demo", "root: /my/own/posts"), "utf-8")
    expected = profile_text("demo")
    for module in (clones, repository):
        monkeypatch.setattr(module, "REPOSITORY", edited.root)
    fresh = make_clone(tmp_path / "fresh")
    assert (fresh.root / "params.yaml").read_text(encoding="utf-8") == expected
    assert fresh.run("git", "status", "--porcelain").stdout == ""
