"""A saved model: plain text and arrays, and the same predictions to the last bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from popularity.features import read_features
from popularity.stack import StackModel
from tests.stack.small_stack import STACK, Run, posts_with_signal, run_all, tree_bytes


@pytest.fixture(scope="module", params=["components", "raw"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    columns = replace(STACK.columns, uid_category=True)
    if request.param == "raw":
        columns = replace(columns, components=0, heads=("text",), prototype_parts=("logits", "losses"))
    posts, blocks = posts_with_signal(4, train=200, test=60, users=60)
    params = replace(STACK, seeds=2, columns=columns)
    return run_all(posts, blocks, tmp_path_factory.mktemp("model"), params=params, fitted=())


@pytest.mark.parametrize("name", ["stack", "metadata"])
def test_loaded_model_predicts_the_same_bits(made: Run, name: str, tmp_path: Path) -> None:
    final = made.predictions.filter((pl.col("scheme") == "final") & (pl.col("model") == name))
    test = made.posts.filter(pl.col("split") == "test").select("pid")
    features = read_features(made.features, "final", 0, 0, test)
    model = StackModel.load(made.models / name)
    each = model.predict_each(model.encoder.apply(features, made.blocks))
    for position, seed in enumerate((STACK.seed, STACK.seed + 1)):
        expected = final.filter(pl.col("seed") == seed)
        assert expected["pid"].to_list() == features["pid"].to_list()
        np.testing.assert_array_equal(each[position], expected["prediction"].to_numpy())
    np.testing.assert_array_equal(model.predict(features, made.blocks), each.mean(axis=0))
    model.save(tmp_path)
    assert tree_bytes(tmp_path) == tree_bytes(made.models / name)


def test_rows_are_predicted_one_by_one_as_together(made: Run) -> None:
    test = made.posts.filter(pl.col("split") == "test").select("pid")
    features = read_features(made.features, "final", 0, 0, test)
    model = StackModel.load(made.models / "stack")
    together = model.predict(features, made.blocks)
    alone = [model.predict(features[row], made.blocks)[0] for row in range(5)]
    np.testing.assert_allclose(alone, together[:5], rtol=1e-6)


def test_nothing_is_pickled(made: Run) -> None:
    files = tree_bytes(made.models)
    assert {name.rsplit(".")[-1] for name in files} == {"json", "npz", "txt"}
    for name, content in files.items():
        if name.endswith(".npz"):
            with np.load(made.models / name, allow_pickle=False) as arrays:
                assert all(arrays[key].dtype.kind == "f" for key in arrays)
        else:
            content.decode("utf-8")
