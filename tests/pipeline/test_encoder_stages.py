"""The stages of the encoders: one for each entry of a map, and no other stage follows from it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from dvc.parsing import DataResolver
from dvc.repo import Repo

from benchmarks.graph import expanded
from popularity.core.config import leaves, read_yaml
from popularity.profile import main as choose_profile
from tests.repository import DVC_NAMES, OVERLAYS, PROFILES, REPOSITORY, STAGES, write_profile

GRAPH = read_yaml(REPOSITORY / "dvc.yaml")


def params_of(folder: Path, *names: str) -> dict[str, Any]:
    """Content of params.yaml after the overlays `names` on profile demo, in `folder`."""
    path = write_profile(folder)
    if names:
        choose_profile([*names, "--params", str(path), "--profiles", str(PROFILES), "--overlays", str(OVERLAYS)])
    return read_yaml(path)


def read_by(stage: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of params.yaml that a stage depends on, with their values."""
    names = [entry for entry in stage.get("params", []) if isinstance(entry, str)]
    values = {".".join(key): value for key, value in leaves(dict(params)).items()}
    return {key: value for key, value in values.items() if any(f"{key}.".startswith(f"{name}.") for name in names)}


@pytest.mark.parametrize("names", [(), ("clip",), ("dinov2", "mpnet")])
def test_stages_are_expanded_as_dvc_does(names: tuple[str, ...], tmp_path: Path) -> None:
    params = params_of(tmp_path, *names)
    shutil.copy2(REPOSITORY / "dvc.yaml", tmp_path / "dvc.yaml")
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        resolved = DataResolver(repo, str(tmp_path), GRAPH).resolve()["stages"]
    ours = expanded(GRAPH, params)
    assert list(ours) == list(resolved)
    for name, stage in ours.items():
        assert stage["cmd"].split() == resolved[name]["cmd"].split()
        assert [stage.get(key) for key in ("deps", "params", "outs")] == [
            resolved[name].get(key) for key in ("deps", "params", "outs")
        ]


def test_the_lock_names_stages_of_the_graph_alone() -> None:
    """`dvc repro` leaves a stage in the lock that has left the graph, and `popularity.predict` reads the lock."""
    for name in read_yaml(REPOSITORY / "dvc.lock")["stages"]:
        group, entry, _ = name.partition("@")
        assert group in STAGES
        assert bool(entry) == ("foreach" in GRAPH["stages"][group]), name


def test_another_encoder_costs_its_own_stage_alone(tmp_path: Path) -> None:
    """Every other stage has the command, the inputs and the parameters that it had; one output is new."""
    before = params_of(tmp_path)
    added = params_of(tmp_path, "clip")
    after = before | {"embed_text": added["embed_text"]}
    one, two = expanded(GRAPH, before), expanded(GRAPH, after)
    assert set(two) - set(one) == {"embed_text@clip"}
    assert set(one) == set(DVC_NAMES.values())
    for name, stage in one.items():
        assert two[name] == stage
        if name != "report":  # it shows all of params.yaml
            assert read_by(two[name], after) == read_by(stage, before), name
    assert [next(iter(out)) for out in two["embed_text@clip"]["outs"]] == [
        "data/embeddings/text/clip", "reports/resources/embed_text_clip.json",
    ]  # fmt: skip
    own = {f"embed_text.clip.{key}" for key in after["embed_text"]["clip"]}
    assert set(read_by(two["embed_text@clip"], after)) == own


def test_the_pair_in_use_is_what_later_stages_read(tmp_path: Path) -> None:
    """The network's pair for its stages and the text model, the gathered vectors for the stack and its search."""
    params = params_of(tmp_path, "clip")
    params["encoders"]["stack"] = {"image": "efficientnet_lite0", "text": "minilm"}
    stages = expanded(GRAPH, params)
    vectors = tuple(f"data/embeddings/{kind}/" for kind in ("image", "text"))
    for name in set(STAGES) - {"embed_image", "embed_text"}:
        pair = ("efficientnet_lite0", "minilm") if name in ("tune", "stack") else ("clip", "clip")
        allowed = {folder + encoder for folder, encoder in zip(vectors, pair, strict=True)}
        folders = {str(dep).removesuffix("/status.parquet") for dep in stages[name]["deps"]}
        assert {folder for folder in folders if folder.startswith(vectors)} <= allowed, name
    code = {name: {Path(dep).stem for dep in stages[name]["deps"] if "encoders/clip_" in str(dep)} for name in stages}
    assert code["train"] == code["embed_posts"] == {"clip_image", "clip_text"}
    assert code["text_model"] == {"clip_text"}
    assert code["stack"] == set()
