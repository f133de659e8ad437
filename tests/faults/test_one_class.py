"""A data set of one class only: tables, splits and features are made, and the first stage that needs two says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from popularity.core.contracts import FOLDS, read_table
from popularity.core.errors import DataError
from stages import embed_image, prototypes
from tests.dataset.layout import build
from tests.encoders.tiny_encoders import encoder_sections, make_images
from tests.faults.test_texts import run_ingest, run_rest
from tests.repository import stage_flags

pytestmark = pytest.mark.slow


def test_one_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POPULARITY_WORKERS", "0")
    layout = build("B", train=60, test=20)
    for part in layout.parts:
        for row in part.records["category"]:
            row |= {"Category": "Food", "Subcategory": "tea", "Concept": "cup"}
    layout.write(tmp_path / "data")
    posts = run_ingest(tmp_path)
    assert set(posts["concept"]) == {"Food/tea/cup"}
    run_rest(tmp_path)
    assert set(read_table(tmp_path / "splits.parquet", FOLDS)["pid"]) == set(posts["pid"])
    (tmp_path / "other").mkdir()
    images = make_images(tmp_path / "other")
    YAML().dump(encoder_sections(images.params()), tmp_path / "image.yaml")
    paths = {"params": "image.yaml", "root": "other/data", "images": "other/images.parquet", "out": "image"}
    embed_image.main(stage_flags("embed_image", tmp_path, **paths))
    sections = {
        "prototypes": {"seed": 0, "max_per_class": 8, "class_name_format": "auto"},
        "train": {"transductive": True},
    }
    YAML().dump(sections, tmp_path / "params.yaml")
    given = {"posts": "posts.parquet", "image": "image", "text": "text", "out": "prototypes"}
    with pytest.raises(DataError, match="the training posts have 1 second-level classes") as caught:
        prototypes.main(stage_flags("prototypes", tmp_path, **given))
    assert "at least 2 different names" in str(caught.value.expected)
    assert caught.value.fix
    assert not (tmp_path / "prototypes").exists()
