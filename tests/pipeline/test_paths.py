"""The names of `popularity.core.paths` are the outs of dvc.yaml, or files in them."""

from __future__ import annotations

import pytest
from ruamel.yaml import YAML

from popularity.core import paths
from popularity.core.errors import ConfigError
from tests.repository import STAGES, profile_text

PARAMS = YAML(typ="safe", pure=True).load(profile_text())
OUTS = {
    path for stage in STAGES.values() for kind in ("outs", "metrics") for entry in stage.get(kind, []) for path in entry
}
NAMES = {value for name, value in vars(paths).items() if name.isupper() and isinstance(value, str)}
GIVEN = {paths.PARAMS, paths.MEMBER_FILES}  # by people
NAMED = {paths.resolved(name, PARAMS) for name in {*NAMES, *paths.RESOURCES.values()} - GIVEN}


def test_stages_are_those_of_the_graph_in_its_order() -> None:
    assert list(paths.STAGES) == list(STAGES)


def test_every_out_has_a_name() -> None:
    assert set() == OUTS - NAMED


def test_a_path_follows_the_encoders_that_params_name() -> None:
    other = {"encoders": {"network": {"image": "clip"}}}
    assert paths.resolved(paths.IMAGE_STATUS, other) == "data/embeddings/image/clip/status.parquet"
    with pytest.raises(ConfigError, match=r"params\.yaml: encoders\.network\.text is missing"):
        paths.resolved(paths.TEXT_EMBEDDINGS, other)


def test_every_name_is_an_out_or_lies_in_one() -> None:
    for path in NAMED:
        assert any(path == out or path.startswith(f"{out}/") for out in OUTS), path
