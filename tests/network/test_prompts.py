"""Soft prompts of classes and of single posts (Eq 1-3 and the wider reading), through a text tower."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from popularity.encoders.prompting import PromptTower, load_prompt_tower
from popularity.network.heads import loss_terms
from popularity.network.model import PrototypeNetwork
from popularity.network.prompts import InstancePrompt, SoftPrompt
from tests.encoders.tiny_encoders import save_bert, save_clip, save_siglip, text_params
from tests.network.small_network import (
    IMAGE_WIDTH,
    INSTANCE,
    NAMES,
    TEXT_WIDTH,
    gradients,
    make_network,
    network_params,
    small_batch,
    small_levels,
    total_loss,
    unit_rows,
    without_picture,
)


def test_contexts_start_with_the_deviation_of_the_tower() -> None:
    torch.manual_seed(0)
    context = SoftPrompt(64, 128, 0.056).context
    assert context.shape == (64, 128)
    assert context.std().item() == pytest.approx(0.056, rel=0.03)
    assert context.mean().item() == pytest.approx(0, abs=2e-3)


def test_class_prompts_are_the_tower_over_context_and_name(tower: PromptTower) -> None:
    network = make_network(tower)
    found = network.class_prompts()
    for prompts, prompt, length in zip(found, (network.global_prompt, network.local_prompt), (3, 2), strict=True):
        assert prompt.context.shape == (length, tower.spec.token_width)
        assert prompts.shape == (len(NAMES), TEXT_WIDTH)
        for row, name in enumerate(NAMES):
            alone = tower(prompt.context, tower.tokenize([name], 12)).pooled[0]
            torch.testing.assert_close(prompts[row], alone, atol=1e-5, rtol=0)
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_pooling_over_the_name_is_a_switch(tower: PromptTower) -> None:
    whole, name = (make_network(tower, {"prompts.pool": pool}).class_prompts()[0] for pool in ("all", "name"))
    assert (whole - name).abs().max() > 1e-3


def test_gradient_reaches_the_contexts_and_no_weight_of_the_tower(tower: PromptTower) -> None:
    network = make_network(tower)
    batch = small_batch(network)
    total_loss(network, batch).backward()  # type: ignore[no-untyped-call]
    for prompt in (network.global_prompt, network.local_prompt):
        assert prompt.context.grad is not None
        assert (prompt.context.grad.norm(dim=1) > 0).all()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in tower.parameters())


def test_with_frozen_towers_each_loss_trains_its_own_part(tower: PromptTower) -> None:
    """So that the parts may be trained together or apart: Eq 8 is then a sum of three problems."""
    network = make_network(tower)
    batch = small_batch(network)
    terms = loss_terms(network, network(batch), batch)
    reached = {
        term: {name for name, gradient in gradients(network, loss).items() if gradient is not None}
        for term, loss in ((term, values.sum()) for term, values in terms.items())
    }
    assert reached["global_prompt"] == {"global_prompt.context"}
    assert reached["local_prompt"] == {"local_prompt.context"}
    assert reached["attention"] == {
        name for name, parameter in network.attention.named_parameters(prefix="attention") if parameter.requires_grad
    }


def test_instance_prompt_starts_as_shared_vectors_and_learns_to_listen() -> None:
    torch.manual_seed(0)
    prompt = InstancePrompt(3, IMAGE_WIDTH, 32, 0.05)
    images = torch.cat([unit_rows(4, IMAGE_WIDTH), torch.zeros(1, IMAGE_WIDTH)])
    first = prompt(images)
    assert first.shape == (5, 3, 32)
    assert torch.equal(first, prompt.shared.expand(5, -1, -1))
    optimizer = torch.optim.SGD(prompt.parameters(), lr=1.0)
    (first * unit_rows(5, 3, 32, seed=1)).sum().backward()
    optimizer.step()
    after = prompt(images)
    assert (after[:, None] - after[None]).flatten(2).norm(dim=-1)[~torch.eye(5).bool()].min() > 1e-3


def test_a_text_is_read_in_the_light_of_its_image(tower: PromptTower) -> None:
    network = make_network(tower, INSTANCE)
    assert network.instance_prompt is not None
    texts = tower.tokenize(["the sea of the dog"] * 3 + [""], 12)
    batch = small_batch(network, 4)._replace(texts=texts, has_image=torch.tensor([True, True, False, True]))
    batch = without_picture(batch, 2)
    before = network(batch).pooled
    torch.testing.assert_close(before[0], before[1])  # the shared vectors alone
    plain = tower(None, texts).pooled
    assert (before - plain).abs().amax(dim=1).min() > 1e-3  # and they are read
    found = {name: each for name, each in gradients(network, total_loss(network, batch)).items() if each is not None}
    assert all(gradient.isfinite().all() for gradient in found.values())
    last = network.instance_prompt.network[-1]
    assert torch.count_nonzero(found["instance_prompt.network.2.weight"]) > 0
    assert isinstance(last, torch.nn.Linear)
    torch.nn.init.normal_(last.weight)  # as training will make it
    outputs = network(batch)
    assert (outputs.pooled[0] - outputs.pooled[1]).abs().max() > 1e-4
    assert (outputs.local_logits[0] - outputs.local_logits[1]).abs().max() > 1e-4  # its tokens too
    torch.testing.assert_close(outputs.pooled.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(outputs.local_logits[3], outputs.global_logits[3].mean().expand(len(NAMES)))
    own = network.instance_prompt(batch.image)
    for row in range(4):  # own vectors before own text
        alone = tower(own[row], tower.tokenize([("the sea of the dog", "")[row == 3]], 12)).pooled[0]
        torch.testing.assert_close(outputs.pooled[row], alone, atol=1e-5, rtol=0)


def test_without_instance_prompts_the_cached_text_is_read(tower: PromptTower) -> None:
    network = make_network(tower)
    batch = small_batch(network)
    assert torch.equal(network(batch._replace(texts=tower.tokenize(["dog"] * 7, 12))).pooled, batch.pooled)


@pytest.mark.parametrize("kind", ["bert", "clip", "siglip"])
def test_both_prompts_in_one_pass_are_those_of_a_pass_each(kind: str, tmp_path: Path) -> None:
    """Padding of the shorter ones changes nothing, and the layouts are made once."""
    saves: dict[str, Callable[[Path], Path]] = {"bert": save_bert, "clip": save_clip, "siglip": save_siglip}
    tokens = 8 if kind == "siglip" else 12
    tower = load_prompt_tower(
        text_params(loader=f"{kind}_text", weights=f"path:{saves[kind](tmp_path / kind)}", max_tokens=tokens)
    )
    found = []
    passes: list[int] = []
    encode, layouts = PromptTower.encode, PromptTower.layouts
    made: list[int] = []

    def encode_counted(self: PromptTower, *args: Any) -> Any:
        passes.append(len(args[0]))
        return encode(self, *args)

    def layouts_counted(self: PromptTower, *args: Any) -> Any:
        made.append(1)
        return layouts(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PromptTower, "encode", encode_counted)
        patch.setattr(PromptTower, "layouts", layouts_counted)
        for together in (False, True):
            network = small_prompt_network(tower)
            network.prompts_together = together
            network.class_prompts()
            prompts = network.class_prompts()
            contexts = [network.global_prompt.context, network.local_prompt.context]
            grads = torch.autograd.grad(torch.stack([(each**3).sum() for each in prompts]).sum(), contexts)
            found.append((*prompts, *grads))
            if not together:
                assert passes == [1] * 4
                assert len(made) == 2
    assert passes == [1] * 4 + [2] * 2
    assert len(made) == 3
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def small_prompt_network(tower: PromptTower) -> PrototypeNetwork:
    levels = {"subcategory": small_levels()["subcategory"]}
    levels = {"subcategory": levels["subcategory"]._replace(text=unit_rows(len(NAMES), tower.spec.width))}
    torch.manual_seed(0)
    return PrototypeNetwork(network_params(), levels, tower, tower.tokenize(NAMES, tower.spec.longest))
