"""The text model: it learns what texts say of the label, sees no scored label, and gives the same bytes again."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import transformers
from scipy.stats import spearmanr

from popularity.core.contracts import FOLDS, MEMBER_PREDICTIONS, POSTS, read_table, write_table
from popularity.core.errors import DataError
from popularity.encoders.text import EmbedTextParams, load_text_encoder
from popularity.features import featurize
from popularity.text_model.model import Labels, NumericFeatures, TextModel, TextModelParams, batches, fit, sentences
from popularity.validation import make_splits, rows_of
from popularity.validation.folds import Fold, load_fold
from stages import text_model
from tests.encoders.tiny_encoders import encoder_sections, save_bert, text_params
from tests.random_posts import random_images, random_posts
from tests.repository import stage_flags
from tests.stack.small_stack import FEATURIZE, SPLIT, tree_bytes

PARAMS = TextModelParams(
    seed=0, schemes=("holdout", "forward"), epochs=3, max_train_posts=0, unfreeze_layers=1, batch_size=16, lr=3e-4,
    lr_head=1e-2, weight_decay=0.01, start_weight=0.0, warmup_fraction=0.1, detrend="family", num_threads=1,
    parallel_folds=1, cache_gib=1.0,
)  # fmt: skip
SCHEMES = ["holdout", "forward"]


@pytest.fixture(scope="module")
def posts() -> pl.DataFrame:
    """A title's words decide on the label of a training post."""
    made = random_posts(3, train=300, test=60, users=80)
    rng = np.random.default_rng(0)
    liked = rng.random(made.height) < 0.5
    label = pl.Series(6 + 3 * liked + rng.normal(0, 0.3, made.height)).round(2)
    title = pl.Series(np.where(liked, "cat of the sea", "dog of the sunset"))  # words of the tiny tower
    return made.with_columns(title=title, label=pl.when(split="train").then(label))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> EmbedTextParams:
    """A tiny tower with random weights: the graph of the tests of pipeline/ fine-tunes MiniLM itself."""
    return text_params(weights=f"path:{save_bert(tmp_path_factory.mktemp('bert'))}", max_tokens=12)


@pytest.fixture(scope="module")
def folder(posts: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stage reads."""
    return write_inputs(posts, tmp_path_factory.mktemp("inputs"))


def write_inputs(posts: pl.DataFrame, folder: Path) -> Path:
    splits = make_splits(posts, SPLIT)[0]
    write_table(posts, folder / "posts.parquet", POSTS)
    write_table(splits, folder / "splits.parquet", FOLDS)
    featurize(posts, random_images(posts.sort("pid"), seed=0), splits, FEATURIZE, folder / "features")
    return folder


def fold_of(folder: Path, scheme: str) -> Fold:
    posts, splits = read_table(folder / "posts.parquet", POSTS), read_table(folder / "splits.parquet", FOLDS)
    key, rows = next(iter(rows_of(splits, [scheme])))
    return load_fold(key, rows, posts, folder / "features")


def run_stage(folder: Path, out: Path, encoder: EmbedTextParams, params: TextModelParams = PARAMS) -> pl.DataFrame:
    """What the stage writes below `out`."""
    out.mkdir(exist_ok=True)
    schemes = {"schemes": [*SCHEMES, "group"]}  # of the stack; the text model is fitted in its own ones
    sections = {"text_model": asdict(params), "stack": schemes, **encoder_sections(text=encoder)}
    (out / "params.yaml").write_text(json.dumps(sections), encoding="utf-8")
    given = {"posts": "posts.parquet", "splits": "splits.parquet", "features": "features"}
    made = {"predictions": "predicted", "models": "models", "state": "state"}
    text_model.main(stage_flags("text_model", out, **{name: folder / file for name, file in given.items()}, **made))
    return read_table(out / "predicted/predictions.parquet", MEMBER_PREDICTIONS)


@pytest.fixture(scope="module")
def ran(folder: Path, encoder: EmbedTextParams, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ran") / "out"
    run_stage(folder, out, encoder)
    return out


def test_it_learns_what_the_text_says(folder: Path, ran: Path, posts: pl.DataFrame, encoder: EmbedTextParams) -> None:
    predicted = read_table(ran / "predicted/predictions.parquet", MEMBER_PREDICTIONS)
    scored = predicted.filter(scheme="forward").join(posts.select("pid", "label"), on="pid", validate="m:1")
    assert spearmanr(scored["label"], scored["prediction"]).statistic > 0.6
    assert np.abs(scored["label"].to_numpy() - scored["prediction"].to_numpy()).mean() < 1.0
    untrained = fit(*_given(folder), encoder, replace(PARAMS, epochs=0))
    fold = fold_of(folder, "forward")
    assert np.ptp(untrained.predict(fold.valid, fold.valid_at)) < np.ptp(scored["prediction"].to_numpy())


def _given(folder: Path) -> tuple[pl.DataFrame, Labels]:
    fold = fold_of(folder, "forward")
    return fold.train, Labels.of(fold)


def test_the_head_starts_at_the_ridge_of_the_untouched_encoder(folder: Path, encoder: EmbedTextParams) -> None:
    """With rates of 0 the layers are those of the encoder, and the words decide all the same."""
    fold = fold_of(folder, "forward")
    still = fit(fold.train, Labels.of(fold), encoder, replace(PARAMS, lr=0.0, lr_head=0.0, epochs=1))
    random = TextModel(encoder, 1, still.numeric, still.trend)
    for name, parameter in random.tower.named_parameters():
        assert torch.equal(parameter, still.tower.get_parameter(name)), name
    predicted = still.predict(fold.valid, fold.valid_at)
    liked = fold.valid["text"].str.contains("cat").to_numpy()
    assert predicted[liked].mean() - predicted[~liked].mean() > 2.5  # of 3


def test_it_is_the_mean_of_start_and_end(folder: Path, encoder: EmbedTextParams) -> None:
    start, half, end = (
        fit(*_given(folder), encoder, replace(PARAMS, start_weight=weight)).state_dict() for weight in (1.0, 0.5, 0.0)
    )
    for name, values in half.items():
        torch.testing.assert_close(values, (start[name] + end[name]) / 2, rtol=0, atol=1e-6)
    assert not torch.equal(start["head.weight"], end["head.weight"])
    untouched = load_text_encoder(encoder).state_dict()
    assert all(torch.equal(start[f"tower.{name}"], values) for name, values in untouched.items())


def test_every_scored_post_of_every_fold_has_a_prediction(folder: Path, ran: Path) -> None:
    predicted = read_table(ran / "predicted/predictions.parquet", MEMBER_PREDICTIONS)
    splits = read_table(folder / "splits.parquet", FOLDS)
    wanted = splits.filter(pl.col("role") == "valid", pl.col("scheme").is_in([*SCHEMES, "refit"]))
    assert predicted.select(MEMBER_PREDICTIONS.key).equals(
        wanted.select(MEMBER_PREDICTIONS.key).sort(MEMBER_PREDICTIONS.key)
    )


def test_labels_of_scored_posts_change_nothing(
    posts: pl.DataFrame, ran: Path, encoder: EmbedTextParams, tmp_path: Path
) -> None:
    predicted = read_table(ran / "predicted/predictions.parquet", MEMBER_PREDICTIONS)
    holdout = predicted.filter(scheme="holdout")["pid"]
    blank = pl.when(pl.col("pid").is_in(holdout.implode())).then(pl.col("label") - 5).otherwise("label")
    other = run_stage(write_inputs(posts.with_columns(label=blank), tmp_path), tmp_path / "out", encoder)
    for scheme in SCHEMES:
        assert other.filter(scheme=scheme).equals(predicted.filter(scheme=scheme))
    assert not other.filter(scheme="refit").equals(predicted.filter(scheme="refit"))


def test_the_same_bytes_again_and_finished_folds_are_not_fitted_again(
    folder: Path, ran: Path, encoder: EmbedTextParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read_table(ran / "predicted/predictions.parquet", MEMBER_PREDICTIONS)
    fitted = 0

    def interrupted(*args: Any) -> TextModel:
        nonlocal fitted
        fitted += 1
        if fitted == 3:
            raise KeyboardInterrupt
        return fit(*args)

    monkeypatch.setattr("popularity.text_model.folds.fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_stage(folder, tmp_path / "killed", encoder)
    assert len(list((tmp_path / "killed/state").rglob("*.parquet"))) == 2
    assert run_stage(folder, tmp_path / "killed", encoder).equals(first)
    assert fitted == 1 + first.select("scheme", "fold").n_unique()
    once, twice = (tree_bytes(out / "models")["model.safetensors"] for out in (ran, tmp_path / "killed"))
    assert once == twice


def test_a_saved_model_predicts_as_it_did(folder: Path, ran: Path, encoder: EmbedTextParams) -> None:
    final = fold_of(folder, "refit")
    predicted = read_table(ran / "predicted/predictions.parquet", MEMBER_PREDICTIONS).filter(scheme="refit")
    model = TextModel.load(ran / "models/model.safetensors", encoder)
    np.testing.assert_allclose(model.predict(final.valid, final.valid_at), predicted["prediction"], rtol=0, atol=1e-5)
    alone = model.predict(final.valid.head(1), final.valid_at[:1])
    np.testing.assert_allclose(alone, predicted["prediction"][:1], rtol=0, atol=1e-5)


def test_in_half_precision_too_a_post_is_predicted_alike_with_any_others(
    folder: Path, encoder: EmbedTextParams
) -> None:
    half = replace(encoder, precision="bf16")
    model = fit(*_given(folder), half, replace(PARAMS, epochs=1))
    fold = fold_of(folder, "forward")
    together = model.predict(fold.valid, fold.valid_at)
    for row in range(5):
        alone = model.predict(fold.valid[row : row + 1], fold.valid_at[row : row + 1])
        np.testing.assert_allclose(alone, together[row : row + 1], rtol=0, atol=1e-5)
    whole = fit(*_given(folder), encoder, replace(PARAMS, epochs=1))
    assert not np.array_equal(whole.predict(fold.valid, fold.valid_at), together)


def test_the_frozen_layers_run_once_for_all_folds(
    folder: Path, encoder: EmbedTextParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first layer reads each labelled post once, and each test post; without room it reads a post in every step."""
    layer = transformers.models.bert.modeling_bert.BertLayer
    forward, read = layer.forward, {"first": 0, "last": 0}

    def counting(own: Any, hidden: Any, *given: Any, **named: Any) -> Any:
        read["first" if own in firsts else "last"] += len(hidden)
        return forward(own, hidden, *given, **named)

    firsts: set[Any] = set()

    def loading(*given: Any) -> Any:
        tower: Any = load_text_encoder(*given)
        firsts.add(tower.tower.encoder.layer[0])
        return tower

    monkeypatch.setattr(layer, "forward", counting)
    for module in ("frozen", "model"):
        monkeypatch.setattr(f"popularity.text_model.{module}.load_text_encoder", loading)
    posts = read_table(folder / "posts.parquet", POSTS)
    run_stage(folder, tmp_path / "stored", encoder)
    stored = dict(read)
    test = posts.filter(split="test").height
    assert stored["first"] == posts.height - test + 1 + test  # 1: the layers' width is asked with one text
    run_stage(folder, tmp_path / "whole", encoder, replace(PARAMS, cache_gib=0.0))
    assert read["first"] - stored["first"] > 3 * stored["first"]


def test_without_epochs_there_is_no_model(folder: Path, encoder: EmbedTextParams, tmp_path: Path) -> None:
    assert run_stage(folder, tmp_path / "out", encoder, replace(PARAMS, epochs=0)).is_empty()
    assert sorted(tree_bytes(tmp_path / "out/models")) == ["manifest.json"]


def test_of_many_posts_it_sees_the_latest(folder: Path, encoder: EmbedTextParams) -> None:
    features, labels = _given(folder)
    posted_at = labels.posted_at
    late = posted_at >= np.sort(posted_at)[-100]
    alone = fit(features.filter(pl.Series(late)), labels.take(np.flatnonzero(late)), encoder, PARAMS)
    capped = fit(features, labels, encoder, replace(PARAMS, max_train_posts=int(late.sum())))
    assert np.array_equal(alone.predict(features, posted_at), capped.predict(features, posted_at))
    more = fit(features, labels, encoder, PARAMS)
    assert not np.array_equal(more.predict(features, posted_at), capped.predict(features, posted_at))


def test_a_rate_that_diverges_is_an_error(folder: Path, encoder: EmbedTextParams) -> None:
    with pytest.raises(DataError, match=r"loss of the text model is not finite[\s\S]*text_model\.lr"):
        fit(*_given(folder), encoder, replace(PARAMS, lr=1e30))


def test_numbers_are_standardised_by_fit_rows_alone(folder: Path) -> None:
    fold = fold_of(folder, "forward")
    numbers = NumericFeatures.fit(fold.train)
    values = numbers.apply(fold.train)
    known = fold.train.select(numbers.names).cast(pl.Float64).to_numpy()
    column = numbers.names.index("title_length")
    logs = np.log1p(known[:, column])
    np.testing.assert_allclose(values[:, column], np.clip((logs - logs.mean()) / logs.std(), -5, 5), atol=1e-5)
    assert not {"uid", "text", "concept"} & set(numbers.names)
    assert not [name for name in numbers.names if "." in name]
    assert np.isfinite(numbers.apply(fold.valid)).all()


def test_sentences_name_classes_title_and_tags() -> None:
    rows = pl.DataFrame(
        {"subcategory": ["Animal/cat", None], "concept": ["Animal/cat/kitten", "x"], "text": ["a b", ""]}
    )
    assert sentences(rows) == ["cat. kitten. a b", ". x. "]


@pytest.mark.parametrize("posts", [1, 15, 16, 300])
def test_an_epoch_sees_every_post_once(posts: int) -> None:
    lengths = np.random.default_rng(0).integers(3, 40, posts)
    seen = list(batches(lengths, replace(PARAMS, epochs=2)))
    assert max(len(rows) for rows in seen) <= PARAMS.batch_size
    assert np.bincount(np.concatenate(seen)).tolist() == [2] * posts
    assert len(seen) == 2 * -(-posts // PARAMS.batch_size)
