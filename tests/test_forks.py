"""What stands in for Python in the clones behaves as Python does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forks import serving

PROBE = """
import os, signal, sys, time
import colorsys, own  # a library, and a module of the folder
sys.stdout.reconfigure(errors="replace")
match sys.argv[1]:
    case "tell": print(*sys.argv[1:], own.NAME, os.getcwd(), os.environ["GIVEN"], "PATH" in os.environ, __name__)
    case "read": print(sys.stdin.read()[::-1], file=sys.stderr)
    case "exit": sys.exit(int(sys.argv[2]))
    case "refuse": sys.exit("refused")
    case "fail": raise ValueError("failed")
    case "kill": os.kill(os.getpid(), signal.SIGKILL)
    case "pid": print(os.getpid(), flush=True); time.sleep(300)
    case "become": os.environ["GIVEN"] = "changed"; os.execv(sys.executable, [sys.executable, "-m", "probe", "tell"])
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("programs")
    with serving(folder):
        yield str(folder / "python")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "own.py").write_text(f"NAME = {tmp_path.name!r}")
    return tmp_path


def run(program: str, folder: Path, *given: str, path: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, "-m", "probe", *given],
        cwd=folder,
        env={"GIVEN": "this", "PYTHONPATH": path},
        input="abc",
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "given", [["tell", "a b"], ["read"], ["exit", "0"], ["exit", "3"], ["refuse"], ["kill"], ["become"]], ids=" ".join
)
def test_a_child_does_what_python_does(program: str, folder: Path, given: list[str]) -> None:
    """Arguments, folder, environment, all three streams and the exit code."""
    real, child = run(sys.executable, folder, *given), run(program, folder, *given)
    assert (child.returncode, child.stdout, child.stderr) == (real.returncode, real.stdout, real.stderr)
    assert real.returncode or real.stdout or real.stderr or given[-1] == "0"


def test_an_exception_has_a_traceback_and_exit_code_1(program: str, folder: Path) -> None:
    failed = run(program, folder, "fail")
    assert failed.returncode == 1
    assert "Traceback" in failed.stderr
    assert failed.stderr.endswith("ValueError: failed\n")


def test_children_share_libraries_and_no_module_of_a_project(program: str, folder: Path, tmp_path: Path) -> None:
    """The search path is that of each: its folder, then PYTHONPATH."""
    assert folder.name in run(program, folder, "tell").stdout
    other = tmp_path / "other"
    other.mkdir()
    (other / "own.py").write_text("NAME = 'of another project'")
    (folder / "probe.py").rename(other / "probe.py")
    assert "of another project" in run(program, other, "tell", path=str(folder)).stdout
    (other / "own.py").unlink()
    assert folder.name in run(program, other, "tell", path=str(folder)).stdout
    (other / "probe.py").write_text("import sys; print('colorsys' in sys.modules, 'own' in sys.modules)")
    assert run(program, other).stdout == "True False\n"


def test_a_child_ends_with_what_it_stands_in_for(program: str, folder: Path) -> None:
    command = [program, "-m", "probe", "pid"]
    with subprocess.Popen(command, cwd=folder, env={"GIVEN": ""}, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        child = int(client.stdout.readline())
        client.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{child}").exists()
    assert run(program, folder, "exit", "5").returncode == 5


def test_without_a_module_python_itself_runs(program: str) -> None:
    code = "import os, sys; print(os.getpid(), sys.flags.isolated)"
    with subprocess.Popen([program, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ}) as started:
        assert started.communicate()[0].split() == [str(started.pid), "0"]
