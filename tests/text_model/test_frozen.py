"""Outputs of the frozen layers, kept once for all folds: with them the model is the one that reads the texts whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from accelerate import PartialState

from popularity.encoders.text import EmbedTextParams, load_text_encoder, load_tokenizer
from popularity.text_model import frozen
from popularity.text_model.frozen import FrozenStates, LastLayers, Texts, frozen_layers, write_states
from popularity.text_model.model import fit, sentences
from tests.encoders.tiny_encoders import save_bert, save_clip, save_siglip, text_params
from tests.text_model.test_towers import PARAMS, days, labels, posts

TOWERS: dict[str, Callable[[Path], Any]] = {
    "clip": save_clip,
    "siglip": save_siglip,
    **{kind: partial(save_bert, kind=kind) for kind in ("bert", "distilbert", "mpnet", "roberta")},
}


def tower(kind: str, folder: Path) -> EmbedTextParams:
    TOWERS[kind](folder)
    loader = f"{kind}_text" if kind in ("clip", "siglip") else "bert_text"
    return text_params(loader=loader, weights=f"path:{folder}", max_tokens=8 if kind == "siglip" else 12)


def texts_of(features: pl.DataFrame, encoder: EmbedTextParams, needed: set[str] | None = None) -> Texts:
    every = dict(zip(features["pid"], sentences(features), strict=True))
    return Texts.of(every, set(every) if needed is None else needed, encoder)


def states_of(
    features: pl.DataFrame, encoder: EmbedTextParams, folder: Path, max_bytes: float = 2**20, **given: Any
) -> FrozenStates | None:
    texts = texts_of(features, encoder, **given)
    return write_states(texts, encoder, PARAMS.unfreeze_layers, max_bytes, folder, PartialState(cpu=True))


@pytest.mark.parametrize("kind", TOWERS)
def test_the_last_layers_on_stored_outputs_give_the_vectors_of_the_whole_tower(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several files, in batches of other posts than those in which they were stored."""
    encoder, features = tower(kind, tmp_path / "tower"), posts(40, seed=0)
    monkeypatch.setattr(frozen, "SHARD_ROWS", 16)
    monkeypatch.setattr(frozen, "BATCH_SIZE", 7)
    states = states_of(features, encoder, tmp_path / "states")
    assert states is not None
    assert len(list((tmp_path / "states").iterdir())) == 3
    whole = load_text_encoder(encoder)
    assert frozen_layers(whole, 1) == 1
    last = LastLayers(whole, 1)
    assert {id(own) for own in last.parameters()} <= {id(own) for own in whole.parameters()}
    texts = load_tokenizer(encoder)(sentences(features))
    rows = states.rows(features["pid"].to_list())
    assert rows is not None
    with torch.inference_mode():
        expected = whole(texts.input_ids, texts.attention_mask)[0]
        found = last(states.padded(rows, texts.input_ids.shape[1]), texts.input_ids, texts.attention_mask)[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)  # float16
    assert float((expected[1:] - expected[:-1]).abs().max()) > 0.05


@pytest.mark.parametrize("kind", ["bert", "clip", "siglip"])
def test_a_fit_on_stored_outputs_is_that_on_the_texts(kind: str, tmp_path: Path) -> None:
    encoder, train, valid = tower(kind, tmp_path / "tower"), posts(64, seed=0), posts(30, seed=1)
    valid = valid.with_columns(pid=pl.format("v{}", "pid"))
    both = pl.concat([train, valid])
    states = states_of(both, encoder, tmp_path / "states")
    assert states is not None
    label = np.random.default_rng(0).normal(size=64)
    params = replace(PARAMS, epochs=2, lr=1e-3)
    fitted = [fit(train, labels(label), encoder, params, states=own) for own in (None, states)]
    expected = fitted[0].predict(valid, days(30))
    np.testing.assert_allclose(fitted[1].predict(valid, days(30)), expected, rtol=0, atol=1e-2)
    assert np.ptp(expected) > 0.05
    # The frozen layers are those of the untouched tower in both, and the trained ones are not.
    found = fitted[1].predict(valid, days(30), states=states)
    np.testing.assert_allclose(found, fitted[1].predict(valid, days(30)), rtol=0, atol=1e-3)
    for row in range(5):
        alone = fitted[1].predict(valid[row : row + 1], days(30)[row : row + 1], states=states)
        np.testing.assert_allclose(alone, found[row : row + 1], rtol=0, atol=1e-5)
    untouched = dict(load_text_encoder(encoder).named_parameters())
    moved = {name for name, own in fitted[1].tower.named_parameters() if not torch.equal(own, untouched[name])}
    trained = {name for name, own in fitted[1].tower.named_parameters() if own.requires_grad}
    assert moved
    assert moved <= trained
    assert not [name for name in fitted[1].state_dict() if "last_layers" in name]


def test_posts_are_kept_as_far_as_there_is_room(tmp_path: Path) -> None:
    encoder, features = tower("bert", tmp_path / "tower"), posts(40, seed=0)
    needed = set(features["pid"][:10])
    texts = texts_of(features, encoder, needed)
    width = 32 * 2  # bytes of a token
    for max_bytes, kept in (
        (texts.lengths.sum() * width, 40),
        (texts.lengths.sum() * width - 1, 10),
        (texts.lengths[:10].sum() * width, 10),
        (texts.lengths[:10].sum() * width - 1, None),
    ):
        states = states_of(features, encoder, tmp_path / f"states {max_bytes}", max_bytes, needed=needed)
        assert (states and len(states.row_of)) == kept
    states = states_of(features, encoder, tmp_path / "some", texts.lengths.sum() * width - 1, needed=needed)
    assert states is not None
    assert states.rows(features["pid"][:10].to_list()) is not None
    assert states.rows(features["pid"][:11].to_list()) is None


def test_without_frozen_layers_nothing_is_kept(tmp_path: Path) -> None:
    encoder, features = tower("bert", tmp_path / "tower"), posts(10, seed=0)
    texts = texts_of(features, encoder)
    assert write_states(texts, encoder, 2, 2**20, tmp_path / "states", PartialState(cpu=True)) is None
    assert not (tmp_path / "states").exists()


def test_files_that_are_there_are_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, features = tower("bert", tmp_path / "tower"), posts(40, seed=0)
    monkeypatch.setattr(frozen, "SHARD_ROWS", 16)
    folder = tmp_path / "states"
    states_of(features, encoder, folder)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "frozen-000001.npy").unlink()
    encoded: list[int] = []
    encode = frozen._encode

    def counted(*given: Any) -> Any:
        encoded.append(len(given[2]))
        return encode(*given)

    monkeypatch.setattr(frozen, "_encode", counted)
    states_of(features, encoder, folder)
    assert encoded == [16]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
