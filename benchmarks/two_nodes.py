"""embed_image, embed_text and train on two nodes against one process, undisturbed and with a worker killed midway.

The nodes are two network namespaces of this machine, joined by a cable (veth) and sharing its disk: as root, on Linux
with `ip` (iproute2). The data are a demo of the profile tiny, cut into small parts; everything is on the processors, in
fp32, without dropout. The vectors of two nodes must be those of one process byte for byte, the losses of every epoch
must agree within 1e-5; if not, the exit status is 1.

    python -m benchmarks.two_nodes
    python -m benchmarks.two_nodes --until embed_image --keep /tmp/two_nodes     # keeps runs and logs
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks.measuring import REPOSITORY, environment
from popularity.errors import ConfigError
from popularity.stage import run

STAGES = ("embed_image", "embed_text", "train")
BEFORE = ("demo_data", "ingest", "index_images")
PORT = 29600
TOLERANCE = 1e-5
PREFIX = "popularity-"  # of the namespaces' names


@dataclass(frozen=True)
class Node:
    """A network namespace with one device besides loopback."""

    name: str
    device: str
    address: str


@dataclass(frozen=True)
class Row:
    """A stage: seconds of one process and of two nodes, without and with a lost worker; how far they are apart."""

    stage: str
    one: float
    two: float
    lost: float
    agreement: str
    agrees: bool


@contextmanager
def two_namespaces() -> Iterator[tuple[Node, Node]]:
    """Two nodes that reach each other and nothing else; they go in any case.

    Raises:
        ConfigError: this machine or this user cannot make them.
    """
    pid = os.getpid()
    nodes = [Node(f"{PREFIX}{pid}-{number}", f"pop{pid}n{number}", f"10.77.0.{number + 1}") for number in range(2)]
    try:
        _remove_abandoned()
        for node in nodes:
            _ip("netns", "add", node.name)
        _ip("link", "add", nodes[0].device, "type", "veth", "peer", "name", nodes[1].device)
        for node in nodes:
            _ip("link", "set", node.device, "netns", node.name)
            _ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", node.device)
            _ip("-n", node.name, "link", "set", "lo", "up")
            _ip("-n", node.name, "link", "set", node.device, "up")
        yield nodes[0], nodes[1]
    finally:
        for node in nodes:
            remove(node)


def _ip(*command: str) -> str:
    try:
        done = subprocess.run(["ip", *command], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        problem = "there is no command `ip`"
    else:
        if not done.returncode:
            return done.stdout
        problem = f"`ip {' '.join(command)}`: {done.stderr.strip()}"
    raise ConfigError(
        f"two network namespaces cannot be made: {problem}\n"
        "  expected: root, on Linux with iproute2, where namespaces are allowed (not in most containers)\n"
        "  next: run it there; the same launches on loopback: python -m pytest tests/test_launch.py -k nodes"
    )


def remove(node: Node) -> None:
    if node.name in namespaces():
        _ip("netns", "del", node.name)  # and its device with it


def namespaces() -> list[str]:
    return [line.split()[0] for line in _ip("netns", "list").splitlines()] if shutil.which("ip") else []


def _remove_abandoned() -> None:
    """Of runs that were killed."""
    for name in namespaces():
        pid = name.removeprefix(PREFIX).partition("-")[0]
        if name.startswith(PREFIX) and not Path("/proc", pid).exists():
            _ip("netns", "del", name)


@contextmanager
def started(
    nodes: Sequence[Node], command: Sequence[str], folder: Path, restarts: int = 0
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """`python -m popularity.launch <command>` in `folder` on every node, the main one first; logs in `node<k>.log`."""
    own = environment() | {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "POPULARITY_TOPOLOGY": "nodes",
        "POPULARITY_NODES": str(len(nodes)),
        "POPULARITY_MAIN_ADDRESS": nodes[0].address,
        "POPULARITY_MAIN_PORT": str(PORT),
        "POPULARITY_RESTARTS": str(restarts),
    }
    launchers = []
    for rank, node in enumerate(nodes):
        of_node = {"POPULARITY_NODE_RANK": str(rank), "GLOO_SOCKET_IFNAME": node.device}
        inside = ["ip", "netns", "exec", node.name, sys.executable, "-m", "popularity.launch", *command]
        with (folder / f"node{rank}.log").open("ab") as log:
            launchers.append(subprocess.Popen(inside, cwd=folder, env=own | of_node, stdout=log, stderr=log))
    try:
        yield launchers
    finally:
        for launcher in launchers:
            if launcher.poll() is None:
                launcher.terminate()
        for launcher in launchers:
            launcher.wait()


def finish(launchers: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    codes = [launcher.wait() for launcher in launchers]
    if any(codes):
        told = "\n".join((folder / f"node{rank}.log").read_text()[-2000:] for rank in range(len(codes)))
        raise RuntimeError(f"the nodes ended with {codes}\n{told}")


def kill_a_worker(launcher: subprocess.Popen[bytes]) -> None:
    """SIGKILL, as a machine without memory left or a scheduler would send it."""
    (worker,) = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="the last stage to run")
    parser.add_argument("--keep", type=Path, help="folder for runs and logs; default: a temporary one")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the namespaces go with an exception
    with tempfile.TemporaryDirectory() as name, two_namespaces() as nodes:
        folder = args.keep or Path(name)
        one, two, lost = folder / "one", folder / "two", folder / "lost"
        prepare(one)
        for copy in (two, lost):
            shutil.copytree(one, copy)
        rows = []
        for stage in STAGES[: STAGES.index(args.until) + 1]:
            if stage == "train":
                for place in (one, two, lost):
                    execute(place, "prototypes")
            rows.append(compare(stage, one, two, lost, nodes))
    print(table(rows))
    sys.exit(0 if all(row.agrees for row in rows) else 1)


def prepare(folder: Path) -> None:
    """A project of the profile tiny, in which the stages before the vectors have run."""
    folder.mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(REPOSITORY / name, folder / name)
    shutil.copytree(REPOSITORY / "configs", folder / "configs")
    command = [sys.executable, "-m", "popularity.profile", "tiny"]
    subprocess.run(command, cwd=folder, env=environment(), check=True, stdout=subprocess.DEVNULL)
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    for stage in ("embed_image", "embed_text"):
        params[stage] |= {"shard_rows": 8, "precision": "fp32"}
    params["train"] |= {"epochs": 8, "precision": "fp32", "batch_size": 32}
    params["train"]["network"]["attention"]["dropout"] = 0.0
    yaml.dump(params, folder / "params.yaml")
    for stage in BEFORE:
        execute(folder, stage)


def command_of(folder: Path, stage: str) -> list[str]:
    """What dvc.yaml runs, without `python -m` and the launcher."""
    graph = YAML(typ="safe").load(folder / "dvc.yaml")["stages"]
    root = YAML(typ="safe").load(folder / "params.yaml")["dataset"]["root"]
    command: list[str] = graph[stage]["cmd"].replace("${dataset.root}", root).split()[2:]
    return command[1:] if command[0] == "popularity.launch" else command


def execute(folder: Path, stage: str) -> float:
    """Seconds of one process."""
    began = time.perf_counter()
    own = environment() | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", *command_of(folder, stage)]
    done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{stage}: {done.stderr[-2000:]}")
    return time.perf_counter() - began


def compare(stage: str, one: Path, two: Path, lost: Path, nodes: Sequence[Node]) -> Row:
    alone = execute(one, stage)
    began = time.perf_counter()
    with started(nodes, command_of(two, stage), two) as launchers:
        finish(launchers, two)
    together = time.perf_counter() - began
    began = time.perf_counter()
    finished, unit = (epochs_done, "epochs") if stage == "train" else (parts_done, "parts")
    with started(nodes, command_of(lost, stage), lost, restarts=1) as launchers:
        while not (count := finished(lost, stage)) and all(launcher.poll() is None for launcher in launchers):
            time.sleep(0.002)
        kill_a_worker(launchers[1])
        finish(launchers, lost)
    again = time.perf_counter() - began
    log = (lost / "node0.log").read_text(encoding="utf-8")
    taken_up = re.findall(r"\d+ of \d+ shards are there from an earlier run|going on after epoch \d+", log)[-1:]
    print(f"{stage}: killed a worker of the second node after {count} {unit}; the next ones: {' '.join(taken_up)}")
    agreement, agrees = losses_agree(one, two, lost) if stage == "train" else bytes_agree(stage, one, two, lost)
    return Row(stage, alone, together, again, agreement, agrees and bool(taken_up))


def parts_done(folder: Path, stage: str) -> int:
    return len(list(folder.glob(f".state/{stage}/*/shard-*.npz")))


def epochs_done(folder: Path, stage: str) -> int:
    found = list(folder.glob(f".state/{stage}/*/checkpoint/history.json"))
    return len(json.loads(found[0].read_text(encoding="utf-8"))) if found else 0


def bytes_agree(stage: str, one: Path, *others: Path) -> tuple[str, bool]:
    """Whether every file of the stage's block is the same."""
    out = Path("data/embeddings") / stage.removeprefix("embed_")
    names = {file.name for folder in (one, *others) for file in (folder / out).iterdir()}
    same = all(_content(folder / out / name) == _content(one / out / name) for folder in others for name in names)
    return "the same bytes" if same else "OTHER BYTES", same


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def losses_agree(one: Path, *others: Path) -> tuple[str, bool]:
    """The largest relative difference of a loss in any epoch."""
    histories = [
        json.loads((folder / "models/network/network.json").read_text(encoding="utf-8"))["history"]
        for folder in (one, *others)
    ]
    if len({len(history) for history in histories}) > 1:
        return "OTHER EPOCHS", False
    largest = max(
        abs(there[name] / here[name] - 1)
        for history in histories[1:]
        for here, there in zip(histories[0], history, strict=True)
        for name in here
        if "top" not in name
    )
    return f"losses within {largest:.1e}", largest <= TOLERANCE


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| stage | one process s | two nodes s | worker lost s | two nodes and one process |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {row.stage} | {row.one:.1f} | {row.two:.1f} | {row.lost:.1f} | {row.agreement} |" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
