"""The text model over every kind of tower: a post is predicted alike in any company, and the head learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn
from torch.nn import functional

from popularity.core.arrays import Float64Array, Int64Array
from popularity.encoders.text import EmbedTextParams, load_text_encoder, load_tokenizer
from popularity.text_model.model import Labels, TextModelParams, fit, sentences
from tests.encoders.tiny_encoders import pretrained, save_bert, save_clip, save_siglip, text_params

PARAMS = TextModelParams(
    seed=0, schemes=("holdout", "forward"), epochs=1, max_train_posts=0, unfreeze_layers=1, batch_size=16, lr=1e-4,
    lr_head=1e-3, weight_decay=0.01, start_weight=0.0, warmup_fraction=0.1, detrend="linear", num_threads=1,
    parallel_folds=1, cache_gib=1.0,
)  # fmt: skip
# A first step of AdamW moves a prediction by the rate, the width and the length of the vector: here as far as with the
# vectors of CLIP ViT-B/32, which are 512 wide and about 10 long.
LENGTHENING = 20.0
WORDS = ["cat", "dog", "sunset", "sea", "of", "the"]


def saved(folder: Path, save: Callable[[Path], Path], class_name: str, last: str) -> Path:
    """The folder of a tiny tower with long pooled vectors, as those of the trained ones are."""
    save(folder)
    model = pretrained(class_name, folder)
    projection: nn.Linear = model.get_submodule(last)
    with torch.no_grad():
        projection.weight *= LENGTHENING
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["bert", "clip", "siglip"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EmbedTextParams:
    folder, kind = tmp_path_factory.mktemp("towers") / request.param, request.param
    if kind == "bert":
        save_bert(folder)
    elif kind == "clip":
        saved(folder, save_clip, "CLIPModel", "text_projection")
    else:
        saved(folder, save_siglip, "SiglipModel", "text_model.head")
    return text_params(
        loader=f"{kind}_text", model=f"tiny {kind}", weights=f"path:{folder}", max_tokens=8 if kind == "siglip" else 12
    )


def posts(count: int, seed: int) -> pl.DataFrame:
    """Posts with texts of 0 to 5 words, which every tower reads whole."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(0, 6))) for _ in range(count)]
    frame = pl.DataFrame({"pid": [str(index) for index in range(count)], "text": texts})
    return frame.with_columns(
        subcategory=pl.lit(None, pl.String), concept=pl.lit(None, pl.String), hour=pl.Series(rng.integers(0, 24, count))
    )


def days(count: int) -> Int64Array:
    return np.arange(count) * 86_400_000_000


def labels(label: Float64Array) -> Labels:
    """One a day, and read on the day after the last."""
    return Labels(label, days(len(label)), len(label))


def vectors(encoder: EmbedTextParams, features: pl.DataFrame) -> Float64Array:
    """(n, d) normalised pooled vectors of the untrained tower."""
    batch = load_tokenizer(encoder)(sentences(features))
    with torch.inference_mode():
        pooled = load_text_encoder(encoder)(batch.input_ids, batch.attention_mask)[0]
    return np.asarray(functional.normalize(pooled, dim=1).double())


def test_a_post_is_predicted_alike_alone_and_among_others(encoder: EmbedTextParams) -> None:
    train, valid = posts(64, seed=0), posts(30, seed=1)
    label = np.random.default_rng(0).normal(size=64)
    model = fit(train, labels(label), encoder, PARAMS)
    together = model.predict(valid, days(30))
    assert np.ptp(together) > 0.05  # else all posts would be alike
    for row in range(30):
        alone = model.predict(valid[row : row + 1], days(30)[row : row + 1])
        np.testing.assert_allclose(alone, together[row : row + 1], rtol=0, atol=1e-5)


def test_the_vector_is_the_one_of_the_encoder(encoder: EmbedTextParams) -> None:
    """At the tower's own length and position; a batch of short texts too."""
    train = posts(64, seed=0)
    model = fit(train, labels(np.random.default_rng(0).normal(size=64)), encoder, replace(PARAMS, epochs=0))
    seen: list[torch.Tensor] = []
    model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    short = train.filter(pl.col("text").str.len_chars() < 4)
    model.predict(short, days(short.height))
    lengths = load_tokenizer(encoder)(sentences(short)).attention_mask.sum(dim=1)
    width, by_length = model.tower.out_features, np.argsort(lengths, kind="stable")
    found = np.asarray(seen[0][:, :width].double()) / width**0.5
    np.testing.assert_allclose(found, vectors(encoder, short)[by_length], rtol=0, atol=1e-5)


def test_a_label_that_is_linear_in_the_vector_is_learned(encoder: EmbedTextParams) -> None:
    train, valid = posts(400, seed=0), posts(100, seed=1)
    direction = np.random.default_rng(0).normal(size=vectors(encoder, train).shape[1])
    label, wanted = (vectors(encoder, features) @ direction for features in (train, valid))
    wanted = (wanted - label.mean()) / label.std()
    label = (label - label.mean()) / label.std()
    model = fit(train, labels(label), encoder, replace(PARAMS, epochs=8, lr_head=1e-2))
    error = np.abs(model.predict(valid, days(100)) - wanted).mean()
    assert error < 0.4 * np.abs(wanted - np.median(label)).mean()


def counted(monkeypatch: pytest.MonkeyPatch, kind: type[Any]) -> list[None]:
    """One entry for every call of the method `step` of the class."""
    calls: list[None] = []
    step = kind.step

    def counting(own: Any, *given: Any, **named: Any) -> Any:
        calls.append(None)
        return step(own, *given, **named)

    monkeypatch.setattr(kind, "step", counting)
    return calls


def test_a_step_that_overflows_in_fp16_is_skipped_and_moves_no_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scale of the loss begins at 65,536 and is halved by each step whose gradients overflow."""
    half = text_params(weights=f"path:{save_bert(tmp_path)}", max_tokens=12, precision="fp16")
    moved, taken = counted(monkeypatch, torch.optim.lr_scheduler.LambdaLR), counted(monkeypatch, torch.optim.AdamW)
    train = posts(96, seed=0)
    label = np.random.default_rng(0).normal(size=96)
    model = fit(train, labels(label), half, replace(PARAMS, epochs=2))
    steps = 12
    assert len(moved) - 1 == len(taken)  # the schedule takes one step when it is made
    assert 0 < len(taken) <= steps
    assert np.isfinite(model.predict(train, days(96))).all()
    taken.clear()
    moved.clear()
    unscale = torch.amp.GradScaler.unscale_

    def overflow(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> None:
        """Every gradient is infinite before it is looked at."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad.fill_(float("inf"))
        unscale(scaler, optimizer)

    monkeypatch.setattr(torch.amp.GradScaler, "unscale_", overflow)
    fit(train, labels(label), half, replace(PARAMS, epochs=2))
    assert not taken
    assert len(moved) == 1
