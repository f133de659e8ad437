"""Stages beside each other: their order, and the real DVC on a small graph of shell commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from popularity import repro
from popularity.core.errors import ConfigError
from tests.processes import wait_for
from tests.repository import REPOSITORY

GRAPH = {
    name: frozenset(needs.split())
    for name, needs in {
        "data": "",
        "split": "data",
        "image": "data",
        "text": "data",
        "network": "image text",
        "embed": "network",
        "text_model": "split",
        "stack": "embed split",
        "ensemble": "stack text_model",
        "report": "ensemble network",
    }.items()
}


def test_what_is_affected_by_a_change() -> None:
    assert repro.affected(GRAPH, frozenset({"text_model"})) == {"text_model", "ensemble", "report"}
    assert repro.affected(GRAPH, frozenset()) == frozenset()


def test_a_chain_keeps_no_other_stage_waiting() -> None:
    def chain(done: str, started: str = "") -> list[str]:
        ended = frozenset(done.split())
        return repro.next_chain(GRAPH, ended, ended | set(started.split()))

    assert chain("") == ["data"]  # three stages wait for it
    assert chain("data split", "image") == ["text"]
    assert chain("data split image text", "text_model") == ["network", "embed", "stack"]
    assert chain("data split image", "text") == ["text_model"]
    assert chain("data image text", "network embed") == ["split"]  # stack waits for it, and not for text_model
    assert chain("data split image text", "network embed stack text_model") == []
    assert chain("data split image text network embed stack text_model") == ["ensemble", "report"]


def test_a_stage_that_is_not_there_is_an_error(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"DVC cannot read the graph of d: (.|\n)*next: dvc stage list"):
        repro.main(["d"])


SLOW = pytest.mark.slow  # DVC itself takes seconds


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of DVC: two stages that wait for each other to run, and one that joins them."""
    monkeypatch.chdir(tmp_path)
    meet = "touch {0}.runs && timeout --foreground 60 sh -c 'until test -e {1}.runs; do sleep .1; done' && cat in > {0}"
    stage = '  {}: {{cmd: "{}", deps: [{}], outs: [{}]}}\n'
    graph = "stages:\n" + stage.format("a", meet.format("a", "b"), "in", "a")
    graph += stage.format("b", meet.format("b", "a"), "in", "b") + stage.format("c", "cat a b > c", "a, b", "c")
    Path("dvc.yaml").write_text(graph, encoding="utf-8")
    Path("in").write_text("1", encoding="utf-8")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, check=True, capture_output=True)
    return tmp_path


@SLOW
def test_independent_stages_run_at_the_same_time(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    repro.main(["c", "--jobs", "2"])  # one after another they would wait for each other, and fail
    assert (project / "c").read_text() == "11"
    printed = capfd.readouterr().out
    assert printed.count("Running stage") == 3
    locked = subprocess.run([sys.executable, "-m", "dvc", "status"], capture_output=True, text=True, check=True)
    assert "up to date" in locked.stdout
    repro.main(["c"])
    assert "up to date" in capfd.readouterr().out


@SLOW
def test_a_failed_stage_is_named_and_the_others_are_kept(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    graph = project / "dvc.yaml"
    text = graph.read_text()
    graph.write_text(text.replace("cat in > b", "sleep 1; no-such-command"))
    with pytest.raises(
        repro.FailedStageError, match=r"failed, or not started: b \(see above\)\n  next: .*run the command again"
    ):
        repro.main(["c"])
    assert "no-such-command" in capfd.readouterr().out
    assert (project / "a").read_text() == "1"
    assert not (project / "c").exists()
    graph.write_text(text)
    repro.main(["c"])
    assert "Running stage 'a'" not in capfd.readouterr().out
    assert (project / "c").read_text() == "11"


@SLOW
def test_ended_from_outside_it_ends_its_stages(project: Path) -> None:
    graph = project / "dvc.yaml"
    graph.write_text(graph.read_text().replace("foreground 60", "foreground 300").replace("test -e", "test -e no"))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    command = [sys.executable, "-m", "popularity.repro", "c"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    wait_for(lambda: (project / "a.runs").exists() and (project / "b.runs").exists(), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    time.sleep(0.5)
    left = subprocess.run(["pgrep", "-f", "test -e nob.runs"], capture_output=True, text=True, check=False)
    assert left.stdout == ""
