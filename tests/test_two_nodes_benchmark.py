"""Two network namespaces as nodes, where this machine and user can make them: a stage on both equals one process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from benchmarks import two_nodes
from benchmarks.two_nodes import Node, Row, bytes_agree, finish, kill_a_worker, parts_done, started, table
from popularity.encoders.image_blocks import embed_images
from popularity.errors import ConfigError
from tests.encoders.tiny_encoders import make_pictures
from tests.processes import wait_for

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def nodes() -> Iterator[Sequence[Node]]:
    try:
        with two_nodes.two_namespaces() as made:
            yield made
    except ConfigError as error:
        pytest.skip(str(error))


def test_a_stage_on_two_nodes_survives_a_lost_worker(
    nodes: Sequence[Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POPULARITY_WORKERS", "0")
    pictures = make_pictures(tmp_path)
    params = pictures.params(shard_rows=2, batch_size=2)
    YAML().dump({"embed_image": asdict(params)}, Path("params.yaml"))
    shutil.copytree(REPOSITORY / "configs", "configs")
    given = {"root": pictures.root, "images": pictures.table, "resources": "out.json"}
    command = ["stages.embed_image", *(part for name, path in given.items() for part in (f"--{name}", str(path)))]
    out = "data/embeddings/image"
    with started(nodes, [*command, "--out", f"two/{out}"], tmp_path, restarts=1) as launchers:
        wait_for(lambda: parts_done(tmp_path, "embed_image") > 0, launchers[1])
        kill_a_worker(launchers[1])
        finish(launchers, tmp_path)
    assert "shards are there from an earlier run" in Path("node0.log").read_text()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    embed_images(pictures.root, pictures.table, Path("one", out), params)
    torch.set_num_threads(threads)
    assert bytes_agree("embed_image", Path("one"), Path("two")) == ("the same bytes", True)


def test_namespaces_go_when_the_work_fails(nodes: Sequence[Node]) -> None:
    assert {node.name for node in nodes} <= set(two_nodes.namespaces())
    for node in nodes:
        two_nodes.remove(node)

    def fail() -> None:
        with two_nodes.two_namespaces():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not {node.name for node in nodes} & set(two_nodes.namespaces())


def test_where_there_is_no_ip_command_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="two network namespaces cannot be made: there is no command `ip`"):
        two_nodes.two_namespaces().__enter__()


def test_the_table() -> None:
    lines = table([Row("train", 1.0, 2.0, 3.0, "losses within 3.0e-06", agrees=True)]).splitlines()
    assert lines[2] == "| train | 1.0 | 2.0 | 3.0 | losses within 3.0e-06 |"
