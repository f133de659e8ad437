"""The registered configurations, and keys of section stack that have a value: no trial changes those."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from popularity.core.config import SEARCH, load_params, nested, patched, read_yaml, searched_keys
from popularity.core.errors import ConfigError
from popularity.stack import StackParams
from popularity.stack.members import load_members, write_members
from popularity.tuning.objective import TuneParams, check_search
from tests.tuning.small_tune import CONFIGURATIONS, SMALL, SPACE, write_params


def checked(file: Path) -> tuple[set[str], dict[str, dict[str, Any]]]:
    """The axes of the search and the registered points of a params.yaml."""
    stack = load_params("stack", StackParams, file)
    space, first = check_search(load_params("tune", TuneParams, file), stack, searched_keys(read_yaml(file)))
    return set(space.axes), first


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "params.yaml"


def test_a_key_that_is_searched_starts_at_its_value_of_tune_start(file: Path) -> None:
    write_params(file)
    assert read_yaml(file)["stack"]["lightgbm"]["num_leaves"] == SEARCH
    assert set(searched_keys(read_yaml(file))) == set(SPACE)
    assert load_params("stack", StackParams, file) == SMALL
    assert load_members(file, None) == {"stack": SMALL}


def test_a_searched_key_without_a_start_is_named(file: Path) -> None:
    write_params(file)
    content = json.loads(file.read_text(encoding="utf-8"))
    del content["tune"]["start"]["lightgbm.num_leaves"]
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"stack\.lightgbm\.num_leaves is search, but tune\.start has no"):
        load_params("stack", StackParams, file)


def test_configurations_are_points_of_the_space_in_their_order(file: Path) -> None:
    write_params(file, candidates=["ranks", "same", "images"])
    axes, first = checked(file)
    assert axes == set(SPACE)
    assert list(first) == ["ranks", "same", "images"]
    start = read_yaml(file)["tune"]["start"]
    assert first["ranks"] == {**start, "target_transform": "rank_gauss", "lightgbm.num_leaves": 3}
    assert first["same"] == start


def test_without_candidates_the_start_is_the_only_point(file: Path) -> None:
    write_params(file)
    assert checked(file)[1] == {"start": read_yaml(file)["tune"]["start"]}


def test_a_value_in_section_stack_holds_against_space_and_configurations(file: Path) -> None:
    write_params(file, {"lightgbm.num_leaves": 63}, candidates=["ranks", "same"])
    axes, first = checked(file)
    assert axes == set(SPACE) - {"lightgbm.num_leaves"}  # 63 is outside the range, which is not read
    assert first["ranks"]["target_transform"] == "rank_gauss"
    assert all("lightgbm.num_leaves" not in values for values in first.values())
    assert load_params("stack", StackParams, file).lightgbm.num_leaves == 63


def test_the_trend_is_not_searched(file: Path) -> None:
    """A value holds, in all trials."""
    write_params(file, {"detrend": "family"})
    assert "detrend" not in checked(file)[0]
    write_params(file, space={**SPACE, "detrend": {"choices": ["none", "linear"]}})
    with pytest.raises(ConfigError, match=r"stack\.detrend is not searched, because splits in time cannot tell"):
        checked(file)


def test_configurations_that_become_equal_are_one_trial(file: Path) -> None:
    write_params(file, {"columns.feature_blocks": ["metadata"]}, candidates=["images", "same", "ranks"])
    assert list(checked(file)[1]) == ["images", "ranks"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": ["plane"]}, r"tune\.candidates\.0: found 'plane'; expected a name in .*: images, ranks, same"),
        ({"candidates": ["same", "ranks", "same"]}, r"tune\.candidates\.2: 'same' is listed before"),
        ({"candidates": [f"c{number}" for number in range(9)]}, r"tune\.candidates: .*at most 8 items"),
        ({"configurations": {"a": {"n_seeds": 2}}}, r"configurations\.a\.n_seeds: tune\.space has no such key"),
        (
            {"configurations": {"a": {"lightgbm.num_leaves": 16}}},
            r"configurations\.a\.lightgbm\.num_leaves: the value is 16, outside 2 to 15",
        ),
        (
            {"configurations": {"a": {"target_transform": "ranks"}}},
            r"configurations\.a\.target_transform: the value is ranks, which is not among the choices",
        ),
        ({"configurations": {"metadata": {}}}, r"configurations\.metadata: expected a name .*none of metadata"),
        ({"configurations": {"trial_3": {}}}, r"does not begin with trial_"),
        ({"configurations": {"a b": {}}}, r"letters, digits and underscores"),
        ({"start": {"n_seeds": 1}}, r"tune\.space has no n_seeds"),
    ],
)
def test_what_is_no_configuration_is_named(file: Path, changes: dict[str, Any], message: str) -> None:
    write_params(file, **changes)
    if "start" in changes:
        content = json.loads(file.read_text(encoding="utf-8"))
        content["tune"]["start"] = json.loads(json.dumps({**_starts(file, content), **changes["start"]}))
        file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        checked(file)


def _starts(file: Path, content: dict[str, Any]) -> dict[str, Any]:
    write_params(file)
    start: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["tune"]["start"]
    content["stack"] = json.loads(file.read_text(encoding="utf-8"))["stack"]
    return start


def test_members_replace_what_is_searched_and_nothing_else(file: Path, tmp_path: Path) -> None:
    write_params(file, {"lightgbm.num_leaves": 63})
    members = tmp_path / "members.yaml"
    values = {"target_transform": "rank_gauss", "columns.feature_blocks": ["image"]}
    start = read_yaml(file)["tune"]["start"]
    same = {"columns.feature_blocks": values["columns.feature_blocks"]}
    write_members({"ranks": {**start, **values, "lightgbm.num_leaves": 63}, "blocks": same, "start": {}}, members)
    assert "&" not in members.read_text(encoding="utf-8")  # people read it
    found = load_members(file, members)
    assert list(found) == ["ranks", "blocks", "start"]
    assert found["start"] == load_params("stack", StackParams, file)
    assert found["ranks"].target_transform == "rank_gauss"
    assert found["ranks"].columns.feature_blocks == ("image",)
    assert {one.lightgbm.num_leaves for one in found.values()} == {63}


def test_a_member_with_a_key_that_the_stack_lacks_is_named(file: Path, tmp_path: Path) -> None:
    write_params(file)
    members = tmp_path / "members.yaml"
    write_members({"a": {"lightgbm.num_leafs": 3}}, members)
    with pytest.raises(ConfigError, match=r"params\.yaml with .*members\.yaml: .*\n.*num_leafs: unknown key"):
        load_members(file, members)


def test_the_same_values_are_found_however_they_were_set(file: Path, tmp_path: Path) -> None:
    """`dvc exp run -S stack.lightgbm.num_leaves=63` writes what a commit of the value would hold."""
    write_params(file, {"lightgbm.num_leaves": 63}, candidates=list(CONFIGURATIONS))
    content = read_yaml(file)
    write_params(other := tmp_path / "other.yaml", candidates=list(CONFIGURATIONS))
    overridden = patched(read_yaml(other), {"stack": nested({"lightgbm.num_leaves": 63})})
    assert overridden == content
