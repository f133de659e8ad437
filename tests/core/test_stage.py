"""How a command ends: errors of reading, terminals without some characters, output that nobody reads."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from popularity.core import stage


def test_what_may_not_be_read_is_no_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "train_text.json"
    closed.touch()
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != closed)  # root may read everything

    def main() -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(closed))

    with pytest.raises(SystemExit, match="cannot be read: Permission denied") as caught:
        stage.run(main)
    assert "see to its owner and mode" in str(caught.value)
    monkeypatch.setattr(os, "access", lambda *_: True)
    with pytest.raises(SystemExit, match="make room, or make the folder writable"):
        stage.run(main)


def test_a_closed_folder_above_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path)

    def main() -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "gone" / "a"))

    with pytest.raises(SystemExit, match=f"{tmp_path}: cannot be read"):
        stage.run(main)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_characters_that_a_terminal_lacks_are_escaped(encoding: str) -> None:
    code = "from popularity.core.stage import run; run(lambda: print('\\u041c\\u043e\\u0440\\u0435'))"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, rb"\u041c\u043e\u0440\u0435" + b"\n")


def test_a_closed_pipe_ends_quietly() -> None:
    code = "from popularity.core.stage import run; run(lambda: print('x' * 10**6))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


FOREIGN = {
    "torchrun": {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
    "mpirun": {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
    "srun": {"PMI_SIZE": "2", "PMI_RANK": "1", "PMIX_RANK": "1"},
    "world": {"WORLD_SIZE": "4"},
    "accelerate": {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_USE_DEEPSPEED": "true"},
}


@pytest.mark.parametrize("launcher", FOREIGN)
def test_variables_of_another_launch_are_put_aside(
    launcher: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(stage.LAUNCHER_VARIABLE, raising=False)
    for name, value in FOREIGN[launcher].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")  # how many cores were granted is no variable of a launch
    seen: list[set[str]] = []
    stage.run(lambda: seen.append(set(os.environ)))
    assert not seen[0] & FOREIGN[launcher].keys()
    assert "SLURM_CPUS_PER_TASK" in seen[0]
    assert f"put aside {', '.join(sorted(FOREIGN[launcher]))}" in caplog.text


def test_the_variables_of_our_own_launch_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(stage.LAUNCHER_VARIABLE, str(os.getppid()))
    monkeypatch.setenv("RANK", "1")
    seen: list[str] = []
    stage.run(lambda: seen.append(os.environ["RANK"]))
    assert seen == ["1"]


@pytest.mark.parametrize("command", ["predict", "dataset", "submission", "launch"])
def test_code_of_another_folder_is_refused(command: str, tmp_path: Path) -> None:
    """Two clones and one environment: the code of the first would run in the second."""
    other = tmp_path / "src" / "popularity"
    other.mkdir(parents=True)
    (other / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-m", f"popularity.{command}", "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(stage.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert str(Path(stage.__file__).parents[1]) in done.stderr
    assert f"expected: {other}" in done.stderr


def test_the_code_of_the_folder_itself_runs() -> None:
    stage.refuse_other_code(Path(stage.__file__).parents[3])
