"""Faults that happen to every stage of the graph while it runs: nothing is lost, and the next run ends as it should.

FAULT_KILLS is the number of kills a stage, 1 by default; `make faults` sets 20.

Stages are run again with their own commands of dvc.yaml, in children of one process that has imported torch, which is
all that `dvc repro` would do: DVC leaves outs in place (persist) and compares contents. That it does is tested once
more with DVC itself, on one stage by default and on all in `make faults`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.clones import Clone, copy_of
from tests.faults.graph import Count, Server, Stage, Workspace, compared, kill, stages_of, table
from tests.faults.server import digests
from tests.repository import STAGES

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("FAULT_KILLS", "1"))
SHARES = (0.05, 0.4, 0.8) if KILLS > 1 else (0.5,)
BY_DVC = list(STAGES) if KILLS > 1 else ["embed_text"]
COUNTS: dict[str, Count] = {}
BAD_DISKS: list[str] = []


@pytest.fixture(scope="module")
def stages(clone: Clone) -> dict[str, Stage]:
    return {stage.name: stage for stage in stages_of(clone.root)}


@pytest.fixture(scope="module")
def workspace(clone: Clone, stages: dict[str, Stage], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with Server(clone, sorted({stage.module for stage in stages.values()})) as server:
        yield Workspace(clone, tmp_path_factory.mktemp("faults") / "root", server)


@pytest.mark.parametrize("name", STAGES)
def test_a_killed_stage_ends_in_the_same_bytes_when_run_again(
    workspace: Workspace, stages: dict[str, Stage], name: str
) -> None:
    count = COUNTS[name] = kill(workspace, stages[name], KILLS)
    assert count.wrong == []
    assert (count.injected, count.survived, count.lost_rows) == (KILLS, KILLS, 0)
    assert count.after_first_write * 2 >= KILLS


@pytest.mark.parametrize("name", STAGES)
def test_a_disk_that_is_read_only_or_full_costs_no_output(
    workspace: Workspace, stages: dict[str, Stage], name: str
) -> None:
    stage = stages[name]
    shares = () if name == "stack_vectors" else SHARES  # its outs are links, which need no room
    ran = workspace.server.on_bad_disk(workspace.order(stage), stage.outs, shares)
    BAD_DISKS.extend(bad["disk"] for bad in ran["bad"])
    for bad in ran["bad"]:
        expected = {"read-only": "Read-only file system"}.get(bad["disk"], "No space left on device")
        assert bad["code"] == 1, (bad["disk"], bad["messages"])
        assert expected in bad["messages"]
        assert "Traceback" not in bad["messages"]
        differing = compared(ran["before"], bad["files"], stage, state=False)
        # The curves of a training are written while it runs: they are lost, and made again.
        assert [path for path in differing if not path.startswith("reports/training/")] == []
    if last := ran["last"]:
        assert last["code"] == 0, last["messages"]
        assert compared(ran["before"], last["files"], stage) == []


@pytest.mark.parametrize("name", BY_DVC)
def test_dvc_itself_killed_with_its_stage(clone: Clone, stages: dict[str, Stage], tmp_path: Path, name: str) -> None:
    """The whole process group: DVC and the stage, after the stage's first write."""
    stage, copy = stages[name], copy_of(clone, tmp_path / "clone")
    real = replace(copy, programs=None)  # so that the process that is killed is the stage's own
    whole = digests(copy.root)
    for out in map(copy.root.joinpath, stage.outs):
        shutil.rmtree(out) if out.is_dir() else out.unlink()
    before = digests(copy.root)
    command = ["dvc", "repro", "--no-run-cache", "--single-item", name]
    started = subprocess.Popen(
        command, cwd=copy.root, env=real.environment(), stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while digests(copy.root) == before and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    if name == "embed_text":  # it takes longer than another DVC takes to start: of two runs at once, one works
        second = real.run(*command, check=False)
        assert second.returncode
        assert "lock" in second.stderr or "blocked" in second.stderr
    os.killpg(started.pid, signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    copy.run("dvc", "repro", "--no-run-cache")
    # The report shows what each stage cost, and this one was run again.
    allowed = {"reports/report.html", "reports/resources/report.json"}
    assert set(compared(whole, digests(copy.root), stage)) <= allowed
    assert copy.stages_run(copy.run("dvc", "repro").stdout) == []


def test_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """Last: what `make faults` prints."""
    if not COUNTS:
        pytest.skip("no stage was killed")
    with capsys.disabled():
        print(
            f"\n{table(COUNTS)}\nfull and read-only disks: {len(BAD_DISKS)}, no output lost by the runs that they ended"
        )
    assert sum(count.lost_rows for count in COUNTS.values()) == 0
