"""Predictions, importance, resume, repeatability."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from popularity.core.contracts import PREDICTIONS, check_table, write_table
from popularity.core.errors import ConfigError
from popularity.stack import RowSelectionParams, StackModel
from popularity.stack.effort import Effort
from popularity.stack.fit import encode_fold, fit_fold
from popularity.stack.row_selection import kept_rows
from popularity.validation import rows_of
from popularity.validation.folds import load_fold
from popularity.validation.inner_cv import MICROSECONDS_A_DAY
from tests.stack.small_stack import (
    ALL_PARTS,
    STACK,
    WITH_SECOND,
    Run,
    needs_catboost,
    posts_with_signal,
    run_all,
    tree_bytes,
)

MODELS = ["constant", "metadata", "stack", "user_mean"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    posts, blocks = posts_with_signal(1, train=300, test=80, users=100)
    return run_all(posts, blocks, tmp_path_factory.mktemp("stack"), params=replace(STACK, n_seeds=2))


def repeat(made: Run, folder: Path) -> Run:
    return run_all(made.posts, made.blocks, folder, params=replace(STACK, n_seeds=2))


def test_every_scored_row_is_predicted_once_by_every_model_and_seed(made: Run) -> None:
    check_table(made.predictions, PREDICTIONS)
    scored = made.splits.filter((pl.col("role") == "valid") & (pl.col("scheme") != "random"))
    expected = scored.select("scheme", "fold", "pid").sort(pl.all())
    assert sorted(made.predictions["model"].unique()) == MODELS
    for (model, seed), rows in made.predictions.group_by("model", "seed"):
        assert seed in (STACK.seed, STACK.seed + 1)
        assert rows.select("scheme", "fold", "pid").sort(pl.all()).equals(expected), model
    seeds = {model: part["seed"].n_unique() for (model,), part in made.predictions.group_by("model")}
    assert seeds == {"constant": 1, "metadata": 2, "stack": 2, "user_mean": 1}


def test_a_member_has_a_scale_that_belongs_to_the_post(made: Run) -> None:
    """One a post: that of the mean over the seeds."""
    assert made.predictions.filter(pl.col("model") != "stack")["error_scale"].null_count() > 0
    assert made.predictions.filter(pl.col("error_scale").is_not_null())["model"].unique().to_list() == ["stack"]
    rows = made.predictions.filter(pl.col("model") == "stack")
    assert (rows["error_scale"] > 0).all()
    each = rows.group_by("scheme", "pid").agg(pl.col("error_scale").n_unique())
    assert each["error_scale"].unique().to_list() == [1]
    assert rows["error_scale"].n_unique() > 20


@needs_catboost
def test_a_second_learner_leaves_the_first_as_it_is(made: Run, tmp_path: Path) -> None:
    params = replace(STACK, n_seeds=2, learners=("lightgbm", "catboost"))
    run = run_all(made.posts, made.blocks, tmp_path, params=params, fitted=("holdout",))
    rows = made.predictions.filter(pl.col("scheme").is_in(["holdout", "refit"]))
    simple = pl.col("model").is_in(["user_mean", "constant"])
    assert run.predictions.filter(simple).equals(rows.filter(simple))
    for name in ("stack", "metadata"):
        alone, both = (StackModel.load(one.models / name) for one in (made, run))
        first, second = (model.models["lightgbm"] for model in (alone, both))
        assert [one.model_to_string() for one in first] == [one.model_to_string() for one in second]
        assert {learner: len(models) for learner, models in alone.models.items()} == {"lightgbm": 2}
        assert {learner: len(models) for learner, models in both.models.items()} == {"lightgbm": 2, "catboost": 2}
        assert both.weights.weights.sum() == pytest.approx(1.0)
        assert not list((made.models / name).glob("catboost*"))
    averaged, plain = (one.filter(scheme="refit", model="stack") for one in (run.predictions, rows))
    assert not averaged["prediction"].equals(plain["prediction"])
    again = run_all(made.posts, made.blocks, tmp_path / "again", params=params, fitted=("holdout",))
    assert tree_bytes(again.models) == tree_bytes(run.models)
    assert again.finished("holdout") == run.finished("holdout")


def test_a_second_learner_that_is_not_there_stops_before_the_first_fit(
    made: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "catboost", None)
    with pytest.raises(ConfigError, match=r"stack\.learners: catboost"):
        run_all(made.posts, made.blocks, tmp_path, params=WITH_SECOND)
    assert not list((tmp_path / "state").iterdir())


def test_normal_scores_as_the_target(made: Run, tmp_path: Path) -> None:
    """Predictions are labels all the same, inside the range of those of the train rows, and follow the signal."""
    run = run_all(
        made.posts, made.blocks, tmp_path, params=replace(STACK, target_transform="rank_gauss"), fitted=("holdout",)
    )
    rows = run.predictions.filter(scheme="holdout", model="stack")
    assert not rows["prediction"].equals(
        made.predictions.filter(scheme="holdout", model="stack", seed=STACK.seed)["prediction"]
    )
    fitted = made.splits.filter(scheme="holdout", role="train").join(made.posts, on="pid")["label"]
    assert rows["prediction"].is_between(fitted.min(), fitted.max()).all()
    truth = rows.join(made.posts, on="pid").with_columns(median=pl.lit(fitted.median()))
    error, spread = ((truth["label"] - truth[name]).abs().to_numpy().mean() for name in ("prediction", "median"))
    assert error < spread


def test_simple_models_against_a_slow_reference(made: Run) -> None:
    label = dict(made.posts.select("pid", "label").iter_rows())
    uid = dict(made.posts.select("pid", "uid").iter_rows())
    for (scheme, fold), rows in made.splits.filter(pl.col("scheme") != "random").group_by("scheme", "fold"):
        fit = rows.filter(pl.col("role") == "train")["pid"].to_list()
        mean = sum(label[pid] for pid in fit) / len(fit)
        found = made.predictions.filter((pl.col("scheme") == scheme) & (pl.col("fold") == fold))
        middle = float(np.median([label[pid] for pid in fit]))
        assert found.filter(pl.col("model") == "constant")["prediction"].unique().to_list() == [middle]
        for pid, value in found.filter(pl.col("model") == "user_mean").select("pid", "prediction").iter_rows():
            mine = [label[other] for other in fit if uid[other] == uid[pid]]
            assert value == pytest.approx((sum(mine) + mean) / (len(mine) + 1))


def test_the_stack_finds_the_signal(made: Run) -> None:
    """The labels follow the image vectors in part, which metadata cannot know."""
    rows = made.predictions.filter((pl.col("scheme") == "group") & (pl.col("seed") == STACK.seed))
    truth = rows.join(made.posts.select("pid", "label"), on="pid")
    error = {
        model: float(np.abs((part["prediction"] - part["label"]).to_numpy()).mean())
        for (model,), part in truth.group_by("model")
    }
    assert error["stack"] < error["metadata"] < error["constant"]


def test_importance(made: Run) -> None:
    importance = made.importance
    assert importance.columns == ["model", "block", "feature", "gain"]
    assert importance["gain"].is_sorted(descending=True)
    assert importance["feature"].is_unique().all()
    assert {"image_oof_ridge", "text_oof_ridge", "image_norm", "category", "uid_target_level"} <= set(
        importance["feature"]
    )
    assert {"prototype_oof_ridge", "logits_component_000", "losses.global"} <= set(importance["feature"])
    assert set(importance["block"]) == {"metadata", "image", "text", "prototype"}
    assert importance.filter(pl.col("feature") == "image_oof_ridge")["block"].item() == "image"
    boosters = StackModel.load(made.models / "stack").models["lightgbm"]
    total = sum(booster.feature_importance("gain").sum() for booster in boosters)
    assert importance["gain"].sum() == pytest.approx(total)


def test_same_seed_same_bytes(made: Run, tmp_path: Path) -> None:
    again = repeat(made, tmp_path / "again")
    assert tree_bytes(again.folder) == tree_bytes(made.folder)
    for run, name in ((made, "first"), (again, "second")):
        write_table(run.predictions, tmp_path / name, PREDICTIONS)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert again.importance.equals(made.importance)


def test_another_seed_gives_other_trees(made: Run, tmp_path: Path) -> None:
    params = replace(STACK, n_seeds=2, seed=99)
    other = run_all(made.posts, made.blocks, tmp_path, params=params, fitted=("holdout",))
    assert other.finished("holdout") != made.finished("holdout")


def test_finished_folds_are_not_fitted_again(made: Run, tmp_path: Path) -> None:
    """Files of finished folds are taken as they are (here altered, so that it shows); a missing one is made anew."""
    state = tmp_path / "state"
    state.mkdir()
    for name, content in made.finished("holdout", "forward", "group").items():
        (state / name).write_bytes(content)
    for name in ("forward-0.parquet", "forward-1.parquet"):
        write_table(pl.read_parquet(state / name).with_columns(prediction=pl.lit(-7.0)), state / name, PREDICTIONS)
    (state / "group-1.parquet").unlink()
    resumed = repeat(made, tmp_path)
    assert resumed.predictions.filter(pl.col("scheme") == "forward")["prediction"].unique().to_list() == [-7.0]
    others = pl.col("scheme") != "forward"
    assert resumed.predictions.filter(others).equals(made.predictions.filter(others))
    assert resumed.finished("holdout", "group") == made.finished("holdout", "group")
    assert tree_bytes(resumed.models) == tree_bytes(made.models)


def test_without_a_test_part_models_are_saved_and_final_predicts_nothing(tmp_path: Path) -> None:
    posts, blocks = posts_with_signal(2, train=150, test=10, users=50)
    run = run_all(posts.filter(pl.col("split") == "train"), blocks, tmp_path, fitted=("holdout",))
    assert run.predictions["scheme"].unique().to_list() == ["holdout"]
    assert sorted(run.predictions["model"].unique()) == MODELS
    for name in ("stack", "metadata"):
        assert len(StackModel.load(run.models / name).models["lightgbm"]) == 1
    assert run.importance["gain"].sum() > 0


def test_schemes_say_what_is_fitted(tmp_path: Path) -> None:
    posts, blocks = posts_with_signal(2, train=150, test=40, users=50)
    run = run_all(posts, blocks, tmp_path, fitted=("random",))
    assert run.predictions["scheme"].unique().sort().to_list() == ["random", "refit"]


@pytest.mark.parametrize("by", ["low_loss", "random"])
def test_row_selection_drops_train_rows_of_the_stack_and_predicts_every_valid_row(
    made: Run, by: Literal["low_loss", "random"], tmp_path: Path
) -> None:
    """The learners get the kept rows alone, columns are fitted on all, and the baselines stay as they were."""
    params = replace(STACK, n_seeds=2, row_selection=RowSelectionParams(fraction=0.6, order=by))
    run = run_all(made.posts, made.blocks, tmp_path, params=params, fitted=("group",))
    rows = made.predictions.filter(pl.col("scheme").is_in(["group", "refit"]))
    assert run.predictions.drop("prediction", "error_scale").equals(rows.drop("prediction", "error_scale"))
    baselines = pl.col("model") != "stack"
    assert run.predictions.filter(baselines).equals(rows.filter(baselines))
    assert not run.predictions.filter(~baselines).equals(rows.filter(~baselines))


def test_selected_rows_are_fitted_as_if_the_others_did_not_exist(made: Run, tmp_path: Path) -> None:
    """Labels, dates, weights and inner splits are those of the selected rows: the same model as from them alone."""
    params = replace(ALL_PARTS, row_selection=RowSelectionParams(fraction=0.6, order="low_loss"))
    (key, split) = next(iter(rows_of(made.splits, ["forward"])))
    encoded = encode_fold(load_fold(key, split, made.posts, made.features), made.blocks, params)
    fit_fold(encoded, params, Effort(1, 0, 1.0)).save(tmp_path / "selected")

    kept = kept_rows(list(encoded.train.pids), made.blocks.losses, params.row_selection, params.seed)
    assert 0.55 < kept.mean() < 0.7
    rows = np.flatnonzero(kept)
    alone = encoded.fold.take(rows)
    every_row = replace(params, row_selection=RowSelectionParams(fraction=1.0, order="low_loss"))
    cut = replace(encoded, fold=alone, train=encoded.train.take(rows))
    fit_fold(cut, every_row, Effort(1, 0, 1.0)).save(tmp_path / "alone")
    assert tree_bytes(tmp_path / "selected") == tree_bytes(tmp_path / "alone")


def test_rows_that_are_left_out_do_not_shift_the_others(made: Run) -> None:
    """Easy posts have labels higher by 2: the trend is that of the kept rows, and predictions are not biased."""
    params = replace(ALL_PARTS, row_selection=RowSelectionParams(fraction=0.5, order="low_loss"))
    (key, split) = next(iter(rows_of(made.splits, ["forward"])))
    fold = load_fold(key, split, made.posts, made.features)
    easy = kept_rows(fold.train["pid"].to_list(), made.blocks.losses, params.row_selection, params.seed)
    fold = replace(fold, label=fold.label + 2.0 * easy)
    model = fit_fold(encode_fold(fold, made.blocks, params), params, Effort.full(params))
    assert model.trend.line.at(fold.posted_at[easy]).mean() == pytest.approx(fold.label[easy].mean(), abs=0.1)


def test_recency_draws_predictions_to_the_present(tmp_path: Path) -> None:
    """The level falls by 4 half way through the train rows: with a short half-life final predicts the later level."""
    posts, blocks = posts_with_signal(11)
    middle = posts.filter(pl.col("split") == "train")["posted_at"].median()
    fall = pl.when(pl.col("posted_at") < middle).then(0.0).otherwise(-4.0)
    posts = posts.with_columns(label=pl.col("label") + fall)
    means = []
    for half_life in (0.0, 5.0):
        params = replace(STACK, sample_weight_half_life_days=half_life)
        run = run_all(posts, blocks, tmp_path / str(half_life), params=params, fitted=())
        means.append(float(run.predictions.filter(scheme="refit", model="metadata")["prediction"].to_numpy().mean()))
    assert means[1] < means[0] - 0.3


# Without the ridge on characters: these texts are noise, and a column of noise moves short searches for rounds about.
LONG = replace(
    STACK,
    num_boost_round=60,
    early_stopping_rounds=20,
    columns=replace(STACK.columns, oof_ridge=("image", "text", "prototype")),
)


@pytest.fixture(scope="module")
def trending(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Labels that fall by six over the span of the posts, and what the stack makes of them without a level."""
    posts, blocks = posts_with_signal(3, train=500, test=60, users=120)
    age = (pl.col("posted_at") - pl.col("posted_at").min()).dt.total_seconds()
    posts = posts.with_columns(label=(pl.col("label") - 6 * age / age.max()).round(2))
    return run_all(posts, blocks, tmp_path_factory.mktemp("trending"), params=LONG, fitted=("holdout", "group"))


def errors(run: Run, scheme: str) -> npt.NDArray[np.float64]:
    """Prediction - label of the stack."""
    rows = run.predictions.filter(scheme=scheme, model="stack").join(run.posts, on="pid", how="left")
    return (rows["prediction"] - rows["label"]).to_numpy()


def test_a_level_that_falls_is_forecast(trending: Run, tmp_path: Path) -> None:
    params = replace(LONG, detrend="linear", learners=("lightgbm", "linear"))
    run = run_all(trending.posts, trending.blocks, tmp_path, params=params, fitted=("holdout", "group"))
    high, right = errors(trending, "holdout"), errors(run, "holdout")
    assert high.mean() > 0.5
    assert abs(right.mean()) < 0.7 * high.mean()
    assert np.abs(right).mean() < np.abs(high).mean() - 0.1
    # Where there is nothing to forecast, the level does no harm.
    assert np.abs(errors(run, "group")).mean() < np.abs(errors(trending, "group")).mean() + 0.05
    found = StackModel.load(run.models / "stack").trend
    assert found.kind == "linear"
    assert found.line.slope < 0
    assert found.shift.spread is not None


@pytest.fixture(scope="module")
def accumulating(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Counts that grow until the date of the last post, and what the family makes of them."""
    posts, blocks = posts_with_signal(3, train=500, test=60, users=120)
    days = (pl.col("posted_at").max() - pl.col("posted_at")).dt.total_seconds() / 86_400
    posts = posts.with_columns(label=(pl.col("label") + (days + 2).log(2)).round(2))
    params = replace(LONG, detrend="family")
    return run_all(posts, blocks, tmp_path_factory.mktemp("accumulating"), params=params, fitted=("holdout",))


def test_the_family_knows_the_date_of_the_last_post(accumulating: Run) -> None:
    found = StackModel.load(accumulating.models / "stack").trend
    assert found.family is not None
    last = accumulating.posts["posted_at"].max()
    assert isinstance(last, datetime)
    assert found.family.collected_at == pytest.approx(last.timestamp() / 86_400)
    # The train rows of the split know the same day, though the posts between have no label there.
    (key, split) = next(iter(rows_of(accumulating.splits, ["holdout"])))
    fold = load_fold(key, split, accumulating.posts, accumulating.features)
    assert fold.collected_at == pytest.approx(found.family.collected_at)


def test_a_training_post_entered_as_a_draft_for_tomorrow(accumulating: Run) -> None:
    """One of median exposure gets its own prediction again, one that is read after a day gets less."""
    (key, split) = next(iter(rows_of(accumulating.splits, ["refit"])))
    fold = load_fold(key, split, accumulating.posts, accumulating.features)
    model = StackModel.load(accumulating.models / "stack")
    family = model.trend.family
    assert family is not None
    exposures = family.collected_at - fold.posted_at / MICROSECONDS_A_DAY
    row = int(np.argmin(np.abs(exposures - family.median_exposure)))
    one, tomorrow = fold.train[row : row + 1], np.array([int((family.collected_at + 1) * MICROSECONDS_A_DAY)])
    matrix = encode_fold(fold, accumulating.blocks, replace(LONG, detrend="family")).train.take(np.array([row]))
    assert list(matrix.pids) == one["pid"].to_list()
    own = model.predict_each(matrix, fold.posted_at[row : row + 1]).mean()
    draft = model.predict_each(matrix, tomorrow, np.array([family.median_exposure])).mean()
    soon = model.predict_each(matrix, tomorrow, np.array([1.0])).mean()
    assert abs(own - draft) < 0.3
    assert soon < draft - 0.5


def test_the_linear_learner_alone(trending: Run, tmp_path: Path) -> None:
    """Importance is then the mean size of contributions."""
    params = replace(LONG, learners=("linear",), detrend="linear")
    run = run_all(trending.posts, trending.blocks, tmp_path, params=params, fitted=("holdout",))
    assert np.abs(errors(run, "holdout")).mean() < np.abs(errors(trending, "holdout")).mean()
    assert list(StackModel.load(run.models / "stack").models) == ["linear"]
    assert run.importance["gain"].is_sorted(descending=True)
    assert run.importance["gain"][0] > 0
