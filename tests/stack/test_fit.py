"""Rounds, predictions, importance, resume, repeatability."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import lightgbm as lgb
import numpy as np
import polars as pl
import pytest

from popularity.schema import PREDICTIONS, check_table, write_table
from popularity.splits import rows_of
from popularity.stack import KeepParams, StackModel, StackParams
from popularity.stack.fit import (
    Fold,
    _dataset,
    _fit_trees,
    _keep,
    _learn_rounds,
    _lightgbm,
    load_fold,
    recency_weights,
)
from popularity.stack.matrix import Matrix
from tests.stack.small_stack import STACK, Run, posts_with_signal, run_all, tree_bytes

MODELS = ["constant", "metadata", "stack", "user_mean"]


def rounds_problem(n: int, seed: int = 0) -> tuple[Matrix, Fold]:
    """A matrix whose rows are in no relation to time, and labels that drift with it."""
    rng = np.random.default_rng(seed)
    pids = [f"{row:04d}" for row in range(n)]
    values = rng.normal(size=(n, 4)).astype(np.float32)
    posted_at = rng.permutation(n).astype(np.int64)
    label = values[:, 0] + 2 * values[:, 1] * posted_at / n + rng.normal(0, 0.5, n)
    names = ("a", "b", "c", "d")
    frame = pl.DataFrame({"pid": pids})
    fold = Fold("report", 0, 0, frame, frame.head(0), label, posted_at)
    return Matrix(values, pids, names, ("metadata",) * 4, ()), fold


def slow_rounds(matrix: Matrix, fold: Fold, params: StackParams) -> int:
    """One booster a cut, fitted on the rows before the slice; the round with the least mean error."""
    order = np.argsort(fold.posted_at)
    length = round(len(order) * params.inner_share)
    errors = []
    for cut in range(1, params.inner_cuts + 1):
        start = len(order) - length * cut
        whole = _dataset(matrix, fold, params)
        inner, scored = (
            whole.subset(sorted(int(row) for row in rows)) for rows in (order[:start], order[start : start + length])
        )
        found: dict[str, dict[str, list[float]]] = {}
        lgb.train(
            _lightgbm(params, params.seed), inner, params.max_rounds, [scored], callbacks=[lgb.record_evaluation(found)]
        )
        errors.append(found["valid_0"]["l1"])
    return int(np.argmin(np.mean(errors, axis=0))) + 1


@pytest.mark.parametrize("cuts", [1, 3])
def test_rounds_are_learned_on_the_last_slices_of_time(cuts: int) -> None:
    params = replace(STACK, max_rounds=60, patience=60, inner_cuts=cuts)
    matrix, fold = rounds_problem(200)
    rounds = _learn_rounds(matrix, fold, params)
    assert rounds == slow_rounds(matrix, fold, params)
    assert 1 < rounds < params.max_rounds
    assert rounds == _learn_rounds(matrix, fold, params)


def test_rounds_need_no_gain_longer_than_the_patience() -> None:
    matrix, fold = rounds_problem(200)
    noise = replace(fold, label=np.random.default_rng(1).normal(size=200))
    patient, hasty = (
        _learn_rounds(matrix, noise, replace(STACK, max_rounds=200, patience=patience)) for patience in (200, 1)
    )
    assert hasty <= patient < 200


@pytest.mark.parametrize("n", [1, 5, 10])
def test_few_rows_give_some_number_of_rounds(n: int) -> None:
    matrix, fold = rounds_problem(n)
    assert 1 <= _learn_rounds(matrix, fold, STACK) <= STACK.max_rounds


def test_without_room_for_a_cut_all_rounds_are_taken() -> None:
    matrix, fold = rounds_problem(20)
    assert _learn_rounds(matrix, fold, replace(STACK, inner_share=0.9)) == STACK.max_rounds


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    posts, blocks = posts_with_signal(1, train=300, test=80, users=100)
    return run_all(posts, blocks, tmp_path_factory.mktemp("stack"), params=replace(STACK, seeds=2))


def repeat(made: Run, folder: Path) -> Run:
    return run_all(made.posts, made.blocks, folder, params=replace(STACK, seeds=2))


def test_every_scored_row_is_predicted_once_by_every_model_and_seed(made: Run) -> None:
    check_table(made.predictions, PREDICTIONS)
    scored = made.splits.filter((pl.col("role") == "score") & (pl.col("scheme") != "random"))
    expected = scored.select("scheme", "repeat", "fold", "pid").sort(pl.all())
    assert sorted(made.predictions["model"].unique()) == MODELS
    for (model, seed), rows in made.predictions.group_by("model", "seed"):
        assert seed in (STACK.seed, STACK.seed + 1)
        assert rows.select("scheme", "repeat", "fold", "pid").sort(pl.all()).equals(expected), model
    seeds = {model: part["seed"].n_unique() for (model,), part in made.predictions.group_by("model")}
    assert seeds == {"constant": 1, "metadata": 2, "stack": 2, "user_mean": 1}


def test_simple_models_against_a_slow_reference(made: Run) -> None:
    label = dict(made.posts.select("pid", "label").iter_rows())
    uid = dict(made.posts.select("pid", "uid").iter_rows())
    for (scheme, fold), rows in made.splits.filter(pl.col("scheme") != "random").group_by("scheme", "fold"):
        fit = rows.filter(pl.col("role") == "fit")["pid"].to_list()
        mean = sum(label[pid] for pid in fit) / len(fit)
        found = made.predictions.filter((pl.col("scheme") == scheme) & (pl.col("fold") == fold))
        middle = float(np.median([label[pid] for pid in fit]))
        assert found.filter(pl.col("model") == "constant")["prediction"].unique().to_list() == [middle]
        for pid, value in found.filter(pl.col("model") == "user_mean").select("pid", "prediction").iter_rows():
            mine = [label[other] for other in fit if uid[other] == uid[pid]]
            assert value == pytest.approx((sum(mine) + mean) / (len(mine) + 1))


def test_the_stack_finds_the_signal(made: Run) -> None:
    """The labels follow the picture vectors in part, which metadata cannot know."""
    rows = made.predictions.filter((pl.col("scheme") == "user") & (pl.col("seed") == STACK.seed))
    truth = rows.join(made.posts.select("pid", "label"), on="pid")
    error = {
        model: float(np.abs((part["prediction"] - part["label"]).to_numpy()).mean())
        for (model,), part in truth.group_by("model")
    }
    assert error["stack"] < error["metadata"] < error["constant"]


def test_importance(made: Run) -> None:
    importance = made.importance
    assert importance.columns == ["block", "feature", "gain"]
    assert importance["gain"].is_sorted(descending=True)
    assert importance["feature"].is_unique().all()
    assert {"image_head", "text_head", "image_norm", "category", "uid_history_level"} <= set(importance["feature"])
    assert {"prototype_head", "logits_component_000", "losses.global"} <= set(importance["feature"])
    assert set(importance["block"]) == {"metadata", "image", "text", "prototype"}
    assert importance.filter(pl.col("feature") == "image_head")["block"].item() == "image"
    boosters = StackModel.load(made.models / "stack").boosters
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
    params = replace(STACK, seeds=2, seed=99)
    other = run_all(made.posts, made.blocks, tmp_path, params=params, fitted=("report",))
    assert other.finished("report") != made.finished("report")


def test_finished_folds_are_not_fitted_again(made: Run, tmp_path: Path) -> None:
    """Files of finished folds are taken as they are (here altered, so that it shows); a missing one is made anew."""
    state = tmp_path / "state"
    state.mkdir()
    for name, content in made.finished("report", "matched", "user").items():
        (state / name).write_bytes(content)
    marked = pl.read_parquet(state / "matched-0-0.parquet").with_columns(prediction=pl.lit(-7.0))
    write_table(marked, state / "matched-0-0.parquet", PREDICTIONS)
    (state / "user-0-1.parquet").unlink()
    resumed = repeat(made, tmp_path)
    assert resumed.predictions.filter(pl.col("scheme") == "matched")["prediction"].unique().to_list() == [-7.0]
    others = pl.col("scheme") != "matched"
    assert resumed.predictions.filter(others).equals(made.predictions.filter(others))
    assert resumed.finished("report", "user") == made.finished("report", "user")
    assert tree_bytes(resumed.models) == tree_bytes(made.models)


def test_without_a_test_part_models_are_saved_and_final_predicts_nothing(tmp_path: Path) -> None:
    posts, blocks = posts_with_signal(2, train=150, test=10, users=50)
    run = run_all(posts.filter(pl.col("split") == "train"), blocks, tmp_path, fitted=("report",))
    assert run.predictions["scheme"].unique().to_list() == ["report"]
    assert sorted(run.predictions["model"].unique()) == MODELS
    for name in ("stack", "metadata"):
        assert len(StackModel.load(run.models / name).boosters) == 1
    assert run.importance["gain"].sum() > 0


def test_schemes_say_what_is_fitted(tmp_path: Path) -> None:
    posts, blocks = posts_with_signal(2, train=150, test=40, users=50)
    run = run_all(posts, blocks, tmp_path, fitted=("random",))
    assert run.predictions["scheme"].unique().sort().to_list() == ["final", "random"]


@pytest.mark.parametrize("by", ["low_loss", "random"])
def test_keep_drops_fit_rows_of_the_stack_and_scores_every_scored_row(
    made: Run, by: Literal["low_loss", "random"], tmp_path: Path
) -> None:
    """The stack of the kept rows is the one that was never shown the others, and the baselines stay as they were."""
    params = replace(STACK, seeds=2, keep=KeepParams(share=0.6, by=by))
    run = run_all(made.posts, made.blocks, tmp_path, params=params, fitted=("user",))
    rows = made.predictions.filter(pl.col("scheme").is_in(["user", "final"]))
    assert run.predictions.drop("prediction").equals(rows.drop("prediction"))
    baselines = pl.col("model") != "stack"
    assert run.predictions.filter(baselines).equals(rows.filter(baselines))
    assert not run.predictions.filter(~baselines).equals(rows.filter(~baselines))
    # The count of posts that the root of a tree without bagging saw.
    whole = replace(params, trees=replace(params.trees, bagging_fraction=1.0))
    (key, split) = next(iter(rows_of(made.splits, ["final"])))
    data = load_fold(key, split, made.posts, made.features)
    kept = _keep(data, made.blocks, whole)
    model = _fit_trees(kept, made.blocks, whole.columns, whole, "stack")
    roots = {int(tree["tree_structure"]["internal_count"]) for tree in model.boosters[0].dump_model()["tree_info"]}
    assert roots == {kept.fit.height}
    assert 0.55 < kept.fit.height / data.fit.height < 0.7
    assert kept.score.equals(data.score)
    label = dict(made.posts.select("pid", "label").iter_rows())
    assert [label[pid] for pid in kept.fit["pid"]] == kept.label.tolist()


def test_recency_weights_halve_with_the_half_life() -> None:
    day = 86_400_000_000
    posted_at = np.arange(0, 1_000 * day, day, dtype=np.int64)
    weights = recency_weights(posted_at, 100.0)
    assert weights is not None
    assert weights.mean() == pytest.approx(1.0)
    np.testing.assert_allclose(weights[100:900] / weights[:800], 2.0)
    assert recency_weights(posted_at, 0.0) is None


def test_one_post_dated_far_ahead_leaves_the_weights_of_the_others() -> None:
    day = 86_400_000_000
    posted_at = np.arange(0, 1_000 * day, day, dtype=np.int64)
    ahead = posted_at.copy()
    ahead[0] = 30_000 * day
    usual, weights = recency_weights(posted_at, 100.0), recency_weights(ahead, 100.0)
    assert usual is not None
    assert weights is not None
    np.testing.assert_allclose(weights[1:], usual[1:], rtol=0.02)


def test_recency_draws_predictions_to_the_present(tmp_path: Path) -> None:
    """The level falls by 4 half way through the fit rows: with a short half-life final predicts the later level."""
    posts, blocks = posts_with_signal(11)
    middle = posts.filter(pl.col("split") == "train")["posted_at"].median()
    fall = pl.when(pl.col("posted_at") < middle).then(0.0).otherwise(-4.0)
    posts = posts.with_columns(label=pl.col("label") + fall)
    means = []
    for half_life in (0.0, 5.0):
        params = replace(STACK, half_life_days=half_life)
        run = run_all(posts, blocks, tmp_path / str(half_life), params=params, fitted=())
        means.append(float(run.predictions.filter(scheme="final", model="metadata")["prediction"].to_numpy().mean()))
    assert means[1] < means[0] - 0.3
