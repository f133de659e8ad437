"""Eq 4, 5, 7, 8 against vectors that were computed apart from this code, and the properties that they must have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn import functional

from popularity.network.losses import (
    attention_logits,
    class_loss,
    consistency_loss,
    contrastive_loss,
    cosines,
    global_logits,
    local_logits,
)
from tests.network.small_network import unit_rows

CASES = json.loads((Path(__file__).parent / "method_vectors.json").read_text(encoding="utf-8"))["cases"]


def tensor(values: Any) -> Tensor:
    """As float64, bool or int64, whichever `values` are."""
    return torch.from_numpy(np.array(values))


def assert_equal(found: Tensor, expected: Any) -> None:
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_reference_vectors_in_float64(case: dict[str, Any]) -> None:
    given = {name: tensor(values) for name, values in case["inputs"].items() if name != "tau"}
    tau, expected = case["inputs"]["tau"], case["expected"]
    p = global_logits(given["h"], given["G"])
    p_local = local_logits(given["H"], given["mask"], given["L"], tau["s"])
    q = attention_logits(given["x"], given["V"], given["T"], tau["v"], tau["t"])
    assert_equal(p, expected["p"])
    assert_equal(p_local, expected["p_prime"])
    assert_equal(q, expected["logits_c"])
    losses = [class_loss(values, given["y"]).mean() for values in (p / tau["g"], p_local / tau["o"], q)]
    for name, loss in zip(("L_g", "L_o", "L_c"), losses, strict=True):
        assert_equal(loss, expected[name])
    assert_equal(torch.stack(losses).sum(), expected["L"])


def local_case() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn((3, 5, 8), generator=generator, dtype=torch.float64)
    token_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0]]).bool()
    return tokens, token_mask, torch.randn((4, 8), generator=generator, dtype=torch.float64)


def test_padding_has_zero_weight_and_zero_gradient() -> None:
    tokens, token_mask, prompts = local_case()
    tokens.requires_grad_()
    found = local_logits(tokens, token_mask, prompts, 0.1)
    other = torch.where(token_mask[..., None], tokens, 1e3 * tokens.flip(0) + 7)
    assert torch.equal(local_logits(other, token_mask, prompts, 0.1), found)
    (gradient,) = torch.autograd.grad(found.square().sum(), tokens)
    assert (gradient[~token_mask] == 0).all()
    assert (gradient[token_mask].norm(dim=-1) > 0).all()
    for row in range(3):  # as if the padding were not there
        alone = local_logits(
            tokens[row : row + 1, token_mask[row]], token_mask[row : row + 1, token_mask[row]], prompts, 0.1
        )
        torch.testing.assert_close(found[row : row + 1], alone)


def test_local_logits_run_from_the_mean_to_the_maximum() -> None:
    tokens, token_mask, prompts = local_case()
    similarity = cosines(tokens, prompts)
    mean = torch.stack([row[kept].mean(dim=0) for row, kept in zip(similarity, token_mask, strict=True)])
    largest = torch.stack([row[kept].amax(dim=0) for row, kept in zip(similarity, token_mask, strict=True)])
    torch.testing.assert_close(local_logits(tokens, token_mask, prompts, 1e6), mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(local_logits(tokens, token_mask, prompts, 1e-4), largest, atol=1e-5, rtol=0)
    between = local_logits(tokens, token_mask, prompts, 0.1)
    assert ((mean <= between) & (between <= largest)).all()
    assert (between - mean).abs().max() > 0.01
    assert (between - largest).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_text_without_tokens_gives_zeros_and_finite_gradients(dtype: torch.dtype) -> None:
    tokens, token_mask, prompts = local_case()
    tokens, prompts = tokens.to(dtype).requires_grad_(), prompts.to(dtype).requires_grad_()
    temperature = torch.tensor(0.1, dtype=dtype, requires_grad=True)
    token_mask[1] = False
    found = local_logits(tokens, token_mask, prompts, temperature)
    assert (found[1] == 0).all()
    for gradient in torch.autograd.grad(found.exp().sum(), (tokens, prompts, temperature)):
        assert gradient.isfinite().all()
        assert (gradient != 0).any()
    only_empty = local_logits(tokens, torch.zeros_like(token_mask), prompts, temperature)
    assert (only_empty == 0).all()
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(only_empty.sum(), (tokens, prompts)))


def test_one_modality_alone_gives_its_half() -> None:
    image, visual, text = unit_rows(2, 4), unit_rows(2, 3, 4, seed=1), unit_rows(2, 3, 4, seed=2)
    both = attention_logits(image, visual, text, 0.07, 0.05)
    halves = attention_logits(image, visual, None, 0.07, 0.05), attention_logits(image, None, text, 0.07, 0.05)
    torch.testing.assert_close(halves[0], (visual @ image[:, :, None])[..., 0] / 0.07)
    torch.testing.assert_close(both, (halves[0] + halves[1]) / 2)


def test_an_unknown_class_has_no_loss_and_no_gradient() -> None:
    logits = torch.randn(3, 5, requires_grad=True)
    losses = class_loss(logits, torch.tensor([2, -1, 4]))
    assert losses[1] == 0
    assert losses[0].item() == pytest.approx(-logits[0].log_softmax(0)[2].item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert (gradient[1] == 0).all()
    assert (gradient[[0, 2]] != 0).all()


def test_cosines_keep_float32_under_autocast() -> None:
    left, right = torch.randn(4, 32), torch.randn(6, 32)
    exact = cosines(left, right)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cosines(left, right), exact)
        assert cosines(left.bfloat16(), right).dtype == torch.float32
    torch.testing.assert_close(exact, functional.cosine_similarity(left[:, None], right, dim=-1))


def info_nce(image: Tensor, text: Tensor, valid: list[int], group: list[int] | None) -> dict[int, float]:
    """By the formula, one valid post at a time, in numpy."""
    scores = (image @ text.T).double().numpy() / 0.2
    found = {}
    for row in valid:
        positives = [
            other
            for other in valid
            if other == row or (group is not None and group[row] >= 0 and group[other] == group[row])
        ]
        halves = [
            -np.mean([scale[other] - np.log(np.exp(scale[valid]).sum()) for other in positives])
            for scale in (scores[row], scores[:, row])
        ]
        found[row] = float(np.mean(halves))
    return found


@pytest.mark.parametrize("group", [None, [0, 1, 0, -1, 1, -1, 0]])
def test_contrastive_loss_is_the_formula(group: list[int] | None) -> None:
    image, text = unit_rows(7, 5), unit_rows(7, 5, seed=1)
    mask = torch.tensor([1, 1, 1, 1, 0, 1, 1]).bool()
    groups = None if group is None else torch.tensor(group)
    found = contrastive_loss(image, text, mask, 0.2, groups)
    expected = info_nce(image, text, [0, 1, 2, 3, 5, 6], group)
    np.testing.assert_allclose(found[mask], list(expected.values()), rtol=1e-5)
    assert found[4] == 0
    torch.testing.assert_close(contrastive_loss(3 * text, 2 * image, mask, 0.2, groups), found)  # symmetric, of cosines


@pytest.mark.parametrize("supervised", [False, True])
def test_invalid_posts_are_nobodys_negatives_and_get_no_gradient(supervised: bool) -> None:
    image, text = unit_rows(6, 5).requires_grad_(), unit_rows(6, 5, seed=1).requires_grad_()
    valid, group = torch.tensor([1, 0, 1, 1, 0, 1]).bool(), torch.tensor([0, 0, 0, 1, 1, 1]) if supervised else None
    found = contrastive_loss(image, text, valid, 0.1, group)
    alone = contrastive_loss(
        image[valid], text[valid], torch.ones(4).bool(), 0.1, None if group is None else group[valid]
    )
    torch.testing.assert_close(found[valid], alone)
    for gradient in torch.autograd.grad(found.sum(), (image, text)):
        assert gradient.isfinite().all()
        assert (gradient[~valid] == 0).all()
        assert (gradient[valid].norm(dim=1) > 0).all()


def test_contrastive_loss_of_no_valid_post_is_zero() -> None:
    image = torch.zeros(3, 5, requires_grad=True)
    found = contrastive_loss(image, unit_rows(3, 5), torch.zeros(3).bool(), 0.1)
    assert (found == 0).all()
    (gradient,) = torch.autograd.grad(found.sum(), image)
    assert (gradient == 0).all()


def test_consistency_is_zero_on_the_parent_and_grows_with_the_angle() -> None:
    parents, parent = unit_rows(2, 5), torch.tensor([1, 0, 1])
    assert consistency_loss(3 * parents[parent], parents, parent).item() == pytest.approx(0, abs=1e-6)
    children = unit_rows(3, 5, seed=1)
    expected = np.mean([1 - float(children[row] @ parents[parent[row]]) for row in range(3)])
    assert consistency_loss(children, parents, parent).item() == pytest.approx(expected, rel=1e-5)


def test_children_without_a_parent_do_not_count() -> None:
    children, parents = unit_rows(3, 5).requires_grad_(), unit_rows(2, 5, seed=1).requires_grad_()
    found = consistency_loss(children, parents, torch.tensor([0, -1, 0]))
    torch.testing.assert_close(found, consistency_loss(children[[0, 2]], parents, torch.tensor([0, 0])))
    of_children, of_parents = torch.autograd.grad(found, (children, parents))
    assert (of_children[1] == 0).all()
    assert (of_parents[1] == 0).all()  # index -1 is not the last parent
    assert (of_parents[0] != 0).any()
    assert consistency_loss(children, parents, torch.full((3,), -1)) == 0


POSTS_EACH = 3


def _one_of_two(process: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=process, world_size=2)
    own = slice(process * POSTS_EACH, (process + 1) * POSTS_EACH)
    image, text, valid, group = gathered_case()
    image, text = image[own].clone().requires_grad_(), text[own].clone().requires_grad_()
    losses = contrastive_loss(image, text, valid[own], 0.1, group[own])
    losses.sum().backward()  # type: ignore[no-untyped-call]
    torch.save((losses.detach(), image.grad, text.grad), f"{folder}/{process}.pt")
    dist.destroy_process_group()


def gathered_case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = 2 * POSTS_EACH
    valid, group = torch.tensor([1, 1, 0, 1, 1, 1]).bool(), torch.tensor([0, 1, 0, 0, -1, 1])
    return unit_rows(rows, 5), unit_rows(rows, 5, seed=1), valid, group


def test_two_processes_see_each_others_posts(tmp_path: Path) -> None:
    spawn(_one_of_two, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    image, text, valid, group = gathered_case()
    image.requires_grad_()
    text.requires_grad_()
    losses = contrastive_loss(image, text, valid, 0.1, group)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    chunks = zip(*(torch.load(tmp_path / f"{process}.pt") for process in (0, 1)), strict=True)
    for found, expected in zip(chunks, (losses.detach(), image.grad, text.grad), strict=True):
        torch.testing.assert_close(torch.cat(found), expected)
