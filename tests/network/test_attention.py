"""Eq 6: the encoder over image and prototypes, what x layer_weights at, and where the projections start."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from popularity.core.config import parse_section
from popularity.core.errors import ConfigError
from popularity.network.attention import CrossModalAttention, Dropout, Layer, OwnTokens, SharedTokens
from popularity.network.params import AttentionParams
from tests.network.small_network import VALUES, network_params, unit_rows

SHAPES = {"image": 4, "visual": 6, "text": 8}


def params(**changes: Any) -> AttentionParams:
    return network_params({f"attention.{name}": value for name, value in changes.items()}).attention


def module(**changes: Any) -> CrossModalAttention:
    torch.manual_seed(0)
    return CrossModalAttention(params(**changes), unit_rows(5, 6), unit_rows(5, 8, seed=1)).eval()


def sequence(attention: CrossModalAttention, posts: int = 3) -> Tensor:
    image = attention.project(unit_rows(posts, 1, 6, seed=2), "image")
    visual = attention.project(unit_rows(posts, 5, 6, seed=3), "visual")
    return torch.cat([image, visual, attention.project(unit_rows(posts, 5, 8, seed=4), "text")], dim=1)


def manual_layer(layer: Layer, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (b, n, D) after a pre-norm layer, and the weights (b, heads, n, n), from its matrices alone."""
    mix, heads = layer.attention, layer.attention.num_heads
    normed = functional.layer_norm(tokens, tokens.shape[-1:], layer.attention_norm.weight, layer.attention_norm.bias)
    query, key, value = (
        part.reshape(*part.shape[:2], heads, -1).transpose(1, 2)
        for part in (normed @ mix.in_proj_weight.T + mix.in_proj_bias).chunk(3, dim=-1)
    )
    weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)
    tokens = tokens + mix.out_proj((weights @ value).transpose(1, 2).flatten(2))
    return tokens + layer.forward_part(layer.forward_norm(tokens)), weights


def test_the_encoder_and_its_weights_are_the_formulas() -> None:
    attention = module(depth=2)
    tokens = sequence(attention)
    layer_weights, expected = torch.zeros(3, 11), tokens
    for layer in attention.layers:
        assert isinstance(layer, Layer)
        expected, weights = manual_layer(layer, expected)
        layer_weights += weights[:, :, 0].mean(dim=1) / 2
    each: list[torch.Tensor] = []
    torch.testing.assert_close(attention(tokens, each), attention.norm(expected), atol=1e-5, rtol=1e-5)
    found = torch.stack(each).mean(dim=0)
    torch.testing.assert_close(found, layer_weights, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3))
    assert found.std(dim=1).min() > 1e-4


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_evaluation_equals_training_without_dropout(gradient: bool, autocast: bool) -> None:
    """PyTorch takes other kernels in evaluation mode; they must not change the numbers."""
    attention = module(dropout=0.0)
    tokens = sequence(attention)
    exact = attention.train()(tokens).detach()
    with (
        torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext(),
        nullcontext() if gradient else torch.inference_mode(),
    ):
        layer_weights: list[torch.Tensor] = []
        found = attention.eval()(tokens, layer_weights)
    tolerance = 0.05 if autocast else 1e-5
    torch.testing.assert_close(found.float(), exact, atol=tolerance, rtol=0)
    for layer in layer_weights:
        torch.testing.assert_close(layer.sum(dim=1), torch.ones(3), atol=tolerance, rtol=0)


def test_dropout_is_for_training() -> None:
    attention = module(dropout=0.5)
    tokens = sequence(attention)
    assert torch.equal(attention(tokens), attention(tokens))
    attention.train()
    assert (attention(tokens) - attention(tokens)).abs().max() > 0.1


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_dropout_keeps_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    values = torch.full((3, 1000, 101), 2.0, requires_grad=True)
    found = Dropout(rate).train()(values)
    left_out = (found == 0).float()
    assert left_out.mean().item() == pytest.approx(rate, abs=0.005)
    assert found.mean().item() == pytest.approx(2, abs=0.02)
    assert len(found[found > 0].unique()) == 1
    # Neighbours fall independently, also across the random words.
    flat = left_out.flatten()
    for shift in (1, 4, 8):
        together = torch.corrcoef(torch.stack([flat[shift:], flat[:-shift]]))[0, 1]
        assert abs(together) < 0.01
    found.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, found / 2)
    assert torch.equal(Dropout(rate).eval()(values), values)
    assert not torch.equal(found, Dropout(rate).train()(values))
    torch.manual_seed(0)
    assert torch.equal(found, Dropout(rate).train()(values))


def test_without_layers_the_projections_stand_alone() -> None:
    attention = module(depth=0)
    tokens = sequence(attention)
    layer_weights: list[torch.Tensor] = []
    torch.testing.assert_close(attention(tokens, layer_weights), functional.layer_norm(tokens, (16,)))
    assert not layer_weights


def test_types_tell_the_kinds_apart() -> None:
    attention = module()
    vectors = unit_rows(4, 6)
    image, visual = attention.project(vectors, "image"), attention.project(vectors, "visual")
    difference = attention.kinds["image"] - attention.kinds["visual"]
    assert difference.abs().max() > 1e-3
    torch.testing.assert_close(image - visual, difference.expand(4, -1))


@pytest.mark.parametrize("scale", [0.0, 5.0])
def test_projections_start_centred_with_unit_variance(scale: float) -> None:
    """However large the component that all prototypes share."""
    torch.manual_seed(0)
    common = functional.normalize(torch.randn(24), dim=0)
    visual = functional.normalize(scale * common + functional.normalize(torch.randn(40, 24), dim=1), dim=1)
    attention = CrossModalAttention(params(dim=512), visual, unit_rows(40, 8))
    tokens = attention.image_projection(visual)
    torch.testing.assert_close(tokens.mean(dim=0), torch.zeros(512), atol=1e-4, rtol=0)
    assert tokens.var().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("visual", [torch.zeros(5, 6), unit_rows(1, 6).expand(5, -1)], ids=["none", "one for all"])
def test_prototypes_without_spread_start_at_the_scale_of_unit_vectors(visual: Tensor) -> None:
    torch.manual_seed(0)
    attention = CrossModalAttention(params(dim=512), visual, unit_rows(5, 8)).eval()
    torch.testing.assert_close(attention.image_projection(visual), torch.zeros(5, 512), atol=1e-4, rtol=0)
    image = attention.image_projection(unit_rows(9, 6, seed=7))
    assert 0.3 < image.std().item() < 3
    assert attention(sequence(attention)).isfinite().all()


def test_heads_that_do_not_divide_the_dim_are_refused() -> None:
    values = {**VALUES["attention"], "num_heads": 3}
    with pytest.raises(ConfigError, match=r"train\.network\.attention: .*num_heads must divide dim, found 3 and 16"):
        parse_section("train.network.attention", values, AttentionParams)


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("folds", [1, 3])
def test_shared_prototypes_in_linear_time_give_the_same_tokens_and_gradients(depth: int, folds: int) -> None:
    attention = module(depth=depth, dropout=0.25).train().double()
    image = attention.project(unit_rows(7, 6, seed=2).double(), "image")
    prototypes = attention.project(unit_rows(folds, 11, 6, seed=3).double(), "visual")
    shared = SharedTokens(image, prototypes, torch.arange(7) % folds)
    weights = torch.randn(7, 12, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = []
    for run in (lambda: attention(shared.sequence()), lambda: attention.forward_shared(shared)):
        torch.manual_seed(3)  # the same dropout
        out = run()
        named = {name: parameter for name, parameter in attention.named_parameters() if "text_projection" not in name}
        named = {name: parameter for name, parameter in named.items() if name != "kinds.text"}
        grads = torch.autograd.grad((out * weights).sum(), list(named.values()), retain_graph=True)
        found.append({"out": out, **dict(zip(named, grads, strict=True))})
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, atol=1e-5, rtol=1e-5, msg=name)
    assert found[0]["out"].std() > 0.1


def test_shared_prototypes_need_no_product_of_all_pairs_for_every_post() -> None:
    """Operations grow with b m: twice the posts are less than twice the operations of the attention."""
    attention = module(depth=1, dim=16).train()

    def flops(posts: int, *, shared: bool) -> int:
        image = torch.randn(posts, 16)
        tokens = SharedTokens(image, torch.randn(2, 200, 16), torch.arange(posts) % 2)
        with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
            attention.forward_shared(tokens) if shared else attention(tokens.sequence())
        return int(counted.get_total_flops())

    dense, linear = (flops(64, shared=shared) - flops(32, shared=shared) for shared in (False, True))
    pairs = 32 * 4 * 16 * 201**2  # queries by keys, weights by values
    rest = 32 * 2 * 16 * 16 * (3 + 1 + 4) * 201
    assert dense == pairs + rest
    assert linear < 0.75 * rest


def own_tokens(attention: CrossModalAttention, posts: int, shared: int) -> OwnTokens:
    """Three for each post, which replace different shared tokens. The first post has none, the second all of them."""
    generator = torch.Generator().manual_seed(7)
    index = torch.stack([torch.randperm(shared, generator=generator)[:3] for _ in range(posts)])
    found = torch.rand(posts, 3, generator=generator) < 0.6
    found[0], found[1] = False, True
    return OwnTokens(attention.project(unit_rows(posts, 3, 6, seed=5), "visual"), index, found)


def sharpened(attention: CrossModalAttention, factor: float) -> CrossModalAttention:
    """With queries and keys of the first layer times `factor`."""
    layer = attention.layers[0]
    assert isinstance(layer, Layer)
    with torch.no_grad():
        layer.attention.in_proj_weight[:32] *= factor
    return attention


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("folds", [1, 3])
@pytest.mark.parametrize("sharpness", [1.0, 4.0])
def test_own_tokens_are_exchanged_exactly(sharpness: float, folds: int, depth: int) -> None:
    """In float32, against all pairs: the tokens, and what the image attends to in every layer."""
    attention = sharpened(module(depth=depth), sharpness)
    image = attention.project(unit_rows(40, 6, seed=2), "image")
    prototypes = attention.project(unit_rows(folds, 11, 6, seed=3), "visual")
    shared = SharedTokens(image, prototypes, torch.arange(40) % folds, own_tokens(attention, 40, 11))
    each: list[Tensor] = []
    found_each: list[Tensor] = []
    with torch.inference_mode():
        expected, found = attention(shared.sequence(), each), attention.forward_shared(shared, found_each)
        without = attention.forward_shared(shared._replace(own=None))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.stack(found_each), torch.stack(each), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found[0], without[0], atol=1e-5, rtol=1e-5)
    assert (found - without)[1:].abs().amax(dim=(1, 2)).max() > 0.1  # the exchange matters


def test_where_nearly_everything_is_subtracted_all_pairs_are_computed() -> None:
    """Weights so near to 1 that nothing is left of the shared output: the subtraction alone would be wrong."""
    attention = sharpened(module(depth=1), 12.0)
    image = attention.project(unit_rows(200, 6, seed=2), "image")
    prototypes = attention.project(unit_rows(1, 11, 6, seed=3), "visual")
    own = own_tokens(attention, 200, 11)
    shared = SharedTokens(image, prototypes, torch.zeros(200, dtype=torch.int64), own)
    layer = attention.layers[0]
    assert isinstance(layer, Layer)
    with torch.inference_mode():
        inexact = layer._mixed_values(shared).inexact
        expected, found = attention(shared.sequence()), attention.forward_shared(shared)
    assert inexact is not None
    assert 0 < int(inexact.sum()) < 200
    assert not inexact[0]  # nothing is subtracted
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_own_tokens_need_no_product_of_all_pairs_for_every_post() -> None:
    attention = module(depth=1, dim=16).train()  # else all pairs are one kernel, which is not counted

    def flops(posts: int, *, shared: bool) -> int:
        tokens = SharedTokens(torch.randn(posts, 16), torch.randn(1, 200, 16), torch.zeros(posts, dtype=torch.int64))
        index, found = torch.tensor([[3, 150]]).expand(posts, -1), torch.ones(posts, 2, dtype=torch.bool)
        tokens = tokens._replace(own=OwnTokens(torch.randn(posts, 2, 16), index, found))
        with torch.no_grad(), FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
            attention.forward_shared(tokens) if shared else attention(tokens.sequence())
        return int(counted.get_total_flops())

    dense, linear = (flops(64, shared=shared) - flops(32, shared=shared) for shared in (False, True))
    assert linear < 0.3 * dense


@pytest.mark.parametrize("autocast", [False, True])
def test_what_the_image_attends_to_is_read_off_its_query_alone(autocast: bool) -> None:
    """No key of every token is computed, and the weights are those of the whole attention."""
    attention = module(depth=1)
    tokens, layer = sequence(attention), attention.layers[0]
    assert isinstance(layer, Layer)
    expected = manual_layer(layer, tokens)[1][:, :, 0].mean(dim=1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = layer.image_weights(tokens)
    torch.testing.assert_close(found, expected, atol=0.01 if autocast else 1e-6, rtol=0)
