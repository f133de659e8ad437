"""The whole graph with other encoders, offline: real DVC in a clean clone, profile tiny with an overlay.

The towers are tiny random ones of the overlay's architecture, with as many positions as the published ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from popularity.core.config import read_yaml
from tests.clones import make_clone
from tests.encoders.tiny_encoders import save_clip, save_siglip
from tests.repository import DVC_NAMES

pytestmark = pytest.mark.slow

TOWERS = {"clip": (save_clip, 77), "siglip": (save_siglip, 64)}


@pytest.mark.parametrize("name", TOWERS)
def test_a_dual_encoder_runs_the_whole_graph(name: str, tmp_path: Path) -> None:
    save, positions = TOWERS[name]
    weights = {"weights": f"path:{save(tmp_path / 'tower', positions)}", "revision": ""}
    patch = {"embed_image": {name: {**weights, "image_size": 32}}, "embed_text": {name: weights}}
    YAML().dump(patch, tmp_path / "patch.yaml")
    clone = make_clone(tmp_path / "clone")
    clone.run("python", "-m", "popularity.profile", "tiny", name)
    clone.run("python", "-m", "popularity.profile", "--patch", str(tmp_path / "patch.yaml"))
    clone.run("git", "commit", "-q", "-a", "-m", name)
    clone.run("python", "-m", "popularity.check")
    ran = clone.entries_run(clone.run("dvc", "repro", "report").stdout)
    own = (f"embed_image@{name}", f"embed_text@{name}")  # beside those of the encoders that are not in use
    assert sorted(ran) == sorted((*DVC_NAMES.values(), *own))
    for kind, block in (("image", "pooled"), ("text", "post")):
        metadata = json.loads((clone.root / f"data/embeddings/{kind}/{name}/{block}.json").read_text("utf-8"))
        assert metadata["encoder"] == read_yaml(clone.root / "params.yaml")[f"embed_{kind}"][name]["model"]
        assert [path.name for path in (clone.root / f"data/embeddings/stack/{kind}").iterdir()] == [name]
    scalars = json.loads((clone.root / "models/network/network.json").read_text("utf-8"))
    assert scalars["train"]["epochs"] == 1
    assert clone.run("python", "-m", "popularity.submission").stdout.count("valid: 90 posts") == 2  # both forms
    assert clone.entries_run(clone.run("dvc", "repro", "report").stdout) == []
    predicted = clone.run("python", "-m", "popularity.predict", "--date", "2016-03-01T12:00:00", "--title", "a cat")
    assert "popularity" in predicted.stdout
