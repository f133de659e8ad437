"""The folder that the stack reads: the vectors of the encoders that encoders.stack names, and of no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from popularity.check import check
from popularity.core.atomic import read_json
from popularity.core.config import load_params
from popularity.core.errors import ConfigError
from popularity.core.vectors import Block, write_block
from popularity.encoders.names import EncodersParams, StackEncoders, as_names, models_in_use, names_in_use
from stages import stack_vectors
from tests.repository import stage_flags, write_profile

PIDS = ["a", "b", "c"]


def block(seed: int, model: str) -> Block:
    values = np.random.default_rng(seed).normal(size=(3, 4)).astype(np.float16)
    fields = {"encoder": model, "weights": f"sha256:{seed}", "preprocessing": {}, "pooling": "mean"}
    return Block(values, PIDS, {**fields, "columns": [f"x_{index}" for index in range(4)]})


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """params.yaml, and vectors of one image encoder and three text encoders."""
    params = write_profile(tmp_path)
    params.write_text(
        params.read_text("utf-8").replace("    text: minilm\n\nprototypes", "    text: TEXT\n\nprototypes")
    )
    embeddings = tmp_path / "data/embeddings"
    write_block(block(0, "lite0"), embeddings / "image/efficientnet_lite0", "pooled")
    for seed, name in enumerate(("minilm", "mpnet", "unused"), start=1):
        for part in ("title", "tags", "post"):
            write_block(block(seed, f"model-{name}"), embeddings / f"text/{name}", part)
    return tmp_path


def gather(project: Path, text: str) -> Path:
    params = project / "params.yaml"
    before = params.read_text("utf-8")
    assert "text: TEXT" in before
    params.write_text(before.replace("text: TEXT", f"text: {text}"))
    try:
        stack_vectors.main(stage_flags("stack_vectors", project))
    finally:
        params.write_text(before)
    return project / "data/embeddings/stack"


@pytest.mark.parametrize(("text", "names"), [("mpnet", {"mpnet"}), ("[minilm, mpnet]", {"minilm", "mpnet"})])
def test_a_name_or_a_list(project: Path, text: str, names: set[str]) -> None:
    out = gather(project, text)
    assert {path.name for path in (out / "text").iterdir()} == names
    assert read_json(out / "models.json") == {
        "image": {"efficientnet_lite0": "lite0"},
        "text": {name: f"model-{name}" for name in names},
    }
    for file in (out / "text/mpnet").iterdir():
        assert file.read_bytes() == (project / "data/embeddings/text/mpnet" / file.name).read_bytes()


def test_an_encoder_that_is_not_named_changes_nothing(project: Path) -> None:
    before = {file.relative_to(project): file.read_bytes() for file in gather(project, "minilm").rglob("*.*")}
    write_block(block(9, "model-new"), project / "data/embeddings/text/new", "title")
    assert {file.relative_to(project): file.read_bytes() for file in gather(project, "minilm").rglob("*.*")} == before


def test_an_encoder_without_vectors_is_named(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"encoders\.stack\.text names other.*[\s\S]*dvc repro embed_text@other"):
        gather(project, "[minilm, other]")


def test_names_and_models_of_lists() -> None:
    params = {
        "encoders": {
            "network": {"image": "lite", "image_loader": "timm_image", "text": "minilm", "text_loader": "bert_text"},
            "stack": {"image": ["lite"], "text": ["mpnet", "minilm"]},
        },
        "embed_image": {"lite": {"model": "lite0"}},
        "embed_text": {"minilm": {"model": "MiniLM"}, "mpnet": {"model": "MPNet"}},
    }
    assert names_in_use(params, "text") == ["minilm", "mpnet"]
    assert models_in_use(params) == ["lite0", "MiniLM", "MPNet"]
    assert as_names("lite") == as_names(["lite", "lite"]) == ("lite",)


@pytest.mark.parametrize("text", ["[]", "[Bad Name]", "3"])
def test_other_values_are_refused(project: Path, text: str) -> None:
    params = project / "params.yaml"
    params.write_text(params.read_text("utf-8").replace("text: TEXT", f"text: {text}"))
    with pytest.raises(ConfigError, match=r"encoders\.stack\.text"):
        load_params("encoders", EncodersParams, params)
    with pytest.raises(ConfigError, match=r"encoders\.stack\.text"):
        load_params("encoders.stack", StackEncoders, params)


def test_the_check_names_an_encoder_of_a_list_that_is_no_entry(project: Path) -> None:
    (project / "data/demo").mkdir()
    params = project / "params.yaml"
    params.write_text(params.read_text("utf-8").replace("text: TEXT", "text: [minilm, mpnet]"))
    with pytest.raises(ConfigError, match=r"encoders\.stack\.text is mpnet, but embed_text has minilm alone"):
        check(params)
