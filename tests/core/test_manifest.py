"""The manifest in real git repositories: what it tells, and that only what it tells of changes its bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from popularity.core.manifest import code_state, library_versions, write_manifest
from tests.repository import REPOSITORY


def git(repository: Path, *command: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "init.defaultBranch=main"]
    return subprocess.run(
        ["git", "-C", repository, *identity, *command], capture_output=True, text=True, check=True
    ).stdout.strip()


def commit(repository: Path, *names: str) -> str:
    """Hash of a commit that adds a line to each of the files."""
    for name in names:
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        with (repository / name).open("a", encoding="utf-8") as stream:
            stream.write("line\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "change")
    return git(repository, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Three commits: the second of code, the others of README alone."""
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "-q")
    commit(root, "README.md")
    commit(root, "src/a.py", "stages/b.py", "configs/c.yaml", "README.md")
    commit(root, "README.md")
    return root


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    table, folder = tmp_path / "table.parquet", tmp_path / "block"
    table.write_bytes(b"rows")
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "part").write_bytes(b"part")
    return {"table": table, "block": folder}


def written(repository: Path, inputs: dict[str, Path], **other: Any) -> bytes:
    folder = inputs["table"].parent / "artifact"
    folder.mkdir(exist_ok=True)
    given: dict[str, Any] = {"params": {"stack": {"seed": 0}}, "metrics": {"mae": 1.5}} | other
    write_manifest(folder, inputs=inputs, repository=repository, **given)
    return (folder / "manifest.json").read_bytes()


def test_it_tells_code_parameters_inputs_libraries_and_metrics(repository: Path, inputs: dict[str, Path]) -> None:
    manifest = json.loads(written(repository, inputs))
    assert manifest["code"] == {"revision": git(repository, "rev-parse", "HEAD~1"), "modified": False}
    assert manifest["params"] == {"stack": {"seed": 0}}
    assert manifest["metrics"] == {"mae": 1.5}
    assert set(manifest["inputs"]) == {"table", "block"}
    assert manifest["libraries"]["numpy"] == metadata.version("numpy")
    assert str(repository.parent) not in json.dumps(manifest)


def test_the_same_inputs_give_the_same_bytes_elsewhere_and_after_commits_that_touch_no_code(
    repository: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    before = written(repository, inputs)
    commit(repository, "README.md", "dvc.lock", "tests/test_a.py")
    (repository / "notes.txt").write_text("not committed")
    assert written(repository, inputs) == before
    git(tmp_path, "clone", "-q", str(repository), "elsewhere")
    moved = {name: tmp_path / "moved" / path.name for name, path in inputs.items()}
    shutil.copytree(inputs["block"], moved["block"])
    shutil.copy(inputs["table"], moved["table"])
    assert written(tmp_path / "elsewhere", moved) == before


@pytest.mark.parametrize("name", ["src/a.py", "stages/b.py", "configs/c.yaml", "src/new/d.py"])
def test_a_commit_to_the_code_is_the_new_revision(repository: Path, name: str) -> None:
    revision = commit(repository, name)
    assert code_state(repository) == {"revision": revision, "modified": False}


@pytest.mark.parametrize("name", ["src/a.py", "configs/new.yaml"])
def test_code_that_is_not_committed_is_told(repository: Path, name: str) -> None:
    revision = git(repository, "rev-parse", "HEAD~1")
    (repository / name).write_text("changed")
    assert code_state(repository) == {"revision": revision, "modified": True}


@pytest.mark.parametrize(
    "change",
    [
        lambda inputs: inputs["table"].write_bytes(b"other rows"),
        lambda inputs: (inputs["block"] / "below" / "part").write_bytes(b"other part"),
        lambda inputs: (inputs["block"] / "more").write_bytes(b""),
    ],
)
def test_every_file_of_an_input_counts(repository: Path, inputs: dict[str, Path], change: Any) -> None:
    before = json.loads(written(repository, inputs))
    change(inputs)
    after = json.loads(written(repository, inputs))
    changed = [name for name in inputs if after["inputs"][name] != before["inputs"][name]]
    assert len(changed) == 1
    assert {**after, "inputs": {}} == {**before, "inputs": {}}


def test_an_inputs_own_manifest_is_not_its_content(repository: Path, inputs: dict[str, Path]) -> None:
    before = written(repository, inputs)
    write_manifest(inputs["block"], params={}, inputs={}, metrics={}, repository=repository)
    assert written(repository, inputs) == before


def test_without_a_repository_or_a_commit_the_revision_is_null(
    tmp_path: Path, inputs: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    plain, empty = tmp_path / "plain", tmp_path / "empty"
    plain.mkdir()
    empty.mkdir()
    git(empty, "init", "-q")
    (empty / "src").mkdir()
    (empty / "src" / "a.py").write_text("not committed")
    assert code_state(plain) == {"revision": None, "modified": None}
    assert code_state(empty) == {"revision": None, "modified": True}
    assert json.loads(written(plain, inputs))["code"]["revision"] is None
    assert "no code revision" in caplog.text


def test_without_git_the_revision_is_null(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert code_state(repository) == {"revision": None, "modified": None}


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_a_shallow_clone_tells_no_false_revision(repository: Path, tmp_path: Path, depth: int) -> None:
    """Its oldest commit seems to add every file: with depth 1, one that touched README alone."""
    true = git(repository, "rev-parse", "HEAD~1")
    commit(repository, "README.md")
    git(tmp_path, "clone", "-q", "--depth", str(depth), f"file://{repository}", "shallow")
    shallow = code_state(tmp_path / "shallow")
    assert shallow == {"revision": true if depth == 4 else None, "modified": False}


def test_libraries_are_the_dependencies_of_pyproject() -> None:
    """Those that were required when the package was installed; no extra."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    libraries = library_versions()
    named = {line.split(">")[0].split("=")[0] for line in project["dependencies"]}
    extras = {line.split(">")[0].split("[")[0] for lines in project["optional-dependencies"].values() for line in lines}
    assert {"torch", "polars", "lightgbm"} <= set(libraries)
    assert set(libraries) <= named
    assert not set(libraries) & extras
    assert all(libraries.values())


def test_a_metric_that_is_no_number_is_refused(repository: Path, inputs: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        written(repository, inputs, metrics={"mae": float("nan")})
