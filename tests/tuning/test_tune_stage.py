"""The stage tune on files: what it writes, that a kill changes nothing of it, and that the stack takes it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from popularity.core.config import leaves, load_params, read_yaml, searched_keys
from popularity.core.contracts import FOLDS, POSTS, PREDICTIONS, TRIAL_PREDICTIONS, read_table, write_table
from popularity.core.errors import ConfigError, DataError
from popularity.core.metrics import spearman
from popularity.profile import main as set_profile
from popularity.stack import StackModel, StackParams, lightgbm
from popularity.stack.effort import Effort
from popularity.stack.feature_blocks import Blocks
from popularity.stack.fit import EncodedFold, encode_fold, fit_and_predict
from popularity.stack.matrix import MatrixEncoder
from popularity.stack.members import load_members, write_members
from popularity.stack.sample import Learned, Sample
from popularity.tuning import objective as objectives
from popularity.tuning.objective import StackInputs, StackObjective
from popularity.tuning.results import best_of
from popularity.tuning.space import Space
from popularity.tuning.storage import SQLITE, open_study
from popularity.tuning.study import Step, finished_trials, run_search
from popularity.tuning.worker import main as join
from popularity.validation.folds import Fold
from stages import featurize, stack
from tests.repository import REPOSITORY
from tests.stack.small_stack import posts_with_signal, tree_bytes
from tests.tuning.small_tune import SMALL, SPACE, flags, input_flags, run_tune, tune_flags, write_inputs, write_params


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tune")
    write_inputs(root, *posts_with_signal(6, train=300, test=60, users=100))
    return root


FULL = Effort(n_seeds=1, max_train_rows=0, learning_rate_factor=1.0)


def small_objective(inputs: Path, base: StackParams = SMALL, effort: Effort = FULL) -> StackObjective:
    paths = StackInputs(
        *(inputs / name for name in ("posts.parquet", "splits.parquet", "features", "image", "text", "prototype"))
    )
    return StackObjective(paths, ("forward", "group"), Space.parse("tune.space", SPACE, "stack", base), effort)


def test_outs_are_the_same_bytes_in_two_runs(inputs: Path, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    write_params(params, n_trials=10, candidates=["same", "images"])
    out = run_tune(inputs, tmp_path, params)
    assert sorted(path.name for path in out.iterdir()) == [
        "best_params.yaml", "manifest.json", "members.yaml", "predictions.parquet", "study.json", "trials.csv",
    ]  # fmt: skip
    assert not list((tmp_path / "state" / "tune").iterdir())
    trials = pl.read_csv(out / "trials.csv")
    folds = ["forward_0", "forward_1", "group_0", "group_1", "group_2"]
    assert trials.columns == ["number", "name", "state", "value", *sorted(SPACE), *folds]
    assert trials["number"].to_list() == list(range(12))
    assert trials["name"].to_list() == ["same", "images", *[None] * 10]
    assert (trials["state"] == "PRUNED").any()
    for row in trials.iter_rows(named=True):
        seen = [row[fold] for fold in folds if row[fold] is not None]
        schemes = [seen[:2], *([seen[2:]] if seen[2:] else [])]  # two splits, three folds by user
        assert row["value"] == pytest.approx(np.mean([np.mean(own) for own in schemes]))
        assert (row["state"] == "COMPLETE") == (len(seen) == len(folds))
    study = json.loads((out / "study.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in study["registered"]] == ["same", "images"]
    assert study["registered"][1]["params"]["columns.feature_blocks"] == ["image"]
    assert study["best"]["value"] == trials.filter(state="COMPLETE")["value"].min() == study["history"][-1]["best"]
    assert study["space"] == SPACE
    assert set(study["importance"]) == set(SPACE)
    assert sum(study["importance"].values()) == pytest.approx(1, abs=1e-4)
    members = read_yaml(out / "members.yaml")
    assert 1 <= len(members) <= 2
    completed = trials.filter(state="COMPLETE")
    for (name, values), one in zip(members.items(), study["members"], strict=True):
        (row,) = completed.filter(number=one["trial"]).to_dicts()
        assert name == one["name"] == (row["name"] or f"trial_{row['number']}")
        assert values["lightgbm.num_leaves"] == row["lightgbm.num_leaves"]
        assert set(values) == set(SPACE)
    predictions = read_table(out / "predictions.parquet", TRIAL_PREDICTIONS)
    splits = read_table(inputs / "splits.parquet", FOLDS).filter(scheme="forward", role="valid")
    assert predictions["trial"].unique().sort().to_list() == completed["number"].to_list()
    assert predictions.height == completed.height * splits.height
    assert tree_bytes(run_tune(inputs, tmp_path / "again", params)) == tree_bytes(out)


def finished_of(state: Path) -> int:
    """Finished trials in the database that a running stage writes."""
    for file in state.rglob("study.db"):
        try:
            with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=5)) as database:
                rows = database.execute("select count(*) from trials where state in ('COMPLETE', 'PRUNED')").fetchone()
                return int(rows[0])
        except sqlite3.OperationalError:
            return 0  # the tables are being made
    return 0


def test_killed_at_three_random_moments_the_table_is_that_of_an_undisturbed_run(inputs: Path, tmp_path: Path) -> None:
    trials = 26  # 16 past the random ones that TPE starts with
    params = tmp_path / "params.yaml"
    write_params(params, n_trials=trials - 1)
    undisturbed = run_tune(inputs, tmp_path / "whole", params)
    rng = np.random.default_rng(20)
    moments = np.sort(rng.choice(np.arange(1, trials - 2), 3, replace=False))
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "stages.tune", *tune_flags(inputs, out, params)]
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'src'}{os.pathsep}{REPOSITORY}"}
    for moment in moments:
        with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and finished_of(out / "state") < moment:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert not (out / "tuning").exists()
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert tree_bytes(out / "tuning") == tree_bytes(undisturbed)
    study = json.loads((undisturbed / "study.json").read_text(encoding="utf-8"))
    table = pl.read_csv(out / "tuning/trials.csv")
    assert study["best"]["number"] >= 1
    assert study["best"]["value"] < table["value"][0]
    states = table["state"].value_counts(sort=True).rows()
    best = study["best"]["number"]
    print(f"killed after {moments} of {trials} trials, then the table of an undisturbed run: {states}, best {best}")


def test_the_best_value_is_that_of_its_parameters_scored_again(inputs: Path, tmp_path: Path) -> None:
    """A fresh objective has encoded no fold before; the trial before it shares nothing with it."""
    write_params(tmp_path / "params.yaml", n_trials=7)
    params = load_params("tune", objectives.TuneParams, tmp_path / "params.yaml")
    search, make_objective = objectives.stack_search(params, SMALL, list(SPACE), small_objective(inputs).inputs)
    best = best_of(run_search(search, make_objective, state=tmp_path))
    assert best is not None
    assert best.number > 0
    *_, step = make_objective()(best.values)
    assert step == Step(best.value, best.metrics)


def test_labels_that_are_all_the_same_leave_nothing_to_divide_by(tmp_path: Path) -> None:
    posts, blocks = posts_with_signal(6, train=120, test=30, users=40)
    write_inputs(tmp_path, posts.with_columns(label=pl.when(pl.col("split") == "train").then(5.0)), blocks)
    params = tmp_path / "params.yaml"
    write_params(params, n_trials=1)
    study = json.loads((run_tune(tmp_path, tmp_path / "out", params) / "study.json").read_text(encoding="utf-8"))
    assert study["best"]["value"] == pytest.approx(0, abs=1e-3)


def loss_of(label: Any, prediction: Any, train_label: Any) -> float:
    """MAE relative to that of the median, minus SRC, from its own words."""
    order = spearman(label, prediction)
    assert order is not None
    return float(np.abs(label - prediction).mean() / np.abs(label - np.median(train_label)).mean() - order)


def mean_of(losses: list[float]) -> float:
    return float(np.mean([np.mean(losses[:2]), np.mean(losses[2:])]))  # two splits, three folds by user


@pytest.fixture(scope="module")
def asked(inputs: Path) -> tuple[StackObjective, Step]:
    """An objective for several trials one after another, and what its first one, the default, is worth."""
    objective = small_objective(inputs, effort=Effort(n_seeds=2, max_train_rows=0, learning_rate_factor=1.0))
    scalars = objective.blocks.scalars
    statistics = pl.Series(np.random.default_rng(8).random(scalars.height), dtype=pl.Float32)
    objective.blocks = replace(
        objective.blocks, scalars=scalars.with_columns(statistics.alias("image_statistics.text"))
    )
    *_, default = objective(objective.space.default)
    return objective, default


@pytest.mark.parametrize(
    "change",
    [
        {}, {"target_transform": "rank_gauss"}, {"columns.feature_blocks": ["image", "metadata"]},
        {"columns.feature_blocks": ["prototype"]}, {"sample_weight_half_life_days": 100.0},
        {"row_selection.fraction": 0.7}, {"row_selection.fraction": 0.6}, {"learners": ["lightgbm", "linear"]},
        {"detrend": "linear"}, {"columns.feature_groups": ["image", "rhythm", "neighbours"]},
        {"columns.feature_blocks": ["image", "metadata"], "columns.feature_groups": ["image", "rhythm", "neighbours"]},
    ],
    ids=lambda change: " ".join(map(str, change.values())) or "default",
)  # fmt: skip
def test_a_trial_is_worth_what_the_stage_would_score_with_its_effort(
    asked: tuple[StackObjective, Step], change: dict[str, Any]
) -> None:
    """The columns that trials share are those that the stage encodes for the trial alone."""
    objective, default = asked
    *_, step = objective({**objective.space.default, **change})
    params = replace(objective.space.apply(change), n_seeds=2)
    labels = dict(objective.posts.select("pid", "label").iter_rows())
    losses = []
    for fold in objective.folds:
        predicted = fit_and_predict(fold, objective.blocks, params).group_by("pid").agg(pl.col("prediction").mean())
        valid = fold.valid.select("pid").join(predicted, on="pid", maintain_order="left")["prediction"].to_numpy()
        losses.append(loss_of(np.array([labels[pid] for pid in fold.valid["pid"]]), valid, fold.label))
    assert list(step.metrics.values()) == pytest.approx(losses, abs=1e-12)
    assert step.value == pytest.approx(mean_of(losses), abs=1e-12)
    assert (step.value == default.value) == (change == {})


def test_search_and_stage_differ_in_effort_alone(inputs: Path) -> None:
    params = replace(SMALL, n_seeds=3, learners=("lightgbm", "catboost"))
    assert Effort.full(params).apply(params) == params
    cheap = Effort(n_seeds=1, max_train_rows=0, learning_rate_factor=2.0).apply(params)
    boosted = ("lightgbm", "extra_trees", "catboost")
    rates = {name: replace(getattr(params, name), learning_rate=0.4) for name in boosted}
    assert cheap == replace(
        params,
        n_seeds=1,
        num_boost_round=params.num_boost_round // 2,
        early_stopping_rounds=params.early_stopping_rounds // 2,
        **rates,
    )
    objective = small_objective(inputs, effort=Effort(n_seeds=1, max_train_rows=0, learning_rate_factor=2.0))
    *_, step = objective(objective.space.default)
    faster = replace(SMALL, lightgbm=replace(SMALL.lightgbm, learning_rate=SMALL.lightgbm.learning_rate * 2))
    faster = replace(
        faster, num_boost_round=SMALL.num_boost_round // 2, early_stopping_rounds=SMALL.early_stopping_rounds // 2
    )
    same_objective = small_objective(inputs, faster)
    *_, same = same_objective(same_objective.space.default)
    assert step == same


def test_a_search_may_fit_fewer_rows(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cap holds: no learner, no encoder and no baseline of a trial is given another row of its fold."""
    effort = Effort(n_seeds=1, max_train_rows=40, learning_rate_factor=1.0)
    objective = small_objective(inputs, effort=effort)
    encoded: list[Fold] = []
    fitted: list[tuple[str, ...]] = []
    original = lightgbm.learn

    def encode(fold: Fold, blocks: Blocks, params: StackParams) -> EncodedFold:
        encoded.append(fold)
        return encode_fold(fold, blocks, params)

    def learn(sample: Sample, *given: Any) -> Learned:
        fitted.append(tuple(sample.matrix.pids))
        return original(sample, *given)

    monkeypatch.setattr(objectives, "encode_fold", encode)
    monkeypatch.setattr(lightgbm, "learn", learn)
    *_, few = objective(objective.space.default)
    assert [fold.key for fold in encoded] == [fold.key for fold in objective.folds]
    for whole, fold, pids in zip(objective.folds, encoded, fitted, strict=True):
        assert len(whole.label) > len(fold.label) == fold.train.height == len(pids) == 40
        assert pids == tuple(fold.train["pid"])
        assert set(pids) <= set(whole.train["pid"])
        assert fold.valid.equals(whole.valid)
    *_, all_rows = small_objective(inputs)(small_objective(inputs).space.default)
    assert few.value != all_rows.value


def test_of_many_rows_a_search_takes_the_latest_and_whole_users(inputs: Path) -> None:
    whole = small_objective(inputs).folds[0]
    fold = Effort(n_seeds=1, max_train_rows=60, learning_rate_factor=1.0).of_fold(whole, seed=3)
    pids = fold.train["pid"].to_list()
    assert pids == sorted(pids)
    order = np.argsort(whole.posted_at, kind="stable")
    latest, earlier = whole.train[order[-30:]], whole.train[order[:-30]]
    assert set(latest["pid"]) <= set(pids)
    drawn = earlier.filter(pl.col("pid").is_in(pids))
    assert drawn.height == 30
    counts = drawn.group_by("uid").len().join(earlier.group_by("uid").len(name="all"), on="uid", how="left")
    assert counts.filter(pl.col("len") < pl.col("all")).height <= 1  # the last one drawn
    labels = dict(zip(whole.train["pid"], zip(whole.label, whole.posted_at, strict=True), strict=True))
    assert [labels[pid] for pid in pids] == list(zip(fold.label, fold.posted_at, strict=True))
    again, other = (Effort(1, 60, 1.0).of_fold(whole, seed) for seed in (3, 4))
    assert again.train.equals(fold.train)
    assert not other.train.equals(fold.train)
    assert Effort(1, len(whole.label), 1.0).of_fold(whole, 3) is whole


def test_a_trial_of_the_stage_s_effort_predicts_what_the_stage_predicts(inputs: Path, tmp_path: Path) -> None:
    """The predictions that choose the members are those of the members as stage stack fits them."""
    params = tmp_path / "params.yaml"
    write_params(params, n_trials=1, candidates=["same", "ranks"], n_members=3)
    out = run_tune(inputs, tmp_path, params)
    fitted = run_stack(inputs, tmp_path, params, out / "members.yaml")
    trials = read_table(out / "predictions.parquet", TRIAL_PREDICTIONS)
    members = json.loads((out / "study.json").read_text(encoding="utf-8"))["members"]
    assert members
    for one in members:
        own = fitted.filter(scheme="forward", model=one["name"]).select("fold", "pid", "prediction").sort("fold", "pid")
        assert own.equals(trials.filter(trial=one["trial"]).select("fold", "pid", "prediction"))


def test_a_finished_fit_of_a_trial_is_not_fitted_again(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two configurations of the same values share fits, and a killed trial goes on after its last finished fold."""
    objective = small_objective(inputs)
    objective.state = tmp_path
    steps = list(objective(objective.space.default))
    monkeypatch.setattr(objectives, "fit_fold", None)
    again = small_objective(inputs)
    again.state = tmp_path
    assert list(again(again.space.default)) == steps
    with pytest.raises(TypeError):
        next(again({**again.space.default, "lightgbm.num_leaves": 2}))


def test_without_a_fold_no_trial_is_scored(inputs: Path, tmp_path: Path) -> None:
    splits = read_table(inputs / "splits.parquet", FOLDS).filter(pl.col("scheme") != "forward")
    write_table(splits, tmp_path / "splits.parquet", FOLDS)
    objective = small_objective(inputs)
    paths = replace(objective.inputs, splits=tmp_path / "splits.parquet")
    with pytest.raises(DataError, match=r"no fold of forward, so no trial has a loss"):
        next(StackObjective(paths, ("forward",), objective.space, FULL)(objective.space.default))


def test_linear_algebra_takes_no_more_threads_than_the_trees(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, fit = [], MatrixEncoder.fit

    def spy(*args: Any) -> Any:
        found.append({library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"})
        return fit(*args)

    monkeypatch.setattr(MatrixEncoder, "fit", spy)
    objective = small_objective(inputs, replace(SMALL, num_threads=1))
    with threadpool_limits(2, user_api="blas"):
        next(objective(objective.space.default))
    assert found == [{1}]


def test_folds_are_encoded_once_and_not_kept_beyond_the_limit(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = small_objective(inputs)
    default = objective.space.default
    *_, first = objective(default)
    assert len(objective.encoded) == objective.steps
    encoded = dict(objective.encoded)
    *_, other = objective({**default, "columns.feature_blocks": ["image"]})
    assert len(objective.encoded) == objective.steps
    assert all(objective.encoded[key] is fold for key, fold in encoded.items())
    assert other.value != first.value
    largest = max(fold.nbytes for fold in encoded.values())
    monkeypatch.setattr(objectives, "MAX_CACHE_BYTES", 2 * largest)
    tight = small_objective(inputs)
    *_, again = tight(default)
    assert again == first
    kept = dict(tight.encoded)
    assert 0 < len(kept) < tight.steps
    *_, once_more = tight(default)
    assert once_more == first
    assert tight.encoded == kept


def test_labels_of_the_report_rows_change_nothing(inputs: Path, tmp_path: Path) -> None:
    splits, posts = read_table(inputs / "splits.parquet", FOLDS), read_table(inputs / "posts.parquet", POSTS)
    scored = splits.filter(scheme="holdout", role="valid")["pid"]
    turned = pl.when(pl.col("pid").is_in(scored.implode())).then(20 - pl.col("label")).otherwise(pl.col("label"))
    other = tmp_path / "other"
    other.mkdir()
    for name in ("splits.parquet", "images.parquet", "params.yaml", "image", "text", "prototype"):
        (other / name).symlink_to(inputs / name)
    write_table(posts.with_columns(label=turned), other / "posts.parquet", POSTS)
    given = {name: other / f"{name}.parquet" for name in ("posts", "splits", "images")}
    out = {"params": other / "params.yaml", "out": other / "features"}
    out |= {"summary": other / "target_statistics.json", "resources": other / "f.json"}
    featurize.main(flags({**given, **out}))
    before, after = run_tune(inputs, tmp_path / "before"), run_tune(other, tmp_path / "after")
    for name in ("trials.csv", "members.yaml", "study.json", "predictions.parquet"):
        assert (after / name).read_bytes() == (before / name).read_bytes()


def test_a_single_trial_is_the_member_and_nothing_is_fitted(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = tmp_path / "params.yaml"
    monkeypatch.setattr(objectives, "fit_fold", None)
    write_params(params, n_trials=0)
    out = run_tune(inputs, tmp_path, params)
    assert list(read_yaml(out / "members.yaml")) == ["start"]
    assert load_members(params, out / "members.yaml") == {"start": SMALL}
    assert pl.read_csv(out / "trials.csv").columns == ["number", "name", "state", "value", *sorted(SPACE)]
    assert read_table(out / "predictions.parquet", TRIAL_PREDICTIONS).is_empty()
    write_params(params, n_trials=0, candidates=["images"])
    assert list(read_yaml(run_tune(inputs, tmp_path, params) / "members.yaml")) == ["images"]


def test_the_patch_keeps_what_the_search_found(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = tmp_path / "params.yaml"
    write_params(params, n_trials=1, candidates=["same", "images"])
    out = run_tune(inputs, tmp_path, params)
    best = json.loads((out / "study.json").read_text(encoding="utf-8"))["best"]["params"]
    set_profile(["--patch", str(out / "best_params.yaml"), "--params", str(params)])
    assert not searched_keys(read_yaml(params))
    monkeypatch.setattr(objectives, "fit_fold", None)
    after = run_tune(inputs, tmp_path / "after", params)
    ((_, values),) = load_members(params, after / "members.yaml").items()
    fitted = {".".join(key): value for key, value in leaves(json.loads(json.dumps(asdict(values)))).items()}
    assert {key: fitted[key] for key in best} == best


def run_stack(inputs: Path, out: Path, params: Path, members: Path | None = None) -> pl.DataFrame:
    own = {"params": params, "predictions": out / "stack", "models": out / "models"}
    own |= {"resources": out / "stack.json", "state": out / "state"} | ({"members": members} if members else {})
    stack.main([*input_flags(inputs), *flags(own)])
    return read_table(out / "stack" / "predictions.parquet", PREDICTIONS)


def test_an_explicit_value_of_the_stack_is_fitted_by_every_member(inputs: Path, tmp_path: Path) -> None:
    """63 leaves are outside the search's range; the search of the other keys goes on."""
    params = tmp_path / "params.yaml"
    write_params(params, {"lightgbm.num_leaves": 63}, n_trials=2, candidates=["ranks", "same"])
    out = run_tune(inputs, tmp_path, params)
    run_stack(inputs, tmp_path, params, out / "members.yaml")
    members = read_yaml(out / "members.yaml")
    assert members
    for name in members:
        model = StackModel.load(tmp_path / "models" / name)
        assert {booster.params["num_leaves"] for booster in model.models["lightgbm"]} == {63}
    assert "lightgbm.num_leaves" not in pl.read_csv(out / "trials.csv").columns


def test_the_stack_fits_each_member_as_if_alone(inputs: Path, tmp_path: Path) -> None:
    """Members share columns; the predictions are those of each by itself."""
    params = tmp_path / "params.yaml"
    write_params(params)
    values: dict[str, dict[str, Any]] = {
        "a": {"columns.feature_blocks": ["metadata", "image"], "columns.feature_groups": ["rhythm"]},
        "b": {"lightgbm.num_leaves": 3},
        "c": {},
        "d": {"columns.uid_category": True},
    }
    write_members(values, tmp_path / "members.yaml")
    both = run_stack(inputs, tmp_path / "both", params, tmp_path / "members.yaml")
    for name, own in values.items():
        write_members({name: own}, tmp_path / "one.yaml")
        alone = run_stack(inputs, tmp_path / name, params, tmp_path / "one.yaml")
        alone = alone.filter((pl.col("scheme") != "group") | (name == next(iter(values))))
        assert both.filter(model=name).equals(alone.filter(model=name))
    by_value = run_stack(inputs, tmp_path / "without", params)
    by_value = by_value.filter(pl.col("scheme") != "group")
    assert by_value.filter(model="stack")["prediction"].equals(both.filter(model="c")["prediction"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"schemes": ["forward", "holdout"]},
            r"tune\.schemes\.1: Input should be 'forward' or 'group', found 'holdout'",
        ),
        ({"schemes": []}, r"tune\.schemes"),
        ({"n_trials": -1}, r"tune\.n_trials"),
        ({"space": {"lightgbm.leaves": SPACE["lightgbm.num_leaves"]}}, r"tune\.space\.lightgbm\.leaves"),
        ({"space": {"n_seeds": {"choices": [1, 2]}}}, r"tune\.space\.n_seeds: no trial reads stack\.n_seeds"),
    ],
)
def test_bad_parameters_are_named(inputs: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    params = tmp_path / "params.yaml"
    write_params(params, **change)
    with pytest.raises(ConfigError, match=message):
        run_tune(inputs, tmp_path, params)


def project(inputs: Path, folder: Path, **changes: Any) -> Path:
    """The inputs where dvc.yaml puts them."""
    for name in ("posts.parquet", "splits.parquet"):
        (folder / "data/interim").mkdir(parents=True, exist_ok=True)
        (folder / "data/interim" / name).symlink_to(inputs / name)
    embeddings = folder / "data/embeddings"
    for name, path in {"image": "stack/image", "text": "stack/text", "prototype": "prototype"}.items():
        (embeddings / path).parent.mkdir(parents=True, exist_ok=True)
        (embeddings / path).symlink_to(inputs / name)
    (folder / "data/features").symlink_to(inputs / "features")
    write_params(folder / "params.yaml", **changes)
    return folder


def test_a_worker_joins_from_another_copy_of_the_project(inputs: Path, tmp_path: Path) -> None:
    """It runs what the stage has not, under the study's name; the stage then writes the result of both."""
    storage = f"journal:{tmp_path / 'journal'}"
    elsewhere = project(inputs, tmp_path / "elsewhere", n_trials=4, storage=storage)
    with pytest.raises(Exception, match=r"no study stack-.*\n.*expected: .*same parameters, inputs and code"):
        join(["--folder", str(elsewhere)])
    params = load_params("tune", objectives.TuneParams, elsewhere / "params.yaml")
    search, _ = objectives.stack_search(params, SMALL, list(SPACE), StackInputs.below(elsewhere))
    study = open_study(search.name, storage, tmp_path, create=True)
    join(["--folder", str(elsewhere)])
    trials = finished_trials(study, search)
    assert len(trials) == 5
    out = run_tune(inputs, tmp_path / "here", elsewhere / "params.yaml")
    assert pl.read_csv(out / "trials.csv")["value"].to_list() == [trial.value for trial in trials]


def test_a_worker_cannot_join_the_stage_s_own_file(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"tune.storage is {SQLITE}"):
        join(["--folder", str(project(inputs, tmp_path / "project"))])


def test_other_inputs_or_parameters_have_a_study_of_their_own(inputs: Path, tmp_path: Path) -> None:
    folder = project(inputs, tmp_path / "project")
    params, paths = load_params("tune", objectives.TuneParams, folder / "params.yaml"), StackInputs.below(folder)

    def name(params: objectives.TuneParams, stack: StackParams, paths: StackInputs) -> str:
        searched = [key for key in SPACE if key in params.space]
        return objectives.stack_search(params, stack, searched, paths)[0].name

    own = name(params, SMALL, paths)
    assert name(replace(params, n_trials=99, timeout_hours=1.0, storage="journal:x"), SMALL, paths) == own
    assert name(replace(params, seed=9), SMALL, paths) != own
    assert name(replace(params, schemes=("group",)), SMALL, paths) != own
    assert name(params, replace(SMALL, early_stopping_rounds=9), paths) != own
    assert name(params, SMALL, replace(paths, posts=paths.splits)) != own
    assert name(replace(params, effort=replace(params.effort, learning_rate_factor=3.0)), SMALL, paths) != own
    fewer = {key: axis for key, axis in params.space.items() if key != "lightgbm.num_leaves"}
    starts = {key: value for key, value in params.start.items() if key in fewer}
    named: dict[str, dict[str, Any]] = {"same": {}}
    assert name(replace(params, space=fewer, start=starts, configurations=named), SMALL, paths) != own
    assert name(replace(params, candidates=("images",)), SMALL, paths) != own
