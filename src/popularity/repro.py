"""Runs stages that need nothing of one another at the same time: python -m popularity.repro --jobs 2 [TARGET].

`make repro JOBS=2` calls it. The result is that of `dvc repro TARGET`, byte for byte: the commands are those of
dvc.yaml, and threads are as many as without --jobs, because their number is part of the bytes; the system divides the
cores. A stage starts when all that it depends on is there, by `dvc --wait-for-lock repro --single-item`: while a
command runs, DVC holds locks on the stage's own paths alone, and other stages run beside it. Stages that follow one
another without a fork share a DVC process. Stages that are up to date, and depend on none that is not, are left out.

What a process prints is shown when it ends. If a stage fails, no other process starts, those that run go on to the end
of their stages, and a second call goes on from there.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import IO, TYPE_CHECKING

from popularity.core.errors import ConfigError, PopularityError
from popularity.core.stage import run

if TYPE_CHECKING:
    from dvc.repo import Repo

Graph = Mapping[str, frozenset[str]]  # stage -> the stages that it depends on
POLL = 0.1  # s between looks at the running stages


class FailedStageError(PopularityError):
    """A stage ended with an error, which has been shown."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", default="report", help="stage that is wanted, with all that it needs")
    parser.add_argument("--jobs", type=int, default=2, help="stages at the same time")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error("--jobs: expected a number from 1 up")
    graph, changed = read_graph(args.target)
    stages = affected(graph, changed)
    if not stages:
        print("Data and pipelines are up to date.")
        return
    signal.signal(signal.SIGTERM, _interrupt)
    run_graph({stage: graph[stage] & stages for stage in graph if stage in stages}, args.jobs)


def read_graph(target: str) -> tuple[Graph, frozenset[str]]:
    """The stages that `target` needs, itself included, and those of them that are not up to date by themselves.

    Raises:
        ConfigError: DVC knows no such stage, or cannot read the repository.
    """
    # DVC takes a second to load: not for those who ask for help alone.
    from dvc.exceptions import DvcException  # noqa: PLC0415
    from dvc.repo import Repo  # noqa: PLC0415

    try:
        return _read_graph(Repo(), target)
    except DvcException as error:
        raise ConfigError(
            f"DVC cannot read the graph of {target}: {error}\n  expected: a stage of dvc.yaml, and no other DVC "
            "command that holds the repository's lock\n  next: dvc stage list"
        ) from error


def _read_graph(repo: Repo, target: str) -> tuple[Graph, frozenset[str]]:
    edges = repo.index.graph
    found, left = dict[str, frozenset[str]](), [*repo.stage.collect(target)]
    while left:
        stage = left.pop()
        if stage.addressing not in found:
            needs = list(edges.successors(stage))
            found[stage.addressing] = frozenset(each.addressing for each in needs)
            left += needs
    status = repo.status(targets=[target], with_deps=True)
    return found, frozenset(status)


def affected(graph: Graph, changed: frozenset[str]) -> frozenset[str]:
    """The `changed` stages and all that depend on one of them."""
    found, grown = frozenset[str](), changed & set(graph)
    while grown != found:
        found = grown
        grown = found | {stage for stage, needs in graph.items() if needs & found}
    return found


def next_chain(graph: Graph, done: frozenset[str], started: frozenset[str]) -> list[str]:
    """A stage that may start, and those after it for which nothing else waits; empty if none may start.

    Of several that may start the one that most stages wait for is taken.

    Args:
        graph: of all stages to run.
        done: stages that have ended.
        started: stages that have started, those done included.
    """
    ready = [stage for stage, needs in graph.items() if stage not in started and needs <= done]
    if not ready:
        return []
    chain = [max(sorted(ready), key=lambda stage: len(affected(graph, frozenset({stage}))))]
    while True:
        ended = done | set(chain)
        after = [stage for stage, needs in graph.items() if needs <= ended and stage not in started | {*chain, *ready}]
        if len(after) != 1 or not _waited_for(graph, chain[-1]) <= affected(graph, frozenset(after)):
            return chain
        chain += after


def _waited_for(graph: Graph, stage: str) -> frozenset[str]:
    """The stages that depend on `stage` itself."""
    return frozenset(each for each, needs in graph.items() if stage in needs)


def run_graph(graph: Graph, jobs: int) -> None:
    """Runs all stages of `graph`, at most `jobs` at the same time.

    Raises:
        FailedStageError: a stage failed; the others that had started have ended.
    """
    done, started, failed = frozenset[str](), frozenset[str](), list[str]()
    running: list[Job] = []
    try:
        while running or (not failed and done != set(graph)):
            while not failed and len(running) < jobs and (chain := next_chain(graph, done, started)):
                running.append(Job.start(chain))
                started |= set(chain)
            time.sleep(POLL)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                job.show()
                if job.process.returncode:
                    failed += job.stages
                else:
                    done |= set(job.stages)
    finally:
        for job in running:
            job.interrupt()
    if failed:
        raise FailedStageError(
            f"failed, or not started: {', '.join(failed)} (see above)\n"
            "  next: mend it and run the command again: finished work is kept"
        )


@dataclass(frozen=True)
class Job:
    """A DVC process that runs stages one after another.

    Args:
        stages: by name.
        process: of DVC, the leader of a group of its own.
        output: what it prints.
        since: when it started.
    """

    stages: list[str]
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    since: float = field(default_factory=time.perf_counter)

    @classmethod
    def start(cls, stages: list[str]) -> Job:
        """Starts the stages."""
        print(f"==> {', '.join(stages)}: started", flush=True)
        output = tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", *stages]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        return cls(stages, process, output)

    def show(self) -> None:
        """Prints what the process printed, of each progress bar its last state."""
        self.output.seek(0)
        lines = self.output.read().decode(errors="replace").rstrip().split("\n")
        print(f"==> {', '.join(self.stages)}: {time.perf_counter() - self.since:.0f} s")
        print("\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines), flush=True)
        self.output.close()

    def interrupt(self) -> None:
        """Ends the process as Ctrl-C would, and waits for it."""
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait()
        self.show()


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run(main)
