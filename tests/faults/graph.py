"""The stages of a graph that has run, each to be run again under faults, and what it must leave behind."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import polars as pl

from popularity.core.config import read_yaml
from tests.clones import Clone
from tests.faults.server import WRITTEN, Ended, Order, digests
from tests.repository import DVC_NAMES, STAGES, stage_command

OLD = b"of an earlier run"
AT_ONCE = re.compile(r'(parallel_folds"?: )1')
TRIES = 12  # to kill a run that ends before the moment


@dataclass(frozen=True)
class Stage:
    """A stage: its command, in parts, as dvc.yaml has it, and its outs, as dvc.lock has them."""

    name: str
    module: str
    flags: tuple[str, ...]
    outs: tuple[str, ...]

    @property
    def record(self) -> str:
        """The out that no two runs share: what the run cost."""
        return next(out for out in self.outs if out.startswith("reports/resources/"))


def stages_of(root: Path) -> list[Stage]:
    """In the order of dvc.yaml, which is that of the graph."""
    locked = read_yaml(root / "dvc.lock")["stages"]
    found = []
    for name in STAGES:
        module, *flags = stage_command(name)  # the launcher runs a single process in place of itself
        found.append(Stage(name, module, tuple(flags), tuple(out["path"] for out in locked[DVC_NAMES[name]]["outs"])))
    return found


class Server:
    """tests.faults.server in the root of a clone."""

    def __init__(self, clone: Clone, modules: Sequence[str]) -> None:
        environment = clone.environment({"ACCELERATE_USE_CPU": "true", "POPULARITY_PROCESSES": "1"})
        command = [sys.executable, "-m", "tests.faults.server", *modules]
        self._process = subprocess.Popen(
            command, cwd=clone.root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        if kind is not None:
            self._process.kill()
        self._process.wait()

    def execute(self, order: Order) -> Ended:
        return Ended(**self._ask(task="execute", order=vars(order)))

    def on_bad_disk(self, order: Order, outs: Sequence[str], shares: Sequence[float]) -> dict[str, Any]:
        return self._ask(task="on_bad_disk", order=vars(order), outs=outs, shares=shares)

    def _ask(self, **request: Any) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        line = stdout.readline()
        assert line, "the server of stages has ended; see the messages above"
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass
class Count:
    """What was done to a stage, and what came of it."""

    injected: int = 0
    after_first_write: int = 0
    survived: int = 0
    lost_rows: int = 0
    wrong: list[str] = field(default_factory=list)


class Workspace:
    """A copy of a clone whose graph has run, in which stages are run again, with two folds at a time."""

    def __init__(self, clone: Clone, root: Path, server: Server) -> None:
        ignored = shutil.ignore_patterns("cache", "__pycache__")
        shutil.copytree(clone.root, root, symlinks=True, ignore=ignored)
        shutil.rmtree(root / "src")  # a stage refuses to run beside other code than its own
        (root / "src").symlink_to(clone.root / "src")
        written = [root / "reports/model_card.md", *root.glob("models/*/manifest.json")]
        for path in [root / "params.yaml", *written]:
            path.write_text(AT_ONCE.sub(r"\g<1>2", path.read_text()))
        assert read_yaml(root / "params.yaml")["stack"]["parallel_folds"] == 2
        self.root, self.server = root, server
        self.whole = digests(root)
        self._kept = {name: (root / name).read_bytes() for name in self.whole}

    def order(self, stage: Stage, **kill: Any) -> Order:
        return Order(stage.module, stage.flags, str(self.root), **kill)

    def make_old(self, stage: Stage) -> None:
        """The outs of a run with other parameters: no byte of them may stay."""
        for name in self._files_of(stage):
            (self.root / name).unlink()  # it may be a link to another stage's file
            (self.root / name).write_bytes(OLD)
        for out in map(self.root.joinpath, stage.outs):
            if out.is_dir() and stage.name != "train":  # DVCLive clears what is its own in its folder
                (out / "old.txt").write_bytes(OLD)

    def take_away(self, stage: Stage) -> None:
        for out in map(self.root.joinpath, stage.outs):
            shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)

    def put_back(self, stage: Stage) -> None:
        """The workspace as the undisturbed run left it."""
        self.take_away(stage)
        for folder in WRITTEN:
            for path in (self.root / folder).rglob("*"):
                if path.is_file() and str(path.relative_to(self.root)) not in self.whole:
                    path.unlink()
        for name in self._files_of(stage):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_bytes(self._kept[name])

    def differences(self, stage: Stage) -> list[str]:
        """Files that are not what the undisturbed run left, or that it did not leave; costs apart."""
        found = digests(self.root)
        return compared(self.whole, found, stage)

    def lost_rows(self, stage: Stage) -> int:
        """Rows that the stage's tables have less than after the undisturbed run."""
        lost = 0
        for name in self._files_of(stage):
            if name.endswith(".parquet"):
                before = pl.read_parquet(self._kept[name]).height
                path = self.root / name
                lost += max(0, before - (pl.read_parquet(path).height if path.is_file() else 0))
        return lost

    def _files_of(self, stage: Stage) -> list[str]:
        return [name for name in self.whole if any(name == out or name.startswith(f"{out}/") for out in stage.outs)]


def compared(whole: Mapping[str, str], found: Mapping[str, str], stage: Stage, *, state: bool = True) -> list[str]:
    """Names of files in which the two differ but for the costs; without `state` what waits for a next run too."""
    names = {name for name in {*whole, *found} if state or not name.startswith(".state/")} - {stage.record}
    return sorted(name for name in names if whole.get(name) != found.get(name))


def kill(workspace: Workspace, stage: Stage, kills: int) -> Count:
    """Kills the stage `kills` times, each time runs it again to its end, and counts.

    Half of the kills are spread evenly over its duration. The others come before, or some time after, a write: spread
    evenly over the writes from the first to the last. Every other time the outs of an earlier run are there; which
    times differs between stages, so that a single kill a stage has both.
    """
    count, chance, turn = Count(), random.Random(stage.name), list(STAGES).index(stage.name)
    workspace.take_away(stage)
    undisturbed = workspace.server.execute(workspace.order(stage))
    if undisturbed.code or (wrong := workspace.differences(stage)):
        count.wrong.append(
            f"undisturbed: exit code {undisturbed.code}, {undisturbed.messages if undisturbed.code else wrong}"
        )
        workspace.put_back(stage)
        return count
    timed = kills // 2
    moments = [("seconds", (index + chance.random()) / timed) for index in range(timed)]
    moments += [("writes", (index + chance.random()) / (kills - timed)) for index in range(kills - timed)]
    for index, (kind, fraction) in enumerate(moments, start=turn):
        (workspace.make_old if index % 2 else workspace.take_away)(stage)
        exactly, before = index % 3 != 1, digests(workspace.root)
        killed = _kill_once(workspace, stage, undisturbed, kind, fraction, exactly=exactly)
        count.injected += 1
        count.after_first_write += digests(workspace.root) != before
        if killed.code != -9:
            count.wrong.append(f"{kind} {fraction:.2f}: exit code {killed.code}, {killed.messages}")
        again = workspace.server.execute(workspace.order(stage))
        wrong = workspace.differences(stage)
        count.lost_rows += workspace.lost_rows(stage)
        if again.code or wrong:
            count.wrong.append(
                f"{kind} {fraction:.2f}: then exit code {again.code}, {again.messages if again.code else wrong}"
            )
        else:
            count.survived += 1
        workspace.put_back(stage)
    return count


def _kill_once(
    workspace: Workspace, stage: Stage, undisturbed: Ended, kind: str, fraction: float, *, exactly: bool
) -> Ended:
    """A run that is killed after `fraction` (0 to 1) of its duration or its writes; earlier if it ended before."""
    moments = [*undisturbed.writes, undisturbed.seconds]
    for attempt in range(TRIES):
        if kind == "seconds":
            order = workspace.order(stage, seconds=undisturbed.seconds * fraction * 0.65**attempt)
        else:
            write = max(1, int(fraction * len(undisturbed.writes)) - attempt)
            gap = 0.0 if exactly else (moments[write + 1] - moments[write]) * (fraction * len(undisturbed.writes) % 1)
            order = workspace.order(stage, write=write, delay=gap)
        killed = workspace.server.execute(order)
        if killed.code:
            break
    return killed


def table(counts: Mapping[str, Count]) -> str:
    """For people: a line a stage, and the sum."""
    rows: list[tuple[str, ...]] = [("stage", "faults injected", "after first write", "survived", "lost rows")]
    total = Count()
    for name, count in counts.items():
        rows.append((name, *(str(getattr(count, part)) for part in _SHOWN)))
        for part in _SHOWN:
            setattr(total, part, getattr(total, part) + getattr(count, part))
    rows.append(("all", *(str(getattr(total, part)) for part in _SHOWN)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)


_SHOWN = ("injected", "after_first_write", "survived", "lost_rows")
