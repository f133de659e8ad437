"""Rates, weight decay and clipping by parameter group; parameters that no term reaches do not train."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from popularity.encoders.prompting import PromptTower, unfreeze_last
from popularity.network.model import PrototypeNetwork
from popularity.training.optimizer import (
    GradientClipping,
    freeze_unused,
    make_optimizer,
    make_schedule,
    parameter_groups,
)
from tests.network.small_network import INSTANCE, THREE_LEVELS, TOP_K, gradients, make_network, small_batch, total_loss
from tests.training.small_training import small_tower, train_params

LEARN = {"temperatures.learn": True}
OFF = {f"weights.{name}": 0.0 for name in ("global_prompt", "local_prompt", "attention")}


@pytest.fixture(scope="module")
def tower(bert: Path) -> PromptTower:
    return small_tower(bert)


def test_parameter_groups_and_their_rates(tower: PromptTower) -> None:
    tower = copy.deepcopy(tower)
    unfreeze_last(tower, 1)
    network = make_network(tower, {**LEARN, **INSTANCE})
    params = train_params(lr_prompt=0.1, lr_attention=0.2, lr_temperature=0.3, lr_tower=0.4, weight_decay=0.5)
    assert set(parameter_groups(network)) == {"global_prompt", "local_prompt", "instance_prompt", "attention", "tower"}
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in make_optimizer(network, params).param_groups
        for parameter in group["params"]
    }
    assert set(found) == {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    for name, (rate, decay) in found.items():
        first = name.partition(".")[0]
        expected = {"log_temperatures": 0.3, "attention": 0.2, "tower": 0.4}.get(first, 0.1)
        assert rate == expected, name
        matrix = first in ("attention", "tower") and dict(network.named_parameters())[name].ndim >= 2
        assert decay == (0.5 if matrix else 0.0), name
    assert found["attention.image_projection.weight"] == (0.2, 0.5)
    assert found["attention.layers.0.attention_norm.weight"] == (0.2, 0.0)
    assert found["attention.kinds.image"] == (0.2, 0.0)
    assert found["global_prompt.context"] == (0.1, 0.0)


SWITCHES: dict[str, dict[str, Any]] = {
    "as printed": {},
    "only global": {**OFF, "weights.global_prompt": 1.0},
    "only local": {**OFF, "weights.local_prompt": 1.0},
    "only attention": {**OFF, "weights.attention": 1.0},
    "only contrastive": {**OFF, "weights.contrastive": 1.0},
    "only consistency": {**OFF, **THREE_LEVELS, "weights.consistency": 1.0},
    "only consistency of texts": {
        **OFF,
        **THREE_LEVELS,
        "weights.consistency": 1.0,
        "attention.prototypes": ["text"],
    },
    "visual prototypes": {"attention.prototypes": ["visual"]},
    "text prototypes": {"attention.prototypes": ["text"]},
    "text prototypes, contrastive": {"attention.prototypes": ["text"], "weights.contrastive": 1.0},
    "no layers": {"attention.depth": 0},
    "instance prompt, attention": {**OFF, **INSTANCE, "weights.attention": 1.0},
    "instance prompt, contrastive": {**OFF, **INSTANCE, "weights.contrastive": 1.0},
    "everything": {**TOP_K, **INSTANCE, "weights.contrastive": 1.0, "weights.consistency": 1.0},
}


@pytest.mark.parametrize("changes", SWITCHES.values(), ids=SWITCHES)
@pytest.mark.parametrize("unfrozen", [False, True])
def test_exactly_what_a_term_reaches_trains(changes: dict[str, Any], unfrozen: bool, tower: PromptTower) -> None:
    """Several processes would wait in vain for the gradient of anything else."""
    if unfrozen:
        tower = copy.deepcopy(tower)
        unfreeze_last(tower, 1)
    network = make_network(tower, {**changes, **LEARN})
    batch = small_batch(network)._replace(texts=tower.tokenize(["the sea", "dog", "", "cat", "of", "sea", "the"], 12))
    all_of_them = gradients(network, total_loss(network, batch))
    freeze_unused(network)
    kept = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    after = gradients(network, total_loss(network, batch))
    assert kept == set(after)
    assert all(gradient is not None for gradient in after.values())
    for name, gradient in all_of_them.items():
        if name not in kept:
            assert gradient is None or (gradient == 0).all(), name


def norm_of(network: PrototypeNetwork, part: str) -> float:
    grads = [parameter.grad for _, parameter in parameter_groups(network)[part] if parameter.grad is not None]
    return float(torch.stack([gradient.norm() for gradient in grads]).norm())


def test_each_part_is_clipped_apart(tower: PromptTower) -> None:
    network = make_network(tower)
    total_loss(network, small_batch(network)).backward()  # type: ignore[no-untyped-call]
    before = {part: norm_of(network, part) for part in parameter_groups(network)}
    assert len(set(before.values())) == 3
    bound = sorted(before.values())[1]  # of the three groups one is above it
    GradientClipping(network, bound)()
    for part, norm in before.items():
        assert norm_of(network, part) == pytest.approx(min(norm, bound), rel=1e-4)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_schedule(schedule: str, tower: PromptTower) -> None:
    network = make_network(tower)
    params = train_params(schedule=schedule, warmup_fraction=0.2, lr_prompt=1.0)
    optimizer = make_optimizer(network, params)
    rates = make_schedule(optimizer, 20, params)
    found = []
    for _ in range(20):
        found.append(max(group["lr"] for group in optimizer.param_groups))
        optimizer.step()
        rates.step()
    assert found[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert all(rate == 1 for rate in found[4:]) if schedule == "constant" else found[12] == pytest.approx(0.5)
    if schedule == "cosine":
        assert max(group["lr"] for group in optimizer.param_groups) == pytest.approx(0, abs=1e-9)
