"""The mean of the stack's members and the text model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from popularity.core.contracts import MEMBER_PREDICTIONS, PREDICTIONS, FoldKey, check_table, write_table
from popularity.core.errors import DataError
from popularity.ensemble.members import (
    Chosen,
    EnsembleParams,
    MemberTable,
    chosen_weights,
    read_members,
    summary,
    weighted_importance,
)

PARAMS = EnsembleParams(seed=0, text_model=True, members=(), shrinkage=0.0)
FOLDS = (("forward", 0), ("forward", 1), ("holdout", 0), ("refit", 0))
POSTS_OF_A_FOLD = 60


def made() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Predictions of stage stack, of the text model, and posts; labels of the first split follow the text model.

    Member a is right in the other folds; member b is noise. Two seeds.
    """
    rng = np.random.default_rng(0)
    columns = {name: column.dtype for name, column in PREDICTIONS.columns.items()}
    stack, text, posts = [], [], []
    for number, (scheme, fold) in enumerate(FOLDS):
        pids = [f"{number}{post:03d}" for post in range(POSTS_OF_A_FOLD)]
        label, other = rng.normal(5, 2, (2, POSTS_OF_A_FOLD))
        a, theirs = (other, label + 7) if number == 0 else (label, other + 7)
        key = {"pid": pids, "scheme": scheme, "fold": fold}
        members = {"a": a, "b": rng.normal(5, 2, POSTS_OF_A_FOLD)}
        for seed in (0, 1):
            stack += [
                pl.DataFrame(
                    {**key, "seed": seed, "model": model, "prediction": values + seed * 0.1, "error_scale": scale}
                )
                for (model, values), scale in zip(members.items(), (1.0, 3.0), strict=True)
            ]
        stack.append(
            pl.DataFrame({**key, "seed": 0, "model": "constant", "prediction": 5.0}).with_columns(
                error_scale=pl.lit(None, pl.Float64)
            )
        )
        text.append(pl.DataFrame({**key, "prediction": theirs}))
        posts.append(pl.DataFrame({"pid": pids, "uid": [f"u{post % 20}" for post in range(len(pids))], "label": label}))
    predictions = pl.concat(one.select(pl.col(name).cast(kind) for name, kind in columns.items()) for one in stack)
    text_columns = {name: column.dtype for name, column in MEMBER_PREDICTIONS.columns.items()}
    member = pl.concat(text).select(pl.col(name).cast(kind) for name, kind in text_columns.items())
    return predictions.sort(PREDICTIONS.key), member.sort(MEMBER_PREDICTIONS.key), pl.concat(posts)


def of(predictions: pl.DataFrame, model: str, scheme: str, fold: int = 0) -> pl.DataFrame:
    return predictions.filter(model=model, scheme=scheme, fold=fold).sort("seed", "pid")


def test_the_mean_is_linear_in_members_and_the_text_model_keeps_the_median() -> None:
    predictions, text, _ = made()
    weights = {"a": 0.5, "b": 0.25, "text_model": 0.25}
    table = MemberTable.of(predictions, text.sample(fraction=1.0, shuffle=True, seed=0))
    assert list(table.names) == ["a", "b", "text_model"]
    found = table.mean(Chosen(weights, {0: weights, 1: weights}))
    check_table(found, PREDICTIONS)
    for scheme, fold in FOLDS:
        a, b = (of(predictions, model, scheme, fold)["prediction"].to_numpy() for model in "ab")
        theirs = text.filter(scheme=scheme, fold=fold).sort("pid")["prediction"].to_numpy()
        centred = np.tile(theirs, 2) - np.median(theirs) + np.median((a + b) / 2)
        own = of(found, "stack", scheme, fold)
        np.testing.assert_allclose(own["prediction"].to_numpy(), 0.5 * a + 0.25 * b + 0.25 * centred)
        np.testing.assert_allclose(own["error_scale"].to_numpy(), (0.5 * 1 + 0.25 * 3) / 0.75)


def test_later_posts_are_predicted_as_those_of_refit() -> None:
    predictions, text, posts = made()
    table = MemberTable.of(predictions, text)
    chosen = chosen_weights(table.out_of_fold(posts), PARAMS)
    stored = summary(table.out_of_fold(posts), chosen, table, [])
    theirs = text.filter(scheme="refit").sort("pid")["prediction"].to_numpy()
    expected = stored["weights"]["text_model"] * (np.tile(theirs, 2) - stored["text_model_offset"])
    for model in "ab":
        expected = expected + stored["weights"][model] * of(predictions, model, "refit")["prediction"].to_numpy()
    np.testing.assert_allclose(of(table.mean(chosen), "stack", "refit")["prediction"].to_numpy(), expected)
    assert sum(stored["weights"].values()) == pytest.approx(1)
    assert set(stored["losses"]) == {"a", "b", "text_model"}


def test_a_split_does_not_choose_its_own_weights() -> None:
    """The labels of the first split follow the text model, those of the second member a."""
    predictions, text, posts = made()
    table = MemberTable.of(predictions, text)
    rows = table.out_of_fold(posts)
    chosen = chosen_weights(rows, PARAMS)
    assert chosen.of(FoldKey("forward", 0))["a"] > 0.9
    assert chosen.of(FoldKey("forward", 1))["text_model"] > 0.9
    assert chosen.of(FoldKey("holdout", 0)) == chosen.of(FoldKey("refit", 0)) == chosen.whole
    assert chosen.whole["b"] < 0.1
    found = summary(rows, chosen, table, [])
    assert found["ensemble_loss"] > min(found["losses"].values())  # each split has the weights of the other one
    assert found["splits"] == 2
    alone = chosen_weights(rows.only(0), PARAMS)
    assert alone.of(FoldKey("forward", 0)) == alone.whole


def test_without_a_split_the_stack_s_members_are_equal_and_the_text_model_has_no_weight() -> None:
    predictions, text, posts = made()
    table = MemberTable.of(predictions.filter(pl.col("scheme") != "forward"), text)
    chosen = chosen_weights(table.out_of_fold(posts), PARAMS)
    assert chosen.whole == {"a": 0.5, "b": 0.5}
    found = summary(table.out_of_fold(posts), chosen, table, [])
    assert (found["losses"], found["ensemble_loss"], found["splits"]) == ({}, None, 0)
    assert table.mean(chosen).height == 2 * 2 * POSTS_OF_A_FOLD


@pytest.mark.parametrize("text", ["none", "empty"])
def test_without_a_text_model_the_stack_is_alone(text: str) -> None:
    predictions, given, posts = made()
    table = MemberTable.of(predictions, None if text == "none" else given.clear())
    assert (list(table.names), table.offset) == (["a", "b"], 0.0)
    assert set(chosen_weights(table.out_of_fold(posts), PARAMS).whole) == {"a", "b"}


def test_where_the_text_model_is_not_fitted_the_stack_s_members_share_its_weight() -> None:
    predictions, text, _ = made()
    weights = {"a": 0.5, "b": 0.25, "text_model": 0.25}
    chosen = Chosen(weights, {0: weights, 1: weights})
    found = MemberTable.of(predictions, text.filter(pl.col("scheme") != "holdout")).mean(chosen)
    check_table(found, PREDICTIONS)
    a, b = (of(predictions, model, "holdout")["prediction"].to_numpy() for model in "ab")
    np.testing.assert_allclose(of(found, "stack", "holdout")["prediction"].to_numpy(), (2 * a + b) / 3)
    others = pl.col("scheme") != "holdout"
    assert found.filter(others).equals(MemberTable.of(predictions, text).mean(chosen).filter(others))
    alone = Chosen({"text_model": 1.0}, {0: weights, 1: weights})
    found = MemberTable.of(predictions, text.filter(pl.col("scheme") != "holdout")).mean(alone)
    np.testing.assert_allclose(of(found, "stack", "holdout")["prediction"].to_numpy(), (a + b) / 2)


def test_where_the_first_member_is_fitted_alone_it_is_the_mean() -> None:
    predictions, text, _ = made()
    kept = (pl.col("scheme") != "holdout") | pl.col("model").is_in(["a", "constant"])
    weights = {"a": 0.1, "b": 0.5, "text_model": 0.4}
    table = MemberTable.of(predictions.filter(kept), text.filter(pl.col("scheme") != "holdout"))
    found = of(table.mean(Chosen(weights, {0: weights, 1: weights})), "stack", "holdout")
    own = of(predictions, "a", "holdout")
    assert found.drop("model").equals(own.drop("model"))


def test_a_text_model_that_predicts_no_forward_split_has_no_weight() -> None:
    predictions, text, posts = made()
    table = MemberTable.of(predictions, text.filter(pl.col("scheme") != "forward"))
    rows = table.out_of_fold(posts)
    assert list(rows.names) == ["a", "b"]
    chosen = chosen_weights(rows, PARAMS)
    own = MemberTable.of(predictions, None)
    assert chosen == chosen_weights(own.out_of_fold(posts), PARAMS)
    assert table.mean(chosen).equals(own.mean(chosen))


def test_a_post_may_be_valid_in_several_splits() -> None:
    predictions, text, posts = made()
    again = pl.when(fold=1).then(pl.col("pid").str.replace("^1", "0")).otherwise("pid")
    table = MemberTable.of(predictions.with_columns(pid=again), text.with_columns(pid=again))
    rows = table.out_of_fold(posts)
    assert rows.folds == [0, 1]
    np.testing.assert_array_equal(rows.label[rows.fold == 0], rows.label[rows.fold == 1])
    found = table.mean(chosen_weights(rows, PARAMS))
    check_table(found, PREDICTIONS)
    assert found.filter(scheme="forward").height == 2 * 2 * POSTS_OF_A_FOLD


def test_a_test_part_of_no_post_has_no_offset() -> None:
    predictions, text, _ = made()
    assert MemberTable.of(predictions.filter(pl.col("scheme") != "refit"), text).offset == 0.0


def test_shrinkage_is_for_the_members_of_the_stack_alone() -> None:
    predictions, text, posts = made()
    rows = MemberTable.of(predictions, text).out_of_fold(posts)
    greedy, weights = (chosen_weights(rows, replace(PARAMS, shrinkage=share)).whole for share in (0.0, 0.6))
    assert greedy["b"] < 0.1
    assert weights["text_model"] == pytest.approx(greedy["text_model"])
    assert weights["b"] == pytest.approx(0.4 * greedy["b"] + 0.3 * (greedy["a"] + greedy["b"]))
    assert sum(weights.values()) == pytest.approx(1)


def test_the_stack_keeps_a_weight_where_the_text_model_predicts_all() -> None:
    predictions, text, posts = made()
    label = text.join(posts.select("pid", "label"), on="pid", how="left").with_columns(prediction=pl.col("label"))
    rows = MemberTable.of(
        predictions.filter(model="b").vstack(predictions.filter(model="constant")), label.drop("label")
    )
    weights = chosen_weights(rows.out_of_fold(posts), PARAMS).whole
    assert weights == {"b": pytest.approx(0.05), "text_model": pytest.approx(0.95)}


def test_a_post_that_the_text_model_lacks_is_named() -> None:
    predictions, text, _ = made()
    gone = (pl.col("pid") == "1004") & (pl.col("fold") == 1)
    with pytest.raises(DataError, match=r"post 1004 of forward, fold 1, and 0 more"):
        MemberTable.of(predictions, text.filter(~gone))


def test_importance_is_the_mean_of_shares() -> None:
    importance = pl.DataFrame(
        {
            "model": ["a", "a", "b", "b"], "block": ["x", "y", "x", "z"], "feature": ["x1", "y1", "x1", "z1"],
            "gain": [30.0, 10.0, 0.0, 0.0],
        }
    )  # fmt: skip
    found = weighted_importance(importance, {"a": 0.8, "b": 0.1, "text_model": 0.1})
    assert found.rows() == [
        ("x", "x1", pytest.approx(0.6)), ("y", "y1", pytest.approx(0.2)), ("z", "z1", 0.0),
    ]  # fmt: skip


def theirs(text: pl.DataFrame, posts: pl.DataFrame, schemes: Sequence[str] = ("forward", "refit")) -> pl.DataFrame:
    """Predictions of a file: the labels, 2 too high."""
    rows = text.filter(pl.col("scheme").is_in(schemes)).join(posts.select("pid", "label"), on="pid", how="left")
    return rows.with_columns(prediction=pl.col("label") + 2).drop("label").sort(MEMBER_PREDICTIONS.key)


def test_a_file_is_a_member_that_counts_as_it_is() -> None:
    predictions, text, posts = made()
    table = MemberTable.of(predictions, text, {"theirs": theirs(text, posts)})
    assert list(table.names) == ["a", "b", "theirs", "text_model"]
    assert table.offset == MemberTable.of(predictions, text).offset
    weights = {"a": 0.25, "theirs": 0.75}
    found = table.mean(Chosen(weights, {0: weights, 1: weights}))
    check_table(found, PREDICTIONS)
    label = np.tile(posts.filter(pl.col("pid").str.starts_with("3")).sort("pid")["label"].to_numpy(), 2)
    a = of(predictions, "a", "refit")["prediction"].to_numpy()
    np.testing.assert_allclose(of(found, "stack", "refit")["prediction"].to_numpy(), 0.25 * a + 0.75 * (label + 2))
    a = of(predictions, "a", "holdout")["prediction"].to_numpy()  # which the file does not predict
    np.testing.assert_allclose(of(found, "stack", "holdout")["prediction"].to_numpy(), a)
    params = replace(PARAMS, members=("theirs",))
    chosen = chosen_weights(table.out_of_fold(posts), params)
    assert chosen.whole["theirs"] > 0.2
    stored = summary(table.out_of_fold(posts), chosen, table, params.members)
    assert (stored["files"], set(stored["weights"])) == (["theirs"], {"a", "b", "theirs", "text_model"})
    without = MemberTable.of(predictions.filter(pl.col("scheme") != "forward"), text, {"theirs": theirs(text, posts)})
    assert chosen_weights(without.out_of_fold(posts), params).whole == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("name", ["a", "stack", "constant", "text_model"])
def test_a_name_that_is_taken_is_refused(name: str) -> None:
    predictions, text, posts = made()
    with pytest.raises(DataError, match=f"has the name {name}"):
        MemberTable.of(predictions, text, {name: theirs(text, posts)})


def test_files_of_members_are_checked(tmp_path: Path) -> None:
    predictions, text, posts = made()
    with pytest.raises(DataError, match=r"theirs\.parquet: no file(.|\n)*popularity\.member"):
        read_members(["theirs"], tmp_path)
    file = tmp_path / "theirs.parquet"
    write_table(theirs(text, posts, ["forward"]), file, MEMBER_PREDICTIONS)
    with pytest.raises(DataError, match=r"theirs\.parquet: no row of scheme refit"):
        read_members(["theirs"], tmp_path)
    write_table(theirs(text, posts).filter(pl.col("pid") != "0007"), file, MEMBER_PREDICTIONS)
    with pytest.raises(DataError, match=r"member theirs: no prediction for post 0007 of forward, fold 0, and 0 more"):
        MemberTable.of(predictions, text, read_members(["theirs"], tmp_path))
