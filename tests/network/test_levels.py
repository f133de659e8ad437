"""Prototypes at three levels: the sequence, the near concepts, and what keeps a child near its parent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from popularity.core.config import parse_section
from popularity.core.errors import ConfigError
from popularity.encoders.prompting import PromptTower
from popularity.network.heads import loss_terms, term_weight
from popularity.network.losses import consistency_loss
from popularity.network.params import LevelParams
from tests.network.small_network import (
    ALL_LEVELS,
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
)

CONSISTENT = {**THREE_LEVELS, "weights.consistency": 1.0}


@pytest.mark.parametrize(
    ("changes", "concepts"), [(THREE_LEVELS, 9), (TOP_K, 3), ({**TOP_K, "prototypes.top_k": 20}, 9)], ids=str
)
def test_tokens_of_the_sequence(changes: dict[str, Any], concepts: int, tower: PromptTower) -> None:
    network = make_network(tower, changes)
    batch = small_batch(network)
    sequence, spans = network.sequence(network.attention.project(batch.image, "image"), batch)
    counts = {**SIZES, "concept": concepts}
    assert sequence.shape == (7, 1 + 2 * sum(counts.values()), 16)
    slices = [span for name in ALL_LEVELS for span in spans[name][:2] if span is not None]
    taken = torch.cat([torch.arange(sequence.shape[1])[span] for span in slices])
    assert taken.tolist() == list(range(1, sequence.shape[1]))  # none twice, none forgotten
    levels = network(batch).levels
    for name, count in counts.items():
        assert levels[name].logits.shape == (7, count)


@pytest.mark.parametrize("kinds", [["visual", "text"], ["text", "visual"], ["text"]], ids=str)
def test_shared_tokens_give_the_levels_that_all_pairs_give(kinds: list[str], tower: PromptTower) -> None:
    network = make_network(tower, {**THREE_LEVELS, "attention.prototypes": kinds}).train()
    batch = small_batch(network)
    found = []
    for shared in (False, True):
        network.shared_attention = shared
        found.append(network(batch).levels)
    for name in ALL_LEVELS:
        torch.testing.assert_close(found[0][name].logits, found[1][name].logits, atol=1e-5, rtol=1e-5)
        assert (found[0][name].visual is None) == (found[1][name].visual is None) == ("visual" not in kinds)


@pytest.mark.parametrize("kinds", [["visual", "text"], ["text"]], ids=str)
def test_outside_of_training_too_shared_tokens_give_what_all_pairs_give(kinds: list[str], tower: PromptTower) -> None:
    """A post sees the prototypes of its classes without itself; some posts have no class, or one at some levels."""
    network = make_network(tower, {**THREE_LEVELS, "attention.prototypes": kinds}).eval()
    batch = small_batch(network, 12)
    target = batch.target.clone()
    target[0], target[1, 2], target[2, 1] = -1, -1, -1
    batch = batch._replace(target=target)
    found, weights = [], []
    with torch.inference_mode():
        for shared in (False, True):
            network.shared_attention, own = shared, list[torch.Tensor]()
            found.append(network(batch, attention_weights=own))
            weights.append(torch.stack(own))
    torch.testing.assert_close(weights[0], weights[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[0].attended, found[1].attended, atol=1e-5, rtol=1e-5)
    for name in ALL_LEVELS:
        one, other = (outputs.levels[name] for outputs in found)
        torch.testing.assert_close(one.logits, other.logits, atol=1e-5 / 0.05, rtol=1e-5)  # by the least temperature
        torch.testing.assert_close(one.text, other.text, atol=1e-5, rtol=1e-5)
        assert torch.equal(one.tokens.target, other.tokens.target)


def test_the_attention_loss_is_a_sum_over_levels(tower: PromptTower) -> None:
    network = make_network(tower, THREE_LEVELS)
    batch = small_batch(network)
    outputs = network(batch)
    terms = loss_terms(network, outputs, batch)
    for index, name in enumerate(ALL_LEVELS):
        expected = functional.cross_entropy(outputs.levels[name].logits, batch.target[:, index], reduction="none")
        term = "attention" if name == "subcategory" else f"attention_{name}"
        torch.testing.assert_close(terms[term], expected)
        assert term_weight(network, term) == 1.0


def test_one_level_alone_is_the_papers_network(tower: PromptTower) -> None:
    network = make_network(tower)
    batch = small_batch(network)
    sequence, _ = network.sequence(network.attention.project(batch.image, "image"), batch)
    assert sequence.shape[1] == 1 + 2 * SIZES["subcategory"]
    assert set(loss_terms(network, network(batch), batch)) == {"global_prompt", "local_prompt", "attention"}


def near_by_hand(network_near: int, batch: Any, levels: Any, row: int) -> set[int]:
    """Concepts nearest to a post in both modalities, its own one without it."""
    visual, text = levels["concept"].visual.clone(), levels["concept"].text.clone()
    own = int(batch.target[row, 2])
    if own >= 0:
        visual[own], text[own] = batch.own_visual[row, 2], batch.own_text[row, 2]
    score = visual @ batch.image[row] + text @ batch.pooled[row]
    return set(score.topk(network_near).indices.tolist())


def test_near_concepts_are_the_nearest_ones(tower: PromptTower) -> None:
    network = make_network(tower, TOP_K).eval()
    levels = small_levels()
    batch = small_batch(network, 20)
    target = batch.target.clone()
    target[:5] = -1
    batch = batch._replace(target=target)
    outputs = network(batch)
    classes, column = outputs.levels["concept"].tokens.classes, outputs.levels["concept"].tokens.target
    assert classes is not None
    found = [near_by_hand(3, batch, levels, row) == set(classes[row].tolist()) for row in range(20)]
    assert all(found)
    own = batch.target[:, 2]
    inside = (classes == own[:, None]).any(dim=1)
    assert 0 < int(inside[5:].sum()) < 15  # both happen
    assert (column >= 0).tolist() == inside.tolist()
    assert classes[inside].gather(1, column[inside][:, None])[:, 0].tolist() == own[inside].tolist()
    terms = loss_terms(network, outputs, batch)
    assert ((terms["attention_concept"] > 0) == inside).all()  # masked where the own concept is not among them
    assert (terms["attention"][5:] > 0).all()


def test_near_concepts_do_not_tell_the_class(tower: PromptTower) -> None:
    """For a post that represents nothing (its classes lose nothing without it) any label gives the same choice."""
    network = make_network(tower, TOP_K).eval()
    batch = small_batch(network, 20)
    choices = []
    for shift in (None, 0, 1, 5):
        target = (batch.target + (shift or 0)) % torch.tensor(list(SIZES.values()))
        own_visual, own_text = (
            torch.stack(
                [network.get_buffer(f"{name}_{kind}")[target[:, column]] for column, name in enumerate(SIZES)], 1
            )
            for kind in ("visual", "text")
        )
        target = torch.full_like(target, -1) if shift is None else target
        given = batch._replace(target=target, own_visual=own_visual, own_text=own_text)
        sequence, spans = network.sequence(network.attention.project(given.image, "image"), given)
        classes = spans["concept"].classes
        assert classes is not None
        choices.append((classes, sequence))
    for classes, sequence in choices[1:]:
        assert torch.equal(classes, choices[0][0])
        torch.testing.assert_close(sequence, choices[0][1])  # nor does anything else in what the attention reads


def test_near_concepts_of_posts_without_image_or_text(tower: PromptTower) -> None:
    network = make_network(tower, TOP_K).eval()
    batch = small_batch(network)
    batch = batch._replace(image=torch.zeros_like(batch.image))
    classes = network(batch).levels["concept"].tokens.classes
    assert classes is not None
    for row in range(7):
        assert set(classes[row].tolist()) == near_by_hand(3, batch, small_levels(), row)


def test_consistency_is_the_mean_over_levels_and_modalities(tower: PromptTower) -> None:
    network = make_network(tower, CONSISTENT)
    batch = small_batch(network)
    term = loss_terms(network, network(batch), batch)["consistency"]
    losses = []
    levels, project = small_levels(), network.attention.project
    for above, name in (("category", "subcategory"), ("subcategory", "concept")):
        child, top = levels[name], levels[above]
        for children, parents in (
            (project(child.visual, "visual"), project(top.visual, "visual")),
            (project(child.text, "text"), project(top.text, "text")),
        ):
            losses.append(consistency_loss(children, parents, child.parent))
    torch.testing.assert_close(term, torch.stack(losses).mean().expand(7))
    assert term[0] > 0.1


def test_consistency_pulls_children_to_their_parents(tower: PromptTower) -> None:
    network = make_network(
        tower, {**CONSISTENT, **{f"weights.{name}": 0.0 for name in ("global_prompt", "local_prompt", "attention")}}
    )
    batch = small_batch(network)
    loss = loss_terms(network, network(batch), batch)["consistency"].mean()
    reached = {
        name for name, gradient in gradients(network, loss).items() if gradient is not None and (gradient != 0).any()
    }
    assert {"attention.image_projection.weight", "attention.text_projection.weight"} <= reached
    optimizer = torch.optim.AdamW(network.attention.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        now = loss_terms(network, network(batch), batch)["consistency"].mean()
        now.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert now < loss / 2


def test_a_concept_without_parent_is_pulled_to_none(tower: PromptTower) -> None:
    levels = small_levels()
    parent = torch.full_like(levels["concept"].parent, -1)
    parent[2] = 3
    levels["concept"] = levels["concept"]._replace(parent=parent)
    network = make_network(tower, {**CONSISTENT, "prototypes.levels": ["subcategory", "concept"]}, levels)
    batch = small_batch(network)
    project = network.attention.project
    cosines = [
        functional.cosine_similarity(
            project(levels["concept"].visual[2], "visual"), project(levels["subcategory"].visual[3], "visual"), dim=0
        ),
        functional.cosine_similarity(
            project(levels["concept"].text[2], "text"), project(levels["subcategory"].text[3], "text"), dim=0
        ),
    ]
    term = loss_terms(network, network(batch), batch)["consistency"]
    torch.testing.assert_close(term[0], 1 - torch.stack(cosines).mean())


@pytest.mark.parametrize(
    "levels",
    [[], ["category"], ["category", "concept"], ["concept", "subcategory"], ["subcategory", "subcategory"]],
    ids=str,
)
def test_levels_without_classes_or_out_of_order_are_refused(levels: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_section("train.network.prototypes", {**VALUES["prototypes"], "levels": levels}, LevelParams)
    assert "levels must hold subcategory and run from the top down: category, subcategory, concept" in str(caught.value)
    assert f"found {', '.join(levels)}" in str(caught.value)


@pytest.mark.parametrize("levels", [["subcategory"], ["category", "subcategory"], ["subcategory", "concept"]], ids=str)
def test_levels_that_are_allowed(levels: list[str], tower: PromptTower) -> None:
    network = make_network(tower, {"prototypes.levels": levels})
    batch = small_batch(network)
    assert set(network(batch).levels) == set(levels)


def test_consistency_needs_two_levels() -> None:
    with pytest.raises(ConfigError, match=r"weights\.consistency is between prototypes\.levels: at least two"):
        network_params({"weights.consistency": 0.1})


def test_a_level_without_classes_is_refused(tower: PromptTower) -> None:
    levels = small_levels()
    levels["concept"] = taken(levels["concept"], slice(0))
    with pytest.raises(ConfigError, match=r"prototypes\.levels: no training post has a concept"):
        make_network(tower, THREE_LEVELS, levels)
