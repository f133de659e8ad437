"""Outputs appear whole or not at all, whichever process is killed or writes at the same time; state has one owner."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from popularity.core.atomic import atomic_directory, atomic_path, read_json, write_json, write_text
from popularity.core.errors import BusyError, ContractError
from popularity.core.resume import resume_state
from popularity.core.stage import run
from tests.repository import REPOSITORY


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own that runs `code`; it ends its messages to us by a line break."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    printed = process.stdout.readline().strip()
    assert printed == line, process.communicate()[1]


WRITER = """
import sys
from pathlib import Path
from popularity.core.atomic import atomic_directory, atomic_path
make = {"file": atomic_path, "folder": atomic_directory}[sys.argv[1]]
with make(Path(sys.argv[2])) as partial:
    (partial / "part" if partial.is_dir() else partial).write_text("unfinished")
    print("begun", flush=True)
    input()
    (partial / "part" if partial.is_dir() else partial).write_text("whole")
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_leftovers_of_killed_writers_go_and_those_of_living_ones_stay(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    killed, living = start(WRITER, kind, target), None
    wait_for(killed, "begun")
    living = start(WRITER, kind, target)
    wait_for(living, "begun")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert len(list(tmp_path.glob(".out.*.partial"))) == 2
    make = {"file": atomic_path, "folder": atomic_directory}[kind]
    with make(target) as partial:
        (partial / "part" if partial.is_dir() else partial).write_text("mine")
        (tmp_path / ".other.abc.partial").write_text("of another output")
    assert len(list(tmp_path.glob(".out.*.partial"))) == 1
    assert living.communicate("\n")[1] == ""
    assert (target / "part" if kind == "folder" else target).read_text() == "whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.abc.partial", "out"]


SWAPPER = """
import sys
from pathlib import Path
from popularity.core.atomic import atomic_directory
input()
for number in range(60):
    with atomic_directory(Path(sys.argv[1])) as partial:
        for name in ("one", "two"):
            (partial / name).write_text(f"{sys.argv[2]} {number}")
"""


def test_two_runs_into_one_folder_leave_one_of_them_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_directory(target) as partial:
        for name in ("one", "two"):
            (partial / name).write_text("first")
    writers = [start(SWAPPER, target, name) for name in ("a", "b")]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    assert [writer.communicate()[1] for writer in writers] == ["", ""]
    assert (target / "one").read_text() == (target / "two").read_text() in ("a 59", "b 59")
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_cannot_be_moved_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    with atomic_directory(target) as partial:
        write_text(partial / "text", "old")
    rename = Path.rename

    def fail_after_the_old_is_aside(self: Path, to: Path) -> Path:
        if to == target and not target.exists() and ".old." not in self.name:
            raise PermissionError(errno.EACCES, "denied", str(to))
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_after_the_old_is_aside)
    with pytest.raises(PermissionError), atomic_directory(target) as partial:
        write_text(partial / "text", "new")
    assert (target / "text").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_leaves_the_last_output(tmp_path: Path) -> None:
    for make, target in ((atomic_path, tmp_path / "file"), (atomic_directory, tmp_path / "folder")):
        with make(target) as partial:
            (partial / "part" if partial.is_dir() else partial).write_text("old")
        with pytest.raises(ZeroDivisionError), make(target) as partial:
            (partial / "part" if partial.is_dir() else partial).write_text("new")
            raise ZeroDivisionError
    assert (tmp_path / "file").read_text() == (tmp_path / "folder/part").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_where_a_folder_should_be_is_one_message_and_stays(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")

    def into_the_file() -> None:
        write_text(tmp_path / "taken" / "out", "text")

    def onto_the_file() -> None:
        with atomic_directory(tmp_path / "taken"):
            raise AssertionError("never begun")

    for main in (into_the_file, onto_the_file):
        with pytest.raises(SystemExit) as ended:
            run(main)
        assert str(ended.value).startswith(f"error: {tmp_path / 'taken'}")
        assert "next: " in str(ended.value)
    assert (tmp_path / "taken").read_text() == "a file"


def test_json_comes_back_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    content = {"a": [1, 2.5, None], "ä": "text"}
    write_json(path, content)
    assert read_json(path) == content
    path.write_text(path.read_text(encoding="utf-8")[:-3], encoding="utf-8")
    with pytest.raises(ContractError, match=r"summary\.json: cannot be read"):
        read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


OWNER = """
import os, sys
from pathlib import Path
from popularity.core.resume import resume_state
with resume_state("stage", "key", Path(sys.argv[1])) as state:
    (state / "part").write_text("finished")
    if os.fork() == 0:  # a loader process, which outlives a kill for a moment
        sys.stdin.read()
        os._exit(0)
    print("begun", flush=True)
    input()
"""


def test_state_has_one_owner_until_he_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = start(OWNER, tmp_path)
    wait_for(owner, "begun")
    with pytest.raises(BusyError, match="another run of this stage works"), resume_state("stage", "key", tmp_path):
        raise AssertionError("never begun")
    with resume_state("stage", "other inputs", tmp_path):
        pass
    monkeypatch.setenv("RANK", "1")  # a process of the same launch, on the same inputs
    with pytest.raises(ZeroDivisionError), resume_state("stage", "key", tmp_path) as state:
        assert (state / "part").read_text() == "finished"
        raise ZeroDivisionError
    monkeypatch.delenv("RANK")
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with resume_state("stage", "key", tmp_path) as state:  # although the child of the dead one lives
        assert (state / "part").read_text() == "finished"
    assert not list((tmp_path / "stage").iterdir())
    owner.communicate()


KILLED_AT_ITS_END = """
import os, sys
from pathlib import Path
from popularity.core.resume import resume_state
with resume_state("stage", "key", Path(sys.argv[1])) as state:
    for name in "abc":
        (state / name).write_text("finished")
    sys.addaudithook(lambda event, path: event == "os.remove" and "lock" not in str(path[0]) and os._exit(9))
"""


def test_a_kill_while_finished_work_is_removed_leaves_no_part_of_it(tmp_path: Path) -> None:
    assert start(KILLED_AT_ITS_END, tmp_path).wait() == 9
    (left,) = (tmp_path / "stage").iterdir()
    assert len(list(left.iterdir())) >= 3
    with resume_state("stage", "key", tmp_path) as state:
        assert state != left
        assert [path.name for path in state.iterdir()] == ["lock"]
    assert not list((tmp_path / "stage").iterdir())


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o077, 0o600, 0o700), (0o022, 0o644, 0o755)])
def test_modes_are_what_the_umask_leaves(tmp_path: Path, mask: int, file: int, folder: int) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "new" / "a.txt", "a")
        with atomic_directory(tmp_path / "new" / "b") as partial:
            (partial / "c").touch()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / "new" / name).stat().st_mode) for name in ("a.txt", "b", "b/c")]
    assert modes == [file, folder, file]
