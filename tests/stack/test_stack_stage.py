"""Split, featurize and stack as stages, on files."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from popularity.core.contracts import FOLDS, IMAGES, POSTS, PREDICTIONS, TRENDS, FoldKey, read_table, write_table
from popularity.core.errors import ConfigError, ContractError
from popularity.stack import StackModel
from popularity.stack.lightgbm_dask import ClusterParams
from popularity.stack.members import write_members
from stages import featurize, split, stack
from tests.random_posts import random_images
from tests.stack.small_stack import FEATURIZE, SPLIT, STACK, posts_with_signal, tree_bytes, write_blocks


def flags(**paths: Path) -> list[str]:
    return [part for name, path in paths.items() for part in (f"--{name}", str(path))]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the stage `stack` reads."""
    root = tmp_path_factory.mktemp("stage")
    sections = {"split": asdict(SPLIT), "featurize": asdict(FEATURIZE), "stack": asdict(STACK)}
    (root / "params.yaml").write_text(json.dumps(sections), encoding="utf-8")
    posts, blocks = posts_with_signal(6, train=200, test=60, users=70)
    write_table(posts, root / "posts.parquet", POSTS)
    write_table(random_images(posts, 0), root / "images.parquet", IMAGES)
    write_blocks(blocks, root)
    given = {"params": root / "params.yaml", "posts": root / "posts.parquet", "splits": root / "splits.parquet"}
    split.main(flags(**given, summary=root / "split.json", resources=root / "resources" / "split.json"))
    featurize.main(
        flags(
            **given,
            images=root / "images.parquet",
            out=root / "features",
            summary=root / "target_statistics.json",
            resources=root / "resources" / "featurize.json",
        )
    )
    return root


def run_stack(inputs: Path, out: Path, params: Path | None = None, *more: str) -> None:
    names = ("splits", "posts")
    stack.main(
        [
            *flags(**{name: inputs / f"{name}.parquet" for name in names}),
            *flags(**{name: inputs / name for name in ("features", "image", "text", "prototype")}),
            *flags(params=params or inputs / "params.yaml", predictions=out / "stack", models=out / "models"),
            *flags(resources=out / "resources.json", state=out / "state"),
            *more,
        ]
    )


def test_outs(inputs: Path, tmp_path: Path) -> None:
    run_stack(inputs, tmp_path)
    predictions = read_table(tmp_path / "stack" / "predictions.parquet", PREDICTIONS)
    splits = read_table(inputs / "splits.parquet", FOLDS)
    scored = splits.filter((pl.col("role") == "valid") & (pl.col("scheme") != "random"))
    assert predictions.filter(pl.col("model") == "stack").height == scored.height
    trends = read_table(tmp_path / "stack" / "trends.parquet", TRENDS)
    assert sorted(trends["scheme"].unique()) == ["forward", "holdout", "refit"]
    assert trends.group_by("scheme", "fold", "member").len()["len"].unique().to_list() == [101]
    importance = pl.read_csv(tmp_path / "stack" / "importance.csv")
    assert importance.columns == ["model", "block", "feature", "gain"]
    assert importance["gain"][0] > 0
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        "manifest.json", "metadata", "stack",
    ]  # fmt: skip
    manifest = json.loads((tmp_path / "models" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["params"]["members"]["stack"]["lightgbm"]["num_leaves"] == STACK.lightgbm.num_leaves
    dense = StackModel.load(tmp_path / "models" / "stack").encoder.dense
    assert list(dense) == ["image", "text", "prototype"]
    assert all(one.ridge is not None for one in dense.values())
    assert json.loads((tmp_path / "resources.json").read_text(encoding="utf-8"))["stage"] == "stack"
    assert not list((tmp_path / "state").rglob("*.parquet"))  # resume state goes once all is written
    run_stack(inputs, tmp_path / "again")
    for out in ("stack", "models"):
        assert tree_bytes(tmp_path / "again" / out) == tree_bytes(tmp_path / out)


def test_every_member_is_fitted_but_in_group_and_the_trend_is_written_once(inputs: Path, tmp_path: Path) -> None:
    """The trend is that of the first member; the other one has another, as no search gives it."""
    file = tmp_path / "members.yaml"
    write_members({"whole": {"n_seeds": 1}, "half": {"row_selection.fraction": 0.5, "detrend": "linear"}}, file)
    run_stack(inputs, tmp_path / "both", None, "--members", str(file))
    predictions = read_table(tmp_path / "both/stack/predictions.parquet", PREDICTIONS)
    baselines = {"metadata", "user_mean", "constant"}
    assert set(predictions["model"]) == {"whole", "half", *baselines}
    assert set(predictions.filter(scheme="group")["model"]) == {"whole", *baselines}
    trends = read_table(tmp_path / "both/stack/trends.parquet", TRENDS)
    write_members({"whole": {"n_seeds": 1}}, file)
    run_stack(inputs, tmp_path / "one", None, "--members", str(file))
    assert trends.equals(read_table(tmp_path / "one/stack/trends.parquet", TRENDS))
    importance = pl.read_csv(tmp_path / "both/stack/importance.csv")
    assert importance["model"].unique(maintain_order=True).to_list() == ["half", "whole"]
    assert (tmp_path / "both/models/half/model.json").is_file()


def test_the_flag_for_all_schemes_fits_random_too(inputs: Path, tmp_path: Path) -> None:
    run_stack(inputs, tmp_path, None, "--all-schemes")
    predictions = read_table(tmp_path / "stack" / "predictions.parquet", PREDICTIONS)
    assert sorted(predictions["scheme"].unique()) == ["forward", "group", "holdout", "random", "refit"]


def test_on_the_workers_of_a_cluster(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every valid row is predicted, and without draws much as without workers; the stored model needs no Dask."""
    pytest.importorskip("distributed")
    trees = replace(STACK.lightgbm, objective="regression", bagging_fraction=1.0, feature_fraction=1.0)
    runs = []
    for workers in (0, 2):
        out = tmp_path / str(workers)
        params = tmp_path / "params.yaml"
        changed = replace(STACK, schemes=("holdout",), lightgbm=trees, cluster=ClusterParams(workers, "local"))
        params.write_text(json.dumps({"stack": asdict(changed)}), encoding="utf-8")
        run_stack(inputs, out, params)
        runs.append(read_table(out / "stack" / "predictions.parquet", PREDICTIONS))
    monkeypatch.setitem(sys.modules, "distributed", None)
    model = StackModel.load(tmp_path / "2" / "models" / "stack")
    assert model.models["lightgbm"][0].params["num_machines"] == 2
    splits = read_table(inputs / "splits.parquet", FOLDS)
    scored = splits.filter((pl.col("role") == "valid") & pl.col("scheme").is_in(["holdout", "refit"]))
    here, there = (run.filter(pl.col("model") == "stack") for run in runs)
    assert here.select(PREDICTIONS.key).equals(there.select(PREDICTIONS.key))
    assert there.height == scored.height
    assert not here["prediction"].equals(there["prediction"])
    assert np.corrcoef(here["prediction"], there["prediction"])[0, 1] > 0.99


def test_a_failed_run_leaves_the_old_outs_and_its_finished_folds(inputs: Path, tmp_path: Path) -> None:
    """A fold of `group` has its label features twice: the schemes before it are finished when the stage stops."""
    run_stack(inputs, tmp_path)
    before = {out: tree_bytes(tmp_path / out) for out in ("stack", "models")}
    torn = tmp_path / "torn"
    shutil.copytree(inputs, torn)
    path = torn / "features" / "label" / FoldKey("group", 0).file_name
    label = pl.read_parquet(path)
    pl.concat([label, label]).write_parquet(path)
    with pytest.raises(ContractError, match=r"group-0\.parquet: features: .* must be unique"):
        run_stack(torn, tmp_path)
    assert {out: tree_bytes(tmp_path / out) for out in ("stack", "models")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "resources.json", "stack", "state", "torn"]
    finished = [path.name for path in (tmp_path / "state").rglob("*.parquet")]
    assert sorted(finished) == [f"forward-{fold}{kind}" for fold in (0, 1) for kind in (".parquet", ".trends.parquet")]
    run_stack(inputs, tmp_path)  # sound inputs have another fingerprint: nothing of the torn run is picked up
    assert {out: tree_bytes(tmp_path / out) for out in ("stack", "models")} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lightgbm": {**asdict(STACK.lightgbm), "num_leafs": 3}}, "stack.lightgbm.num_leafs: unknown key"),
        ({"columns": asdict(replace(STACK.columns, feature_blocks=()))}, "stack.columns.feature_blocks"),
        ({"columns": asdict(replace(STACK.columns, oof_ridge_alphas=()))}, "stack.columns.oof_ridge_alphas"),
        ({"columns": asdict(replace(STACK.columns, prototype_parts=("logit",)))}, "stack.columns.prototype_parts.0"),  # type: ignore[arg-type]
        ({"row_selection": {"fraction": 0.0, "order": "random"}}, "stack.row_selection.fraction"),
        ({"row_selection": {"fraction": 0.77, "order": "loss"}}, "stack.row_selection.order"),
        ({"schemes": ["holdout", "reprot"]}, "stack.schemes.1"),
    ],
)
def test_bad_parameters_are_named(inputs: Path, tmp_path: Path, change: dict[str, object], message: str) -> None:
    params = tmp_path / "params.yaml"
    params.write_text(json.dumps({"stack": {**asdict(STACK), **change}}), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        run_stack(inputs, tmp_path, params)
    assert message in str(caught.value)
