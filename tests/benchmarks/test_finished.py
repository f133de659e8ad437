"""benchmarks.compare on finished runs: ours as the graph predicted it, parts, other runs, several data sets."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from benchmarks import compare, peers, rows
from benchmarks.comparison_tables import OVER_SETS
from benchmarks.finished import FEWER_SEEDS, FIT, TEXT, WITHOUT_TEXT, FinishedRun
from benchmarks.means import SHARE
from benchmarks.systems import FoldData, Project
from popularity.core import paths
from popularity.core.contracts import (
    BASELINES,
    FOLDS,
    IMAGES,
    MEMBER_PREDICTIONS,
    POSTS,
    PREDICTIONS,
    read_table,
    write_table,
)
from popularity.core.errors import ConfigError, DataError
from popularity.core.metrics import mean_absolute_error
from popularity.ensemble.members import EnsembleParams, MemberTable, chosen_weights
from popularity.features import featurize
from popularity.stack import StackData, fit_schemes, read_blocks
from popularity.stack.members import load_members, write_members
from popularity.tuning.objective import StackInputs
from tests.benchmarks.test_compare import write_project
from tests.stack.small_stack import FEATURIZE, STACK, posts_with_signal

MEMBERS: dict[str, dict[str, Any]] = {
    "wide": {"columns.feature_groups": ["words"], "lightgbm.num_leaves": 6},
    "small": {"lightgbm.num_leaves": 3, "row_selection.fraction": 0.8},
}
ENSEMBLE = EnsembleParams(seed=0, text_model=True, members=(), shrinkage=0.3)
STACK_SECTION = replace(STACK, n_seeds=2, num_boost_round=12, schemes=("holdout", "forward"))


def finished_run(folder: Path, posts: pl.DataFrame | None = None) -> Path:
    """A project in which stage ensemble has run: two members of two seeds, and a text model."""
    write_project(folder, posts)
    params = json.loads((folder / paths.PARAMS).read_text())
    params |= {"stack": asdict(STACK_SECTION), "ensemble": asdict(ENSEMBLE)}
    (folder / paths.PARAMS).write_text(json.dumps(params))
    made, splits = read_table(folder / paths.POSTS, POSTS), read_table(folder / paths.SPLITS, FOLDS)
    images = read_table(folder / paths.IMAGES, IMAGES)
    featurize(made, images, splits, FEATURIZE, folder / paths.FEATURES)
    members = folder / paths.TUNING_MEMBERS
    members.parent.mkdir(parents=True)
    write_members(MEMBERS, members)
    inputs = StackInputs.below(folder)
    blocks = read_blocks(inputs.image, inputs.text, inputs.prototype)
    data = StackData(made, splits, folder / paths.FEATURES, blocks)
    state = folder / "fits"
    fits = fit_schemes(data, load_members(folder / paths.PARAMS, members), state=state, model_folder=folder / "models")
    write_table(fits.predictions, folder / paths.STACK_PREDICTIONS, PREDICTIONS)
    constant = fits.predictions.filter(model="constant").sort(MEMBER_PREDICTIONS.key)
    labels = constant.select("pid").join(made, on="pid", how="left", maintain_order="left")["label"].fill_null(6.0)
    noise = np.random.default_rng(0).normal(size=constant.height)
    text = constant.with_columns(prediction=labels + pl.Series(2 * noise)).select(list(MEMBER_PREDICTIONS.columns))
    write_table(text, folder / paths.TEXT_MODEL_PREDICTIONS / "predictions.parquet", MEMBER_PREDICTIONS)
    table = MemberTable.of(fits.predictions, text)
    mean = table.mean(chosen_weights(table.out_of_fold(made), ENSEMBLE))
    baselines = fits.predictions.filter(pl.col("model").is_in(BASELINES))
    write_table(pl.concat([mean, baselines]).sort(PREDICTIONS.key), folder / paths.ENSEMBLE_PREDICTIONS, PREDICTIONS)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("one") / "one")


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on other labels, with other Pids."""
    posts = posts_with_signal(11, train=600, test=120)[0]
    noise = pl.Series(np.random.default_rng(2).normal(size=posts.height))
    return finished_run(tmp_path_factory.mktemp("two") / "two", posts.with_columns(label=pl.col("label") + noise))


def compared(folders: list[Path], out: Path, *flags: str) -> pl.DataFrame:
    given = ["--folders", *map(str, folders), "--workers", "1", "--resamples", "30", "--csv", str(out / "table.csv")]
    compare.main([*given, *flags])
    return pl.read_csv(out / "table.csv", schema_overrides={"split": pl.String})


def score_of(table: pl.DataFrame, system: str, **rows: Any) -> float:
    found = table.filter(system=system, **({"metric": "mae", "split": "mean"} | rows))["score"].item()
    return float(found)


def forward_mae(folder: Path, predictions: pl.DataFrame) -> float:
    """The mean over the splits of the MAE of mean predictions over the seeds."""
    posts = read_table(folder / paths.POSTS, POSTS)
    means = predictions.filter(scheme="forward").group_by("fold", "pid").agg(pl.mean("prediction"))
    joined = means.join(posts, on="pid", how="left").sort("fold", "pid")
    each = [
        mean_absolute_error(part["label"].to_numpy(), part["prediction"].to_numpy())
        for part in joined.partition_by("fold", maintain_order=True)
    ]
    return float(np.mean(each))


def test_ours_is_what_the_graph_predicted(folder: Path, tmp_path: Path) -> None:
    table = compared([folder], tmp_path, "--rows", "baselines")
    predictions = read_table(folder / paths.ENSEMBLE_PREDICTIONS, PREDICTIONS)
    assert score_of(table, "ours") == pytest.approx(forward_mae(folder, predictions.filter(model="stack")))
    for name in BASELINES:
        assert score_of(table, name) == pytest.approx(forward_mae(folder, predictions.filter(model=name)))
    text = pl.read_parquet(folder / paths.TEXT_MODEL_PREDICTIONS / "predictions.parquet")
    assert score_of(table, TEXT) == pytest.approx(forward_mae(folder, text))
    assert score_of(table, WITHOUT_TEXT) > score_of(table, "ours")
    assert not (folder / ".state").exists()  # nothing was fitted


def test_a_part_is_left_out_of_the_members_that_have_it(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    project = Project.read(copy)
    run = FinishedRun.read(project)
    assert run is not None
    parts = run.parts(project.blocks)
    assert set(parts["- image"]) == {"wide", "small"}
    assert set(parts["- feature group: words"]) == {"wide"}
    assert set(parts["- row_selection"]) == {"small"}
    assert FEWER_SEEDS not in parts
    part = "- feature group: words"
    table = compared([copy], tmp_path, "--rows", part)
    assert FEWER_SEEDS not in set(table["system"])
    assert score_of(table, part) != score_of(table, "ours")
    # the same by hand: fit the member anew, and put it in the place of the run's
    column = FIT.format(part=part, member="wide")
    fits = rows.predicted(project, {column: rows.stack_row(parts[part]["wide"])}, "forward")
    assert fits[column].is_nan().sum() == 0
    own = fits.select("scheme", pl.col("fold").cast(pl.Int32), "pid", prediction=column)
    assert forward_mae(copy, run.ensemble_of({"wide": own})) == pytest.approx(score_of(table, part))
    # a member that is fitted again as it was changes nothing
    same = rows.predicted(
        project, {"x": rows.stack_row(lambda data: rows.with_params(data, run.members["wide"]))}, "forward"
    )
    own = same.select("scheme", pl.col("fold").cast(pl.Int32), "pid", prediction="x")
    assert forward_mae(copy, run.ensemble_of({"wide": own})) == pytest.approx(forward_mae(copy, run.ensemble_of({})))


def test_with_fewer_seeds_a_part_is_compared_with_as_many(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    part = "- feature group: words"
    table = compared([copy], tmp_path, "--rows", part, "--seeds", "1")
    found = table.filter(system=part, metric="mae", split="mean").row(0, named=True)
    assert found["difference"] == pytest.approx(found["score"] - score_of(table, FEWER_SEEDS))
    fewer = table.filter(system=FEWER_SEEDS, metric="mae", split="mean").row(0, named=True)
    assert fewer["difference"] == pytest.approx(fewer["score"] - score_of(table, "ours"))
    assert fewer["difference"] != 0


def test_the_mean_over_sets_is_of_scores_and_shares(
    folder: Path, second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A peer that fails on one set has no mean, and its difference is that of the other set."""
    table = compared([folder, second], tmp_path, "--rows", "constant", "--tables", str(tmp_path / "tables"))
    each = [[score_of(table, "ours", set=name, metric=metric) for name in ("one", "two")] for metric in ("src", "mae")]
    constants = [score_of(table, "constant", set=name) for name in ("one", "two")]
    means = table.filter(set=OVER_SETS)
    assert score_of(means, "ours", metric="src") == pytest.approx(np.mean(each[0]))
    assert score_of(means, "ours", metric=SHARE) == pytest.approx(np.mean(np.array(each[1]) / constants))
    assert score_of(means, "constant", metric=SHARE) == 1
    row = means.filter(system="metadata", metric=SHARE).row(0, named=True)
    assert row["low"] <= row["difference"] <= row["high"]
    shown = capsys.readouterr().out
    assert "one: SRC" in shown
    assert f"{OVER_SETS}: forward" in shown
    docs = pl.read_csv(tmp_path / "tables/mean-systems.csv", infer_schema=False)
    assert docs.columns[:3] == ["system", "SRC forward", "SRC forward - ours"]
    (ours, *_) = docs.filter(system="ours").iter_rows(named=True)
    assert ours["SRC forward"] == f"{np.mean(each[0]):.3f}".removeprefix("0")
    assert docs.filter(system="constant")["SRC forward"].item() == "-"
    assert {file.name for file in (tmp_path / "tables").iterdir()} == {
        "one-systems.csv", "two-systems.csv", "mean-systems.csv",
    }  # fmt: skip


def test_a_peer_that_fails_on_a_set_has_no_mean(
    folder: Path, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copies = [Path(shutil.copytree(one, tmp_path / one.name)) for one in (folder, second)]
    users = Project.read(copies[0]).posts["label"].to_list()

    def fails(data: FoldData) -> np.ndarray[Any, np.dtype[np.float64]]:
        if data.posts.filter(pl.col("label").is_not_null())["label"][0] not in users:
            raise ValueError("too many classes")
        return np.full(data.fold.valid.height, 1.0)

    monkeypatch.setitem(peers.PEERS, "lightgbm_2020", fails)
    table = compared(copies, tmp_path, "--rows", "lightgbm_2020")
    assert table.filter(system="lightgbm_2020", set="two").is_empty()
    mean = table.filter(system="lightgbm_2020", set=OVER_SETS, metric=SHARE).row(0, named=True)
    assert mean["score"] is None
    assert mean["sets"] == 1
    one = table.filter(system="lightgbm_2020", set="one", metric="mae", split="mean").row(0, named=True)
    assert mean["difference"] == pytest.approx(one["difference"] / score_of(table, "constant", set="one"))
    assert "Not on two, so its difference is the mean over the other sets: lightgbm_2020" in capsys.readouterr().out


def test_predictions_of_another_run_are_a_row(folder: Path, second: Path, tmp_path: Path) -> None:
    """Each run is joined to the set with its posts; other labels or splits are refused."""
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    file = other / paths.ENSEMBLE_PREDICTIONS
    predictions = read_table(file, PREDICTIONS)
    write_table(predictions.with_columns(pl.col("prediction") + 0.5), file, PREDICTIONS)
    table = compared([folder], tmp_path, "--rows", "constant", "--predictions", f"paper={other}")
    moved = predictions.filter(model="stack").with_columns(pl.col("prediction") + 0.5)
    assert score_of(table, "paper") == pytest.approx(forward_mae(folder, moved))
    src = {name: score_of(table, name, metric="src") for name in ("ours", "paper")}
    assert src["paper"] == pytest.approx(src["ours"])
    file.rename(other / paths.STACK_PREDICTIONS)  # as before there was an ensemble
    assert compared([folder], tmp_path, "--rows", "constant", "--predictions", f"paper={other}").equals(table)
    with pytest.raises(ConfigError, match="--predictions paper: expected NAME=FOLDER"):
        compared([folder], tmp_path, "--predictions", "paper")
    splits = read_table(other / paths.SPLITS, FOLDS)
    scored = splits.filter(scheme="forward", fold=0, role="valid")["pid"][0]
    moved_rows = splits.with_columns(
        role=pl.when((pl.col("scheme") == "forward") & (pl.col("pid") == scored))
        .then(pl.lit("excluded")).otherwise("role")
    )  # fmt: skip
    write_table(moved_rows, other / paths.SPLITS, FOLDS)
    with pytest.raises(DataError, match=r"splits\.parquet: lacks scheme forward, fold 0, pid (.|\n)*the same posts"):
        compared([folder], tmp_path, "--predictions", f"paper={other}")
    write_table(splits, other / paths.SPLITS, FOLDS)
    posts = read_table(other / paths.POSTS, POSTS)
    write_table(posts.with_columns(pl.col("label") + 1), other / paths.POSTS, POSTS)
    with pytest.raises(DataError, match=r"posts\.parquet: lacks pid "):
        compared([folder], tmp_path, "--predictions", f"paper={other}")
    write_table(posts.head(-1), other / paths.POSTS, POSTS)
    with pytest.raises(DataError, match="other posts"):
        compared([folder], tmp_path, "--predictions", f"paper={other}")


def test_autogluon_runs_in_an_environment_of_its_own(tmp_path: Path, folder: Path) -> None:
    """The stand-in for its Python checks what it is given and predicts the mean label."""
    fake = tmp_path / "python"
    code = (
        "import sys, numpy as np; from pathlib import Path; "
        "isolated, script, folder, seconds, presets, cpus = sys.argv[1:]; "
        "table = np.load(folder + '/table.npz'); assert isolated == '-I' and Path(script).is_file(); "
        "np.save(folder + '/prediction.npy', np.full((~table['is_fit']).sum(), table['label'].mean() + int(seconds)))"
    )
    fake.write_text(f'#!/bin/sh\nexec "{__import__("sys").executable}" -c "{code}" "$@"\n')
    fake.chmod(0o755)
    (data, *_) = Project.read(folder).folds(["forward"])
    found = peers.AutoGluon(7, python=fake)(data)
    assert found.tolist() == pytest.approx([data.fold.label.mean() + 7] * data.fold.valid.height)
    keys = [rows.autogluon_row(peers.AutoGluon(seconds)).inputs(data) for seconds in (7, 8)]
    assert keys[0] != keys[1]
    with pytest.raises(RuntimeError, match="AutoGluon in /bin/false"):
        peers.AutoGluon(7, python=Path("/bin/false"))(data)


def test_autogluon_gets_the_time_of_the_whole_run(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "dvc.yaml").write_text(
        json.dumps({"stages": {"demo_data": {}, "ingest": {}, "embed_text": {"foreach": "x"}}})
    )
    records = copy / "reports/resources"
    records.mkdir(parents=True)
    name = json.loads((copy / paths.PARAMS).read_text())["encoders"]["network"]["text"]
    for stage in ("demo_data", "ingest", f"embed_text@{name}", "embed_text@other"):
        record = {"stage": stage, "seconds": 90.0, "peak_mib": 1, "largest_child_mib": 0}
        (records / f"{stage}.json").write_text(json.dumps(record))
    assert peers.autogluon_seconds(copy) == 60  # two stages of 90 s over two forward splits and the holdout
