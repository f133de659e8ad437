"""A saved model: plain text and arrays, and the same predictions to the last bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from popularity.core.contracts import FoldKey
from popularity.features import read_features
from popularity.stack import StackModel
from popularity.validation.inner_cv import InnerCvParams
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

KINDS = {
    "components": STACK,
    "none": replace(
        STACK, columns=replace(STACK.columns, n_components=0, oof_ridge=("text",), prototype_parts=("logits", "losses"))
    ),
    "normal": replace(STACK, target_transform="rank_gauss"),
    "second": WITH_SECOND,
    "all parts": ALL_PARTS,
    "no splits": replace(WITH_SECOND, inner_cv=InnerCvParams(2, 0.9)),
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[needs_catboost] if "catboost" in params.learners else [])
        for name, params in KINDS.items()
    ],
)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    params = KINDS[request.param]
    params = replace(params, n_seeds=2, columns=replace(params.columns, uid_category=True))
    posts, blocks = posts_with_signal(4, train=200, test=60, users=60)
    return run_all(posts, blocks, tmp_path_factory.mktemp("model"), params=params, fitted=())


def features_of_test(made: Run) -> pl.DataFrame:
    return read_features(made.features, FoldKey("refit", 0), made.posts.filter(pl.col("split") == "test").select("pid"))


def dates_of(made: Run, features: pl.DataFrame) -> npt.NDArray[np.int64]:
    """(n,) microseconds."""
    rows = features.select("pid").join(made.posts, on="pid", how="left", maintain_order="left")
    return rows["posted_at"].to_physical().to_numpy()


@pytest.mark.parametrize("name", ["stack", "metadata"])
def test_loaded_model_predicts_the_same_bits(made: Run, name: str, tmp_path: Path) -> None:
    final = made.predictions.filter((pl.col("scheme") == "refit") & (pl.col("model") == name))
    features = features_of_test(made)
    model = StackModel.load(made.models / name)
    dates = dates_of(made, features)
    each = model.predict_each(model.encoder.apply(features, made.blocks), dates)
    predicted = model.predict(features, made.blocks, dates)
    for position, seed in enumerate((STACK.seed, STACK.seed + 1)):
        expected = final.filter(pl.col("seed") == seed)
        assert expected["pid"].to_list() == features["pid"].to_list()
        np.testing.assert_array_equal(each[position], expected["prediction"].to_numpy())
        if name == "stack":
            np.testing.assert_array_equal(predicted.error_scale, expected["error_scale"].to_numpy())
        else:
            assert expected["error_scale"].null_count() == len(expected)
    np.testing.assert_array_equal(predicted.values, each.mean(axis=0))
    assert (predicted.error_scale > 0).all()
    model.save(tmp_path)
    again = StackModel.load(tmp_path).predict(features, made.blocks, dates)
    np.testing.assert_array_equal(again.values, predicted.values)
    np.testing.assert_array_equal(again.error_scale, predicted.error_scale)


def test_rows_are_predicted_one_by_one_as_together(made: Run) -> None:
    features = features_of_test(made)
    model = StackModel.load(made.models / "stack")
    dates = dates_of(made, features)
    together = model.predict(features, made.blocks, dates)
    alone = [model.predict(features[row], made.blocks, dates[[row]]) for row in range(5)]
    np.testing.assert_allclose([one.values[0] for one in alone], together.values[:5], rtol=1e-6)
    np.testing.assert_allclose([one.error_scale[0] for one in alone], together.error_scale[:5], rtol=1e-6)


def test_contributions_add_up_to_the_prediction(made: Run) -> None:
    """In the scale of the learners: of the one mean over seeds that they share."""
    features = features_of_test(made)
    model = StackModel.load(made.models / "stack")
    dates = dates_of(made, features)
    found = model.explain(features, made.blocks, dates, largest=10_000)
    sums = [
        frame.group_by("pid").agg(pl.col("shap_value").sum()).sort("pid")["shap_value"].to_numpy()
        + found.expected_value
        for frame in (found.blocks, found.features)
    ]
    np.testing.assert_allclose(sums[0], sums[1], atol=1e-9)
    if model.target_transform.kind == "none":
        np.testing.assert_allclose(sums[0], model.predict(features, made.blocks, dates).values, atol=1e-6)
    else:
        one = replace(model, models={learner: models[:1] for learner, models in model.models.items()})
        found = one.explain(features, made.blocks, dates, largest=1)
        total = found.blocks.group_by("pid").agg(pl.col("shap_value").sum()).sort("pid")["shap_value"].to_numpy()
        predicted = one.predict(features, made.blocks, dates).values
        np.testing.assert_allclose(model.target_transform.invert(total + found.expected_value), predicted, atol=1e-6)


def test_the_largest_features_of_each_post(made: Run) -> None:
    features = features_of_test(made)
    model = StackModel.load(made.models / "stack")
    dates = dates_of(made, features)
    few, every = (model.explain(features, made.blocks, dates, largest).features for largest in (3, 10_000))
    assert few.equals(every.filter(pl.col("rank") < 3))
    assert few["pid"].to_list() == [pid for pid in features["pid"] for _ in range(3)]
    matrix = model.encoder.apply(features, made.blocks)
    assert every.height == matrix.values.size
    for _, part in every.group_by("pid"):
        assert part["shap_value"].abs().is_sorted(descending=True)
    pid, _, block, feature, value, _ = every.filter(pl.col("value").is_not_null()).row(0)
    column = matrix.names.index(feature)
    assert matrix.blocks[column] == block
    assert matrix.values[matrix.pids.index(pid), column] == np.float32(value)
    assert not every["value"].is_nan().any()


def test_nothing_is_pickled(made: Run) -> None:
    files = tree_bytes(made.models)
    assert {name.rsplit(".")[-1] for name in files} <= {"json", "npz", "txt", "cbm"}
    for name, content in files.items():
        if name.endswith(".npz"):
            with np.load(made.models / name, allow_pickle=False) as arrays:
                assert all(arrays[key].dtype.kind == "f" for key in arrays)
        elif not name.endswith(".cbm"):
            content.decode("utf-8")
