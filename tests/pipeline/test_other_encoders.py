"""The graph with a dual encoder, offline: real DVC in a copy of the finished run, profile tiny with overlay siglip.

The towers are tiny random ones of the overlay's architecture, with as many positions as the published ones. The other
dual encoder, CLIP, runs in `test_paper`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from popularity.core.config import read_yaml
from tests.clones import Clone, copy_of
from tests.encoders.tiny_encoders import save_siglip
from tests.repository import BEFORE_ENCODERS, DVC_NAMES


def test_a_dual_encoder_runs_the_whole_graph(clone: Clone, tmp_path: Path) -> None:
    """All of it but the stages before the encoders, which are those of the fixture; without the search, to which the
    vectors of one encoder are as those of another."""
    name = "siglip"
    weights = {"weights": f"path:{save_siglip(tmp_path / 'tower', 64)}", "revision": ""}
    patch: dict[str, Any] = {
        "embed_image": {name: {**weights, "image_size": 32}},
        "embed_text": {name: weights},
        "tune": {"candidates": [], "n_trials": 0},
    }
    YAML().dump(patch, tmp_path / "patch.yaml")
    copy = copy_of(clone, tmp_path / "clone")
    copy.run("python", "-m", "popularity.profile", "tiny", name)
    copy.run("python", "-m", "popularity.profile", "--patch", str(tmp_path / "patch.yaml"))
    copy.run("git", "commit", "-q", "-a", "-m", name)
    copy.run("python", "-m", "popularity.check")
    ran = copy.entries_run(copy.run("dvc", "repro", "report").stdout)
    own = {"embed_image": f"embed_image@{name}", "embed_text": f"embed_text@{name}"}  # the others' vectors are there
    expected = {stage: entry for stage, entry in (DVC_NAMES | own).items() if stage not in BEFORE_ENCODERS}
    assert sorted(ran) == sorted(expected.values())
    for kind, block in (("image", "pooled"), ("text", "post")):
        metadata = json.loads((copy.root / f"data/embeddings/{kind}/{name}/{block}.json").read_text("utf-8"))
        assert metadata["encoder"] == read_yaml(copy.root / "params.yaml")[f"embed_{kind}"][name]["model"]
        assert [path.name for path in (copy.root / f"data/embeddings/stack/{kind}").iterdir()] == [name]
    scalars = json.loads((copy.root / "models/network/network.json").read_text("utf-8"))
    assert scalars["train"]["epochs"] == 1
    assert copy.run("python", "-m", "popularity.submission").stdout.count("valid: 90 posts") == 2  # both forms
    assert copy.entries_run(copy.run("dvc", "repro", "report").stdout) == []
    predicted = copy.run("python", "-m", "popularity.predict", "--date", "2016-03-01T12:00:00", "--title", "a cat")
    assert "popularity" in predicted.stdout
