"""The whole network: its logits and losses, what of a post masks which term, and what it keeps of its towers."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from popularity.core.errors import ConfigError
from popularity.encoders.prompting import PromptTower, unfreeze_last
from popularity.network.dataset import Batch
from popularity.network.heads import eligible_posts, loss_terms, term_weight
from popularity.network.losses import attention_logits
from popularity.network.model import LevelOutputs, LevelTokens, Outputs, PrototypeNetwork, TaxonomyLevel
from tests.network.small_network import (
    ALL_LEVELS,
    INSTANCE,
    NAMES,
    SIZES,
    THREE_LEVELS,
    TOP_K,
    VALUES,
    gradients,
    make_network,
    network_params,
    small_batch,
    small_levels,
    taken,
    total_loss,
    unit_rows,
    with_folds,
    without_picture,
)

CASES = json.loads((Path(__file__).parent / "method_vectors.json").read_text(encoding="utf-8"))["cases"]
EVERYTHING: dict[str, Any] = {**TOP_K, "weights.contrastive": 0.5, "weights.consistency": 0.1, **INSTANCE}


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", CASES)
def test_reference_vectors_through_the_network(case: dict[str, Any], tower: PromptTower) -> None:
    given = {name: torch.from_numpy(np.array(values)) for name, values in case["inputs"].items() if name != "tau"}
    tau, expected = case["inputs"]["tau"], case["expected"]
    names = {"global_prompt": "g", "local_prompt": "o", "tokens": "s", "visual": "v", "text": "t"}
    posts, classes = len(given["y"]), len(given["G"])
    level = TaxonomyLevel(unit_rows(classes, 6), unit_rows(classes, given["h"].shape[1]), torch.full((classes,), -1))
    changes = {f"temperatures.{name}": tau[short] for name, short in names.items()}
    network = make_network(tower, changes, {"subcategory": level}, names=["cat"] * classes)
    batch = Batch(
        image=unit_rows(posts, 6),
        has_image=torch.ones(posts).bool(),
        pooled=given["h"],
        tokens=given["H"],
        token_mask=given["mask"],
        target=given["y"][:, None],
        fold=torch.zeros(posts).long(),
        own_visual=unit_rows(posts, 1, 6),
        own_text=unit_rows(posts, 1, level.text.shape[1]),
        valid=torch.ones(posts).bool(),
    )
    outputs: Outputs = network(batch, (given["G"], given["L"]))
    logits = attention_logits(
        given["x"], given["V"], given["T"], network.temperature("visual"), network.temperature("text")
    )
    attended = LevelOutputs(given["V"], given["T"], logits, LevelTokens(slice(1, 4), slice(4, 7), None, given["y"]))
    outputs = outputs._replace(levels={"subcategory": attended})
    losses = {name: values.mean() for name, values in loss_terms(network, outputs, batch).items()}
    found = {
        "p": outputs.global_logits,
        "p_prime": outputs.local_logits,
        "logits_c": logits,
        "L_g": losses["global_prompt"],
        "L_o": losses["local_prompt"],
        "L_c": losses["attention"],
        "L": torch.stack([term_weight(network, name) * loss for name, loss in losses.items()]).sum(),
    }
    for name, values in found.items():
        np.testing.assert_allclose(values.detach().numpy(), expected[name], rtol=0, atol=1e-6, err_msg=name)


def permuted(network: PrototypeNetwork, tower: PromptTower, order: Tensor) -> PrototypeNetwork:
    """The network with its K classes in another order: new class i is the old `order[i]`."""
    levels: dict[str, TaxonomyLevel] = {
        name: TaxonomyLevel(*(network.get_buffer(f"{name}_{kind}") for kind in ("visual", "text", "parent")))
        for name in network.level_names
    }
    own = levels["subcategory"]
    levels["subcategory"] = taken(own, order)
    if "concept" in levels:
        below = levels["concept"]
        levels["concept"] = below._replace(parent=order.argsort()[below.parent])
    other = PrototypeNetwork(network.params, levels, tower, tower.tokenize([NAMES[row] for row in order], 12))
    other.load_state_dict(network.state_dict())
    return other.eval()


@pytest.mark.parametrize("changes", [{}, {"attention.depth": 0}, {**TOP_K, "weights.consistency": 1.0}])
def test_a_permutation_of_the_classes_permutes_the_logits(changes: dict[str, Any], tower: PromptTower) -> None:
    network = make_network(tower, changes).eval()
    batch = small_batch(network)
    order = torch.tensor([3, 0, 4, 1, 2])
    index = network.level_names.index("subcategory")
    target = batch.target.clone()
    target[:, index] = order.argsort()[target[:, index]]
    moved = batch._replace(target=target)
    other = permuted(network, tower, order)
    first, second = network(batch), other(moved)
    for found, expected in (
        (second.global_logits, first.global_logits[:, order]),
        (second.local_logits, first.local_logits[:, order]),
        (second.levels["subcategory"].logits, first.levels["subcategory"].logits[:, order]),
        (second.levels["subcategory"].visual, first.levels["subcategory"].visual[:, order]),
        (second.attended, first.attended),
    ):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert first.global_logits.std(dim=1).min() > 1e-3
    terms, others = loss_terms(network, first, batch), loss_terms(other, second, moved)
    for name, values in terms.items():
        torch.testing.assert_close(others[name], values, atol=1e-4, rtol=1e-4)


def test_an_empty_text_has_no_local_loss_and_the_mean_of_p(tower: PromptTower) -> None:
    network = make_network(tower)
    batch = small_batch(network, lengths=[2, 0, 3, 1, 0, 1, 1])
    outputs = network(batch)
    empty = torch.tensor([0, 1, 0, 0, 1, 0, 0]).bool()
    terms = loss_terms(network, outputs, batch)
    mean = outputs.global_logits.mean(dim=1, keepdim=True).expand(-1, len(NAMES))
    torch.testing.assert_close(outputs.local_logits[empty], mean[empty])
    assert (outputs.local_logits[~empty].std(dim=1) > 1e-4).all()
    assert (terms["local_prompt"][empty] == 0).all()
    assert (terms["local_prompt"][~empty] > 0).all()
    assert eligible_posts(network, batch.metadata)["local_prompt"].tolist() == (~empty).tolist()
    assert all((terms[name] > 0).all() for name in ("global_prompt", "attention"))  # the other terms stay
    for name, gradient in gradients(network, total_loss(network, batch)).items():
        assert gradient is None or gradient.isfinite().all(), name
    nothing = small_batch(network, lengths=[0] * 7)
    assert total_loss(network, nothing).isfinite()
    assert all(
        gradient is None or gradient.isfinite().all()
        for gradient in gradients(network, total_loss(network, nothing)).values()
    )


def test_a_post_without_image_has_no_attention_loss(tower: PromptTower) -> None:
    network = make_network(tower, {"weights.contrastive": 1.0})
    batch = small_batch(network)
    bare = without_picture(batch, 2)
    outputs = network(bare)
    terms = loss_terms(network, outputs, bare)
    for name in ("attention", "contrastive"):
        assert terms[name][2] == 0
        assert (terms[name][[0, 1, 3, 4, 5, 6]] > 0).all()
        assert eligible_posts(network, bare.metadata)[name].tolist() == [True, True, False, True, True, True, True]
    assert (terms["global_prompt"] > 0).all()
    assert outputs.levels["subcategory"].logits.isfinite().all()
    assert outputs.attended.isfinite().all()
    assert all(
        gradient is None or gradient.isfinite().all()
        for gradient in gradients(network, total_loss(network, bare)).values()
    )
    # Nor does it touch the others.
    torch.testing.assert_close(outputs.attended[3:], network(batch).attended[3:])


def test_an_unseen_class_has_no_class_loss(tower: PromptTower) -> None:
    network = make_network(tower, {"weights.contrastive": 1.0})
    batch = small_batch(network)
    target = batch.target.clone()
    target[4] = -1
    unseen = batch._replace(target=target)
    outputs = network(unseen)
    terms = loss_terms(network, outputs, unseen)
    for name in ("global_prompt", "local_prompt", "attention"):
        assert terms[name][4] == 0
        assert (terms[name][:4] > 0).all()
        assert not eligible_posts(network, unseen.metadata)[name][4]
    assert terms["contrastive"][4] > 0
    assert all(
        gradient is None or gradient.isfinite().all()
        for gradient in gradients(network, total_loss(network, unseen)).values()
    )
    sequence, spans = network.sequence(network.attention.project(unseen.image, "image"), unseen)
    visual = network.attention.project(network.get_buffer("subcategory_visual"), "visual")
    torch.testing.assert_close(sequence[4, spans["subcategory"].visual], visual)  # nothing is left out for it


def test_filler_rows_count_for_nothing(tower: PromptTower) -> None:
    network = make_network(tower, {"weights.contrastive": 1.0, **THREE_LEVELS, "weights.consistency": 1.0})
    batch = small_batch(network)
    kept = torch.tensor([1, 1, 0, 1, 1, 0, 1]).bool()
    filled = batch._replace(valid=kept)
    terms = loss_terms(network, network(filled), filled)
    alone = batch._replace(**{name: part[kept] for name, part in batch._asdict().items() if part is not None})
    expected = loss_terms(network, network(alone), alone)
    for name, values in terms.items():
        assert (values[~kept] == 0).all()
        torch.testing.assert_close(values[kept], expected[name])
        assert not eligible_posts(network, filled.metadata)[name][~kept].any()


@pytest.mark.parametrize("changes", [{}, THREE_LEVELS, TOP_K])
@pytest.mark.parametrize(("training", "folds"), [(False, True), (True, True), (True, False)])
def test_what_a_post_sees_of_the_classes(
    changes: dict[str, Any], training: bool, folds: bool, tower: PromptTower
) -> None:
    """As a feature: its own classes without it, and the others whole. In training: all of them without its fold."""
    levels = with_folds(small_levels()) if folds else small_levels()
    network = make_network(tower, changes, levels).train(training)
    batch = small_batch(network)
    sequence, spans = network.sequence(network.attention.project(batch.image, "image"), batch)
    torch.testing.assert_close(sequence[:, 0], network.attention.project(batch.image, "image"))
    for index, name in enumerate(network.level_names):
        span, level = spans[name], levels[name]
        for kind, where, whole, of_folds, own in (
            ("visual", span.visual, level.visual, level.fold_visual, batch.own_visual),
            ("text", span.text, level.text, level.fold_text, batch.own_text),
        ):
            assert where is not None
            for row in range(7):
                expected = whole.clone()
                if training and of_folds is not None:
                    expected = of_folds[batch.fold[row]]
                elif not training:
                    expected[batch.target[row, index]] = own[row, index]
                if span.classes is not None:
                    expected = expected[span.classes[row]]
                tokens = network.attention.project(expected, kind)  # type: ignore[arg-type]
                torch.testing.assert_close(sequence[row, where], tokens)


def test_leaving_one_out_changes_the_post_alone(tower: PromptTower) -> None:
    network = make_network(tower).eval()
    batch = small_batch(network)
    other = batch.own_visual.clone()
    other[3] *= -1
    first, second = network(batch), network(batch._replace(own_visual=other))
    rows = torch.arange(7) != 3
    assert torch.equal(first.attended[rows], second.attended[rows])
    assert (first.attended[3] - second.attended[3]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["visual", "text"])
def test_prototypes_of_one_modality(kind: str, tower: PromptTower) -> None:
    network = make_network(tower, {"attention.prototypes": [kind], **THREE_LEVELS, "weights.consistency": 1.0})
    batch = small_batch(network)
    outputs = network(batch)
    sequence, _ = network.sequence(network.attention.project(batch.image, "image"), batch)
    assert sequence.shape[1] == 1 + sum(SIZES.values())
    for level in outputs.levels.values():
        tokens, missing = (level.visual, level.text) if kind == "visual" else (level.text, level.visual)
        assert missing is None
        assert tokens is not None
        expected = attention_logits(outputs.attended, level.visual, level.text, 0.07, 0.05)
        torch.testing.assert_close(level.logits, expected)
    assert total_loss(network, batch).isfinite()


def test_terms_of_weight_zero_are_gone(tower: PromptTower) -> None:
    names = {"global_prompt": 1.0, "local_prompt": 2.0, "attention": 3.0, "contrastive": 4.0, "consistency": 5.0}
    for left_out in (None, *names):
        weights = {f"weights.{name}": 0.0 if name == left_out else value for name, value in names.items()}
        network = make_network(tower, {**THREE_LEVELS, **weights})
        batch = small_batch(network)
        terms = loss_terms(network, network(batch), batch)
        expected = {*names, "attention_category", "attention_concept"}
        if left_out:
            expected = {name for name in expected if not name.startswith(left_out)}
        assert set(terms) == expected == set(eligible_posts(network, batch.metadata))
        for term in terms:
            assert term_weight(network, term) == names["attention" if term.startswith("attention") else term]


def test_temperatures_learn_only_if_wanted(tower: PromptTower) -> None:
    frozen, learnt = (
        make_network(tower, {"temperatures.learn": learn, "weights.contrastive": 1.0}) for learn in (False, True)
    )
    assert not any(
        name.startswith("log_temperatures")
        for name, gradient in gradients(frozen, total_loss(frozen, small_batch(frozen))).items()
    )
    loss = total_loss(learnt, small_batch(learnt))
    torch.testing.assert_close(total_loss(frozen, small_batch(frozen)), loss)
    found = {
        name: gradient for name, gradient in gradients(learnt, loss).items() if name.startswith("log_temperatures")
    }
    assert len(found) == 6
    assert all(gradient is not None and gradient != 0 for gradient in found.values())
    for name, value in VALUES["temperatures"].items():
        if name != "learn":
            assert learnt.temperature(name).item() == pytest.approx(value)
    with torch.no_grad():
        learnt.log_temperatures["visual"].fill_(-20.0)
    assert learnt.temperature("visual").item() == pytest.approx(0.005)
    with pytest.raises(ConfigError, match=r"temperatures\.tokens: .*greater than or equal to 0\.005"):
        network_params({"temperatures.tokens": 0.001})


def test_frozen_towers_are_no_part_of_the_state(tower: PromptTower) -> None:
    network = make_network(tower)
    assert not any("tower" in name for name in (*network.state_dict(), *dict(network.named_parameters())))
    assert not any(name.startswith(tuple(SIZES)) for name in network.state_dict())  # prototypes have their own file
    assert network.text_tower is tower


def test_unfrozen_towers_are_part_of_the_state_and_read_the_texts(tower: PromptTower) -> None:
    tower = copy.deepcopy(tower)
    unfreeze_last(tower, 1)
    network = make_network(tower)
    held = {name.removeprefix("tower.") for name in network.state_dict() if name.startswith("tower.")}
    assert held == set(tower.state_dict())
    texts = tower.tokenize(["the sea", "dog", "", "cat of the sea"], 12)
    batch = small_batch(network, 4)._replace(texts=texts)
    outputs = network(batch)
    torch.testing.assert_close(outputs.pooled, tower(None, texts).pooled)
    assert (outputs.pooled - batch.pooled).abs().max() > 0.1
    reached = {
        name for name, gradient in gradients(network, total_loss(network, batch)).items() if gradient is not None
    }
    assert {name for name in reached if name.startswith("tower.")} == {
        f"tower.{name}" for name, parameter in tower.named_parameters() if parameter.requires_grad
    }


class MeanColour(torch.nn.Module):
    """A stand-in image tower that a hand can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 1.0, 2.0, 3.0]))

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.float().mean(dim=(2, 3)).repeat(1, 2) * self.scale


def test_an_image_tower_reads_pixels_and_leaves_missing_images_at_zero(tower: PromptTower) -> None:
    levels = {"subcategory": small_levels()["subcategory"]}
    network = PrototypeNetwork(network_params(), levels, tower, tower.tokenize(NAMES, 12), MeanColour())
    pixels = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = without_picture(small_batch(network, 3), 1)._replace(pixels=pixels)
    outputs = network(batch)
    colours = torch.nn.functional.normalize(MeanColour()(pixels), dim=1)
    expected = network.attention.image_projection(colours * torch.tensor([[1.0], [0.0], [1.0]]))
    torch.testing.assert_close(outputs.projected_image, expected)
    found = gradients(network, total_loss(network, batch))
    assert found["image_tower.scale"] is not None
    assert found["image_tower.scale"].isfinite().all()


@pytest.mark.parametrize("changes", [{"weights.contrastive": 1.0}, EVERYTHING])
def test_a_data_set_without_any_image_trains(changes: dict[str, Any], tower: PromptTower) -> None:
    levels = {name: level._replace(visual=torch.zeros_like(level.visual)) for name, level in small_levels().items()}
    network = make_network(tower, changes, levels)
    batch = small_batch(network)
    none = torch.zeros(7, dtype=torch.bool)
    batch = batch._replace(
        image=torch.zeros_like(batch.image),
        has_image=none,
        own_visual=torch.zeros_like(batch.own_visual),
        texts=tower.tokenize(["the sea"] * 7, 12),
    )
    optimizer = torch.optim.AdamW([each for each in network.parameters() if each.requires_grad], lr=1e-2)
    first = total_loss(network, batch)
    for _ in range(5):
        optimizer.zero_grad()
        loss = total_loss(network, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss.isfinite()
    assert loss < first
    outputs = network(batch)
    assert outputs.attended.isfinite().all()
    assert all(parameter.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("changes", [{}, EVERYTHING])
def test_autocast_changes_little_and_losses_stay_float32(changes: dict[str, Any], tower: PromptTower) -> None:
    network = make_network(tower, changes)
    batch = small_batch(network)._replace(texts=tower.tokenize(["the sea"] * 7, 12))
    exact = network(batch)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(batch)
        terms = loss_terms(network, outputs, batch)
    assert all(values.dtype == torch.float32 for values in terms.values())
    assert outputs.global_logits.dtype == outputs.local_logits.dtype == torch.float32
    similarity = torch.nn.functional.cosine_similarity(outputs.attended.float(), exact.attended)
    assert similarity.min() > 0.99
    loss = torch.stack([values.mean() for values in terms.values()]).sum()
    found = gradients(network, loss)
    assert all(
        gradient.isfinite().all() and gradient.dtype == torch.float32
        for gradient in found.values()
        if gradient is not None
    )


def test_prompts_may_be_handed_in(tower: PromptTower) -> None:
    network = make_network(tower, {"prototypes.levels": list(ALL_LEVELS)}).eval()
    batch = small_batch(network)
    first, second = network(batch), network(batch, network.class_prompts())
    assert torch.equal(first.global_logits, second.global_logits)
    assert torch.equal(first.local_logits, second.local_logits)
    assert torch.equal(first.levels["concept"].logits, second.levels["concept"].logits)


def test_training_needs_neither_tables_nor_trees_nor_dvc_nor_the_compiler() -> None:
    """Machines that only train have none of them; the compiler takes seconds to import."""
    names = ("polars", "lightgbm", "optuna", "dvc", "dvclive", "scmrepo", "torch._dynamo")
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in names)
    wanted = "popularity.network.model, popularity.training.loop, popularity.training.optimizer"
    subprocess.run([sys.executable, "-c", f"import sys; {blocked}; import {wanted}"], check=True, timeout=120)
