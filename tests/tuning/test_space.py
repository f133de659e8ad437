from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from popularity.core.config import nested, parse_params, parse_section, patched, read_yaml, searched_keys
from popularity.core.errors import ConfigError
from popularity.network.params import TrainParams
from popularity.stack import StackParams
from popularity.tuning.network import NetworkSearchParams
from popularity.tuning.objective import TuneParams, check_search
from popularity.tuning.space import Space
from tests.stack.small_stack import STACK


def parse(**spec: Any) -> Space[StackParams]:
    return Space.parse("tune.space", {key.replace("__", "."): axis for key, axis in spec.items()}, "stack", STACK)


def span(low: float, high: float, *, log: bool = False, integer: bool = False) -> dict[str, Any]:
    return {"low": low, "high": high, "log": log, "integer": integer}


def test_a_space_knows_its_defaults_and_makes_sections() -> None:
    blocks = ["metadata", "image", "text", "prototype"]
    space = parse(
        lightgbm__num_leaves=span(4, 31, log=True, integer=True),
        columns__feature_blocks={"choices": [blocks, ["metadata"]]},
        sample_weight_half_life_days=span(100.0, 400.0),
    )
    assert space.default == {
        "lightgbm.num_leaves": 6,
        "columns.feature_blocks": blocks,
        "sample_weight_half_life_days": 200.0,
    }
    assert space.apply({}) == STACK
    changed = space.apply({"lightgbm.num_leaves": 9, "columns.feature_blocks": ["metadata"]})
    assert (changed.lightgbm.num_leaves, changed.columns.feature_blocks) == (9, ("metadata",))
    assert changed.lightgbm.learning_rate == STACK.lightgbm.learning_rate
    assert space.distributions() == {
        "columns.feature_blocks": CategoricalDistribution(
            ['["metadata", "image", "text", "prototype"]', '["metadata"]']
        ),
        "sample_weight_half_life_days": FloatDistribution(100.0, 400.0),
        "lightgbm.num_leaves": IntDistribution(4, 31, log=True),
    }
    assert space.decode(space.encode(space.default)) == space.default
    assert nested(space.default)["lightgbm"] == {"num_leaves": 6}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"lightgbm__num_leafs": span(2, 9)},
            r"tune\.space\.lightgbm\.num_leafs: section 'stack' has no such key; it has catboost",
        ),
        ({"lightgbm": span(2, 9)}, r"tune\.space\.lightgbm: section 'stack' has no such key"),
        ({"lightgbm__num_leaves": span(9, 2, integer=True)}, r"lightgbm\.num_leaves: low 9 is above high 2"),
        ({"lightgbm__num_leaves": span(7, 9, integer=True)}, r"stack\.lightgbm\.num_leaves is 6, outside 7 to 9"),
        ({"lightgbm__num_leaves": span(2.5, 9, integer=True)}, r"whole ends, found 2\.5 to 9"),
        ({"lightgbm__num_leaves": span(2, 9)}, r"num_leaves: Input should be a valid integer"),
        ({"lightgbm__num_leaves": span(1, 9, integer=True)}, r"greater than or equal to 2, found 1"),
        ({"lightgbm__lambda_l2": span(0.0, 9.0, log=True)}, r"lambda_l2: a logarithmic range starts above 0"),
        ({"lightgbm__lambda_l2": {"low": 0.0, "high": 2.0}}, r"tune\.space\.lightgbm\.lambda_l2\.log: missing"),
        (
            {"lightgbm__lambda_l2": {**span(0, 2), "step": 1}},
            r"lambda_l2\.step: unknown key; allowed here: low, high, log",
        ),
        ({"lightgbm__lambda_l2": 3}, r"tune\.space\.lightgbm\.lambda_l2"),
        (
            {"lightgbm__objective": span(0.0, 1.0)},
            r"stack\.lightgbm\.objective is regression_l1, which is not a number",
        ),
        ({"lightgbm__objective": {"choices": ["huber"]}}, r"regression_l1, which is not among the choices"),
        (
            {"lightgbm__objective": {"choices": ["regression_l1", "l7"]}},
            r"lightgbm\.objective: Input should be .*found 'l7'",
        ),
        ({"lightgbm__objective": {"choices": []}}, r"lightgbm\.objective\.choices"),
        (
            {"row_selection__fraction": {"choices": [1.0, 1.0]}},
            r"row_selection\.fraction\.choices: a value occurs twice",
        ),
        ({"columns__uid_category": span(0, 1)}, r"uid_category is False, which is not a number"),
    ],
)
def test_a_space_that_is_none_is_one_clear_error(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(**spec)


@pytest.mark.parametrize("name", ["tiny", "demo", "full", "paper"])
def test_the_spaces_in_params_yaml_hold_the_values_of_every_profile(name: str) -> None:
    """`parse` refuses any other; the network of `tiny` is too small to be searched."""
    content = patched(read_yaml(Path("params.yaml")), read_yaml(Path("configs/profiles") / f"{name}.yaml"))
    tune = parse_section("tune", content["tune"], TuneParams)
    stack = parse_params("stack", StackParams, content, Path("params.yaml"))
    space, first = check_search(tune, stack, searched_keys(content))
    assert {"target_transform", "columns.feature_blocks"} <= set(space.axes) <= set(tune.space)
    assert set(first) == (set(tune.candidates) or {"start"})
    if name != "tiny":
        network = parse_section("tune_network", content["tune_network"], NetworkSearchParams)
        assert Space.parse("", network.space, "train", parse_section("train", content["train"], TrainParams)).axes
