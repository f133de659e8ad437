"""Two runs of a stage at once in one folder: the first goes on, the other says why it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages import embed_image
from tests.encoders.tiny_encoders import Images, encoder_sections, make_images
from tests.processes import wait_for
from tests.repository import REPOSITORY, stage_flags

pytestmark = pytest.mark.slow


def arguments(images: Images, out: str) -> list[str]:
    YAML().dump(encoder_sections(images.params()), Path("params.yaml"))
    return stage_flags("embed_image", Path(), root=images.root, images=images.table, out=out)


def start(given: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'src'}"}
    command = [sys.executable, "-m", "stages.embed_image", *given]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_second_run_of_a_stage_that_can_be_resumed_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POPULARITY_WORKERS", "0")
    images = make_images(tmp_path)
    embed_image.main(arguments(images, "whole"))
    # A named pipe in place of an image holds the first run up.
    last = images.root / "zoo/single.jpg"
    content = last.read_bytes()
    last.unlink()
    os.mkfifo(last)
    first = start(arguments(images, "out"))
    wait_for(lambda: any(Path(".state/embed_image").glob("*/shard-*.npz")), first)
    second = start(arguments(images, "out"))
    _, messages = second.communicate(timeout=300)
    assert second.returncode == 1
    assert "another run of this stage works on the same inputs" in messages
    assert "Traceback" not in messages
    assert first.poll() is None
    first.kill()
    first.communicate()
    last.unlink()
    last.write_bytes(content)
    third = start(arguments(images, "out"))
    assert third.wait(timeout=300) == 0, third.communicate()[1]
    third.communicate()
    assert contents(Path("out")) == contents(Path("whole"))
    assert not list(Path(".state/embed_image").iterdir())
