"""The columns of a batch: classes and posts in any order, lower precision, and posts of unseen classes."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from popularity.encoders.prompting import PromptTower, load_prompt_tower
from popularity.inference.embed import VECTORS, packed_arrays
from popularity.inference.outputs import SCALARS, describe_posts
from popularity.network.dataset import Batch
from popularity.network.model import PrototypeNetwork
from tests.encoders.tiny_encoders import text_params
from tests.network.small_network import NAMES, TOP_K, make_network, small_batch, small_levels, taken, without_picture

K = len(NAMES)


@pytest.fixture(scope="module")
def tower(bert: Path) -> PromptTower:
    return load_prompt_tower(text_params(weights=f"path:{bert}", max_tokens=12))


def awkward_batch(network: PrototypeNetwork) -> Batch:
    """Post 0 has no image, post 1 no text, post 2 an unseen class, post 3 neither image nor a seen class."""
    batch = without_picture(without_picture(small_batch(network, lengths=[2, 0, 3, 1, 4, 2, 1]), 0), 3)
    target = batch.target.clone()
    target[2:4] = -1
    return batch._replace(target=target)


def described(network: PrototypeNetwork, batch: Batch, nearest: int = 3, autocast: Any = None) -> dict[str, Tensor]:
    network.eval()
    with torch.no_grad():
        prompts = network.class_prompts()
    return describe_posts(network, prompts, batch, nearest, autocast or nullcontext())


def rows_of(batch: Batch, order: Tensor) -> Batch:
    return Batch._make([*(field[order] for field in batch[:10]), None, None])


def test_a_post_is_described_alike_in_any_company(tower: PromptTower) -> None:
    network = make_network(tower, TOP_K)
    batch = awkward_batch(network)
    order = torch.tensor([4, 1, 3, 0])
    all_of_them, some = described(network, batch), described(network, rows_of(batch, order))
    for name, values in all_of_them.items():
        torch.testing.assert_close(some[name], values[order], equal_nan=True, msg=name)


def test_a_permutation_of_classes_permutes_the_columns(tower: PromptTower) -> None:
    network = make_network(tower)
    batch = awkward_batch(network)
    order = torch.tensor([3, 0, 4, 1, 2])  # new class j is old class order[j]
    level = small_levels()["subcategory"]
    levels = {"subcategory": taken(level, order)}
    other = make_network(tower, levels=levels, names=[NAMES[index] for index in order])
    other.load_state_dict(network.state_dict())
    inverse = order.argsort()
    target = torch.where(batch.target >= 0, inverse[batch.target.clamp(min=0)], -1)
    first, second = described(network, batch), described(other, batch._replace(target=target))
    columns = torch.cat([order + head * K for head in range(3)])
    for name in ("logits", "masked_logits"):
        torch.testing.assert_close(second.pop(name), first.pop(name)[:, columns])
    for name in ("nearest_class", "attention_class"):
        expected, found = first.pop(name), second.pop(name)
        value = {"nearest_class": "nearest_value", "attention_class": "attention_weight"}[name]
        defined = ~first[value].isnan()
        assert torch.equal(order[found][defined], expected[defined])
    for name, values in first.items():
        torch.testing.assert_close(second[name], values, equal_nan=True, atol=1e-5, rtol=1e-4, msg=name)


def test_a_masked_class_leaves_nothing_of_the_class(tower: PromptTower) -> None:
    """The masked arrays of a post without a class are its own; else they lack all that the own class gives."""
    network = make_network(tower)
    batch = awkward_batch(network)
    found = described(network, batch)
    for name in ("global_prompt", "local_prompt", "attended_visual", "attended_text", "logits", "scalars"):
        unseen = [2, 3]
        torch.testing.assert_close(found[f"masked_{name}"][unseen], found[name][unseen], equal_nan=True, msg=name)
    masked, scalars = found["masked_scalars"], found["scalars"]
    of_class = [name for name in SCALARS if "own" in name or name.startswith(("losses", "logits.m", "logits.r"))]
    assert len(of_class) == 12
    for name in of_class:
        assert masked[:, SCALARS.index(name)].isnan().all(), name
        assert not scalars[4:, SCALARS.index(name)].isnan().any(), name
    assert (masked[:, SCALARS.index("class_unseen")] == 1).all()
    known = batch.target[:, network.class_level]
    for row in (4, 5, 6):
        others = [index for index in range(K) if index != known[row]]
        for head in range(3):
            own, logits = found["logits"][row].view(3, K)[head], found["masked_logits"][row].view(3, K)[head]
            assert torch.equal(logits[others], own[others])
            torch.testing.assert_close(logits[known[row]], own[others].mean())
        prompts = network.class_prompts()[0].detach()[others]
        weights = torch.linalg.lstsq(prompts.T, found["masked_global_prompt"][row][:, None]).solution
        torch.testing.assert_close(weights.sum(), torch.tensor(1.0), atol=1e-3, rtol=0)
        assert (weights > -1e-3).all()


def test_bf16_is_near_fp32(tower: PromptTower) -> None:
    network = make_network(tower)
    batch = awkward_batch(network)
    full = described(network, batch)
    half = described(network, batch, autocast=torch.autocast("cpu", dtype=torch.bfloat16))
    for name, values in full.items():
        assert half[name].dtype == values.dtype, name
        assert torch.equal(half[name].isnan(), values.isnan()), name
    for name in ("global_prompt", "attended_image", "attended_visual", "logits"):
        assert torch.cosine_similarity(half[name], full[name]).min() > 0.99, name
        assert not torch.equal(half[name], full[name]), name


def test_fewer_classes_than_are_to_be_listed(tower: PromptTower) -> None:
    network = make_network(tower)
    found = described(network, awkward_batch(network), nearest=50)
    assert found["nearest_class"].shape == (7, 3, K)
    assert found["nearest_class"][4].sort(dim=1).values.tolist() == [list(range(K))] * 3


def test_masses_of_attention_are_sums_over_tokens(tower: PromptTower) -> None:
    network = make_network(tower)
    batch = awkward_batch(network)
    found = described(network, batch)
    with torch.inference_mode():
        sequence, spans = network.sequence(network.attention.project(batch.image, "image"), batch)
        layer_weights: list[torch.Tensor] = []
        network.attention(sequence, layer_weights)
    expected = torch.stack(layer_weights).mean(dim=0)
    visual, text, *_ = spans["subcategory"]
    assert visual is not None
    assert text is not None
    masses = torch.stack([expected[:, 0], expected[:, visual].sum(dim=1), expected[:, text].sum(dim=1)], dim=1)
    torch.testing.assert_close(found["attention_mass"][4:, :3], masses[4:])
    assert found["attention_mass"][[0, 3]].isnan().all()


def test_the_distance_of_image_and_text_needs_equal_widths(tower: PromptTower) -> None:
    network = make_network(tower)
    found = described(network, awkward_batch(network))["scalars"]
    assert found[:, SCALARS.index("distance.image_text")].isnan().all()


def test_outputs_leave_the_device_in_one_copy_for_each_type(
    tower: PromptTower, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = make_network(tower)
    found = described(network, awkward_batch(network))
    copies: list[torch.dtype] = []
    cpu = torch.Tensor.cpu

    def copied(self: torch.Tensor) -> torch.Tensor:
        copies.append(self.dtype)
        return cpu(self)

    monkeypatch.setattr(torch.Tensor, "cpu", copied)
    arrays = packed_arrays(found)()
    on_device = [dtype for dtype in copies if dtype in (torch.float32, torch.int64)]
    assert len(on_device) == len(set(on_device)) == 2
    assert arrays.keys() == found.keys()
    for name, values in found.items():
        expected = values.half() if name in VECTORS else values
        np.testing.assert_array_equal(arrays[name], expected.numpy(), err_msg=name)
        assert arrays[name].dtype == expected.numpy().dtype
