"""The names of `popularity.core.paths` are the outs of dvc.yaml, or files in them."""

from __future__ import annotations

from typing import Any

from popularity.core import paths
from popularity.core.config import read_yaml
from tests.repository import REPOSITORY

STAGES: dict[str, dict[str, Any]] = read_yaml(REPOSITORY / "dvc.yaml")["stages"]
OUTS = {
    path for stage in STAGES.values() for kind in ("outs", "metrics") for entry in stage.get(kind, []) for path in entry
}
NAMED = {
    *(value for name, value in vars(paths).items() if name.isupper() and isinstance(value, str)),
    *paths.RESOURCES.values(),
} - {paths.PARAMS}


def test_stages_are_those_of_the_graph_in_its_order() -> None:
    assert list(paths.STAGES) == list(STAGES)


def test_every_out_has_a_name() -> None:
    assert set() == OUTS - NAMED


def test_every_name_is_an_out_or_lies_in_one() -> None:
    for path in NAMED:
        assert any(path == out or path.startswith(f"{out}/") for out in OUTS), path
