"""Two nodes on one machine: a stage that loses a worker on the second node writes the bytes of one process.

The nodes are two network namespaces, joined by a virtual cable and sharing a disk: as root, on Linux with iproute2.
Where they cannot be made the tests are skipped; tests/test_launch.py launches nodes on loopback.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from benchmarks.measuring import environment
from popularity.encoders.image_blocks import embed_images
from tests.encoders.tiny_encoders import encoder_sections, make_images
from tests.processes import wait_for
from tests.repository import REPOSITORY, stage_flags

PORT = 29600
PREFIX = "popularity-"  # of the namespaces' names


class NoNamespacesError(Exception):
    """This machine or this user cannot make network namespaces."""


@dataclass(frozen=True)
class Node:
    """A network namespace with one device besides loopback."""

    name: str
    device: str
    address: str


@contextmanager
def two_namespaces() -> Iterator[tuple[Node, Node]]:
    """Two nodes that reach each other and nothing else; they go in any case."""
    pid = os.getpid()
    nodes = [Node(f"{PREFIX}{pid}-{number}", f"pop{pid}n{number}", f"10.77.0.{number + 1}") for number in range(2)]
    try:
        remove_abandoned()
        for node in nodes:
            ip("netns", "add", node.name)
        ip("link", "add", nodes[0].device, "type", "veth", "peer", "name", nodes[1].device)
        for node in nodes:
            ip("link", "set", node.device, "netns", node.name)
            ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", node.device)
            ip("-n", node.name, "link", "set", "lo", "up")
            ip("-n", node.name, "link", "set", node.device, "up")
        yield nodes[0], nodes[1]
    finally:
        for node in nodes:
            remove(node)


def ip(*command: str) -> str:
    try:
        done = subprocess.run(["ip", *command], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise NoNamespacesError("there is no command `ip` (iproute2)") from None
    if done.returncode:
        raise NoNamespacesError(f"needs root and network namespaces: `ip {' '.join(command)}`: {done.stderr.strip()}")
    return done.stdout


def remove(node: Node) -> None:
    if node.name in namespaces():
        ip("netns", "del", node.name)  # and its device with it


def namespaces() -> list[str]:
    return [line.split()[0] for line in ip("netns", "list").splitlines()] if shutil.which("ip") else []


def remove_abandoned() -> None:
    """Of runs that were killed."""
    for name in namespaces():
        pid = name.removeprefix(PREFIX).partition("-")[0]
        if name.startswith(PREFIX) and not Path("/proc", pid).exists():
            ip("netns", "del", name)


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


def kill_a_worker(launcher: subprocess.Popen[bytes]) -> None:
    """SIGKILL, as a machine without memory left or a scheduler would send it."""
    (worker,) = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)


@pytest.fixture
def nodes() -> Iterator[Sequence[Node]]:
    try:
        with two_namespaces() as made:
            yield made
    except NoNamespacesError as error:
        pytest.skip(str(error))


def test_a_stage_on_two_nodes_survives_a_lost_worker(
    nodes: Sequence[Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POPULARITY_WORKERS", "0")
    images = make_images(tmp_path)
    params = images.params(shard_rows=2, batch_size=2)
    YAML().dump(encoder_sections(params), Path("params.yaml"))
    shutil.copytree(REPOSITORY / "configs", "configs")
    one, two = (Path(name, "data/embeddings/image") for name in ("one", "two"))
    flags = stage_flags("embed_image", Path(), root=images.root, images=images.table, out=two)
    with started(nodes, ["stages.embed_image", *flags], tmp_path, restarts=1) as launchers:
        wait_for(lambda: any(tmp_path.glob(".state/embed_image/*/shard-*.npz")), launchers[1])
        kill_a_worker(launchers[1])
        codes = [launcher.wait() for launcher in launchers]
    assert codes == [0, 0], [Path(f"node{rank}.log").read_text()[-2000:] for rank in range(2)]
    assert "shards are there from an earlier run" in Path("node0.log").read_text()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    embed_images(images.root, images.table, one, params)
    torch.set_num_threads(threads)
    alone, together = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in (one, two))
    assert alone
    assert together == alone


def test_namespaces_go_when_the_work_fails(nodes: Sequence[Node]) -> None:
    assert {node.name for node in nodes} <= set(namespaces())
    for node in nodes:
        remove(node)

    def fail() -> None:
        with two_namespaces():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not {node.name for node in nodes} & set(namespaces())
