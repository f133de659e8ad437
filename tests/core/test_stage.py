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
