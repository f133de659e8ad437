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
from popularity.stack.explanation import weighted_mean
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
    """In label units, whatever the learners fit."""
    features = features_of_test(made)
    model = StackModel.load(made.models / "stack")
    dates = dates_of(made, features)
    found = model.explain(features, made.blocks, dates)
    expected = model.predict(features, made.blocks, dates)
    np.testing.assert_array_equal(found.predicted.values, expected.values)
    np.testing.assert_array_equal(found.predicted.error_scale, expected.error_scale)
    np.testing.assert_allclose(found.expected_value + found.shap_values.sum(axis=1), expected.values, atol=1e-6)


def test_members_are_explained_by_the_weighted_mean_of_their_columns(made: Run) -> None:
    features = features_of_test(made)
    dates = dates_of(made, features)
    names = ("stack", "metadata")
    members = {name: StackModel.load(made.models / name).explain(features, made.blocks, dates) for name in names}
    predicted, found = weighted_mean(members, {"stack": 0.7, "metadata": 0.3}, 10_000)
    for field in ("values", "error_scale"):
        each = [getattr(members[name].predicted, field) for name in names]
        np.testing.assert_allclose(getattr(predicted, field), 0.7 * each[0] + 0.3 * each[1])
    for frame in (found.blocks, found.features):
        sums = frame.group_by("pid").agg(pl.col("shap_value").sum()).sort("pid")["shap_value"].to_numpy()
        np.testing.assert_allclose(sums + found.expected_value, predicted.values, atol=1e-6)
    shared = members["metadata"].matrix.names[0]
    each = [one.shap_values[:, one.matrix.names.index(shared)] for one in members.values()]
    own = found.features.filter(feature=shared).sort("pid")["shap_value"].to_numpy()
    np.testing.assert_allclose(own, 0.7 * each[0] + 0.3 * each[1])
    assert set(found.features["feature"]) == set(members["stack"].matrix.names)


def test_the_largest_features_of_each_post(made: Run) -> None:
    features = features_of_test(made)
    model = StackModel.load(made.models / "stack")
    explained = model.explain(features, made.blocks, dates_of(made, features))
    few, every = (weighted_mean({"stack": explained}, {"stack": 1.0}, n)[1].features for n in (3, 10_000))
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
