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
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import polars as pl
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from popularity.core.config import load_params, read_yaml
from popularity.core.contracts import FOLDS, POSTS, PREDICTIONS, read_table, write_table
from popularity.core.errors import ConfigError
from popularity.core.metrics import mean_absolute_error, spearman
from popularity.stack import StackParams
from popularity.stack.fit import fit_model
from popularity.stack.lightgbm import lightgbm_params
from popularity.stack.matrix import MatrixEncoder
from popularity.stack.row_selection import kept_rows
from popularity.stack.sample import recency_sample_weight
from popularity.target.rank_gauss import RankGauss
from popularity.target.trend import Trend
from popularity.tuning import objective as objectives
from popularity.tuning.objective import StackInputs, StackObjective, best_rounds
from popularity.tuning.results import best_of
from popularity.tuning.space import Space
from popularity.tuning.storage import SQLITE, open_study
from popularity.tuning.study import Step, finished_trials, run_search
from popularity.tuning.worker import main as join
from popularity.validation import rows_of
from popularity.validation.folds import load_fold
from stages import featurize, stack
from tests.stack.small_stack import posts_with_signal, tree_bytes
from tests.tuning.small_tune import SMALL, SPACE, flags, input_flags, run_tune, tune_flags, write_inputs, write_params

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tune")
    write_inputs(root, *posts_with_signal(6, train=300, test=60, users=100))
    return root


def small_objective(inputs: Path, base: StackParams = SMALL) -> StackObjective:
    paths = StackInputs(
        *(inputs / name for name in ("posts.parquet", "splits.parquet", "features", "image", "text", "prototype"))
    )
    return StackObjective(paths, ("forward", "group"), Space.parse("tune.space", SPACE, "stack", base))


def test_outs_are_the_same_bytes_in_two_runs(inputs: Path, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    write_params(params, n_trials=12)
    out = run_tune(inputs, tmp_path, params)
    assert sorted(path.name for path in out.iterdir()) == [
        "best_params.yaml", "manifest.json", "study.json", "trials.csv",
    ]  # fmt: skip
    assert not list((tmp_path / "state" / "tune").iterdir())
    trials = pl.read_csv(out / "trials.csv")
    folds = ["forward_0", "forward_1", "group_0", "group_1", "group_2"]
    assert trials.columns == ["number", "state", "value", *sorted(SPACE), "rounds", "lightgbm", *folds]
    assert trials["number"].to_list() == list(range(12))
    assert (trials["state"] == "PRUNED").any()
    for row in trials.iter_rows(named=True):
        seen = [row[fold] for fold in folds if row[fold] is not None]
        schemes = [seen[:2], *([seen[2:]] if seen[2:] else [])]  # two splits, three folds by user
        assert row["value"] == pytest.approx(np.mean([np.mean(own) for own in schemes]))
        assert (row["state"] == "COMPLETE") == (len(seen) == len(folds))
    study = json.loads((out / "study.json").read_text(encoding="utf-8"))
    assert study["default"] == {"number": 0, "value": trials["value"][0], "params": study["default"]["params"]}
    assert study["best"]["value"] == trials.filter(state="COMPLETE")["value"].min() == study["history"][-1]["best"]
    assert study["space"] == SPACE
    assert set(study["importance"]) == set(SPACE)
    assert sum(study["importance"].values()) == pytest.approx(1, abs=1e-4)
    tuned = read_yaml(out / "best_params.yaml")["stack"]
    assert tuned["lightgbm"]["num_leaves"] == study["best"]["params"]["lightgbm.num_leaves"]
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
    write_params(params, n_trials=trials)
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
    assert study["best"]["number"] >= 1
    assert study["best"]["value"] < study["default"]["value"]
    states = pl.read_csv(out / "tuning/trials.csv")["state"].value_counts(sort=True).rows()
    best = study["best"]["number"]
    print(f"killed after {moments} of {trials} trials, then the table of an undisturbed run: {states}, best {best}")


def test_the_best_value_is_that_of_its_parameters_scored_again(inputs: Path, tmp_path: Path) -> None:
    """A fresh objective has encoded no fold before; the trial before it shares nothing with it."""
    write_params(tmp_path / "params.yaml", n_trials=8)
    params = load_params("tune", objectives.TuneParams, tmp_path / "params.yaml")
    search, make_objective = objectives.stack_search(params, SMALL, small_objective(inputs).inputs)
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


def separate_fits(objective: StackObjective, params: StackParams, inputs: Path) -> tuple[int, float]:
    """Rounds and value of a trial, from data sets made for it alone; the bins are those of all train rows."""
    posts, blocks = objective.posts, objective.blocks
    labels = dict(posts.select("pid", "label").iter_rows())
    fitted, curves = [], []
    for key, rows in rows_of(read_table(inputs / "splits.parquet", FOLDS), ["forward", "group"]):
        fold = load_fold(key, rows, posts, inputs / "features")
        level = Trend.fit(fold.posted_at, fold.label, params.detrend)
        rest = level.detrend(fold.label, fold.posted_at)
        encoder, matrix = MatrixEncoder.fit(fold.fit, rest, blocks, params.columns)
        kept = kept_rows(list(matrix.pids), blocks.scalars, params.row_selection, params.seed)
        target = RankGauss.fit(rest[kept], params.target_transform)
        how: dict[str, Any] = {
            "feature_name": list(matrix.names),
            "categorical_feature": list(matrix.categorical),
            "params": {
                "max_bin": params.lightgbm.max_bin,
                "seed": params.seed,
                "feature_pre_filter": False,
                "verbosity": -1,
            },
        }
        data = lgb.Dataset(
            matrix.values[kept],
            target.apply(rest[kept]),
            weight=recency_sample_weight(fold.posted_at[kept], params.sample_weight_half_life_days),
            reference=None if kept.all() else lgb.Dataset(matrix.values, fold.label, **how),
            **how,
        )
        booster = lgb.train(lightgbm_params(params, params.seed), data, params.num_boost_round)
        scored = encoder.apply(fold.score, blocks)
        truth = np.array([labels[pid] for pid in scored.pids])
        predictions = [
            level.retrend(
                target.invert(np.asarray(booster.predict(scored.values, num_iteration=rounds))), fold.scored_at
            )
            for rounds in range(1, params.num_boost_round + 1)
        ]
        if level.shifts:  # the error is that after the best shift
            predictions = [predicted + np.median(truth - predicted) for predicted in predictions]
        curve = [mean_absolute_error(truth, predicted) for predicted in predictions]
        stopped = [
            index
            for index in range(len(curve))
            if index - int(np.argmin(curve[: index + 1])) == params.early_stopping_rounds
        ]
        curves.append(np.array(curve[: stopped[0] + 1] if stopped else curve))
        fitted.append((fold, predictions, truth))
    rounds = best_rounds(curves)
    worths: dict[str, list[float]] = {"forward": [], "group": []}
    for (fold, predictions, truth), errors in zip(fitted, curves, strict=True):
        predicted = predictions[min(rounds, len(errors)) - 1]
        constant = np.abs(truth - np.median(fold.label)).mean()
        src = spearman(truth, predicted)
        assert src is not None
        worths[fold.key.scheme].append(float(np.abs(truth - predicted).mean() / constant - src))
    return rounds, float(np.mean([np.mean(own) for own in worths.values()]))


def test_a_trial_is_worth_what_separate_fits_are_worth(inputs: Path) -> None:
    """Target, kept rows, weights and columns of the shared data are the trial's own."""
    # Few rounds: later, bins that were copied and not made may settle a tie between splits in another way.
    objective = small_objective(inputs, replace(SMALL, num_boost_round=8))
    default = objective.space.default
    found = []
    for change in (
        {}, {"target_transform": "rank_gauss"}, {"columns.feature_blocks": ["metadata", "image"]},
        {"sample_weight_half_life_days": 100.0}, {"row_selection.fraction": 0.7},
    ):  # fmt: skip
        *_, step = objective({**default, **change})
        rounds, value = separate_fits(objective, objective.space.apply(change), inputs)
        assert step.metrics["rounds"] == rounds
        assert step.value == pytest.approx(value, abs=1e-9)
        found.append(step.value)
    assert min(abs(one - other) for one, other in combinations(found, 2)) > 0.001
    levelled = replace(SMALL, num_boost_round=8, detrend="linear")
    *_, step = small_objective(inputs, levelled)(default)
    rounds, value = separate_fits(objective, levelled, inputs)
    assert step.metrics["rounds"] == rounds
    assert step.value == pytest.approx(value, abs=1e-9)
    assert step.value not in found


def test_other_learners_count_as_the_stage_fits_them_at_the_weights_of_the_least_error(inputs: Path) -> None:
    base = replace(SMALL, num_boost_round=8, detrend="none", learners=("lightgbm", "linear"))
    objective, alone = small_objective(inputs, base), small_objective(inputs, replace(base, learners=("lightgbm",)))
    values = {**objective.space.default, "columns.feature_blocks": ["metadata", "image"], "lightgbm.num_leaves": 3}
    *_, step = objective(values)
    *_, plain = alone(values)
    params = objective.space.apply(values)
    pairs, constants = [], []
    for index, fold in enumerate(objective.folds):
        ridge = fit_model(fold, objective.blocks, params.columns, replace(params, learners=("linear",)), "ridge")
        linear = ridge.predict(fold.score, objective.blocks, fold.scored_at).values
        pairs.append((alone._fit(index, params).predict(int(plain.metrics["rounds"]))[0], linear))
        constants.append(np.abs(objective.labels[index] - np.median(fold.label)).mean())

    def mean(own: list[float]) -> float:
        return float(np.mean([np.mean(own[:2]), np.mean(own[2:])]))  # two splits, three folds by user

    def errors(weight: float) -> list[float]:
        averaged = [weight * trees + (1 - weight) * linear for trees, linear in pairs]
        return [mean_absolute_error(label, own) for label, own in zip(objective.labels, averaged, strict=True)]

    weight = min(np.arange(20, -1, -1) / 20, key=lambda weight: round(mean(errors(weight)), 12))
    assert 0 < weight < 1
    assert step.metrics["lightgbm"] == weight
    assert step.metrics["rounds"] == plain.metrics["rounds"]
    assert plain.metrics["lightgbm"] == 1
    orders = [
        spearman(label, weight * trees + (1 - weight) * linear)
        for label, (trees, linear) in zip(objective.labels, pairs, strict=True)
    ]
    worths = [
        error / constant - (order or 0.0)
        for error, constant, order in zip(errors(weight), constants, orders, strict=True)
    ]
    assert step.value == pytest.approx(mean(worths), abs=1e-9)


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


def test_folds_are_encoded_once_and_dropped_beyond_the_limit(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = small_objective(inputs)
    default = objective.space.default
    *_, first = objective(default)
    assert len(objective.binned) == objective.steps * len(SPACE["columns.feature_blocks"]["choices"])
    binned = dict(objective.binned)
    *_, other = objective({**default, "columns.feature_blocks": ["image"]})
    assert all(objective.binned[key] is fold for key, fold in binned.items())
    assert other.value != first.value
    monkeypatch.setattr(objectives, "MAX_CACHE_BYTES", 0)
    *_, again = objective(default)
    assert again == first
    assert len(objective.binned) == 1


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
    for name in ("trials.csv", "best_params.yaml", "study.json"):
        assert (after / name).read_bytes() == (before / name).read_bytes()


def test_rounds_are_those_of_the_least_mean_error() -> None:
    assert best_rounds([np.array([3.0, 2.0, 1.0, 2.0])]) == 3
    assert best_rounds([np.array([3.0, 2.0, 1.0, 2.0]), np.array([1.0, 2.0])]) == 3  # ends at 2: 2.0, 2.0, 1.5, 2.0


def test_no_trials_leave_the_stack_as_it_is(inputs: Path, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    elsewhere = {"low": 60, "high": 63, "log": True, "integer": True}  # what is fitted as given may lie outside
    write_params(params, n_trials=0, space={**SPACE, "lightgbm.num_leaves": elsewhere})
    out = run_tune(inputs, tmp_path, params)
    assert read_yaml(out / "best_params.yaml") == {}
    assert pl.read_csv(out / "trials.csv").columns == ["number", "state", "value"]
    assert load_params("stack", StackParams, params, out / "best_params.yaml") == SMALL


def run_stack(inputs: Path, out: Path, *more: str) -> pl.DataFrame:
    own = {"params": inputs / "params.yaml", "predictions": out / "stack", "models": out / "models"}
    stack.main([*input_flags(inputs), *flags({**own, "resources": out / "stack.json", "state": out / "state"}), *more])
    return read_table(out / "stack" / "predictions.parquet", PREDICTIONS)


def test_the_stack_takes_the_tuned_values(inputs: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "best_params.yaml"
    tuned.write_text("stack: {lightgbm: {num_leaves: 3}, columns: {feature_blocks: [image]}}\n", encoding="utf-8")
    changed = run_stack(inputs, tmp_path / "tuned", "--tuned", str(tuned))
    by_hand = tmp_path / "by_hand"
    by_hand.mkdir()
    for file in inputs.iterdir():
        (by_hand / file.name).symlink_to(file)
    (by_hand / "params.yaml").unlink()
    content = json.loads((inputs / "params.yaml").read_text(encoding="utf-8"))
    content["stack"]["lightgbm"]["num_leaves"], content["stack"]["columns"]["feature_blocks"] = 3, ["image"]
    (by_hand / "params.yaml").write_text(json.dumps(content), encoding="utf-8")
    assert run_stack(by_hand, tmp_path / "as_params").equals(changed)
    empty = tmp_path / "empty.yaml"
    empty.write_text("{}\n", encoding="utf-8")
    untuned = run_stack(inputs, tmp_path / "empty", "--tuned", str(empty))
    assert untuned.equals(run_stack(inputs, tmp_path / "without"))
    assert not untuned.equals(changed)


def test_a_tuned_key_that_the_stack_lacks_is_an_error(inputs: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "best_params.yaml"
    tuned.write_text("stack: {lightgbm: {num_leafs: 3}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"params\.yaml with .*best_params\.yaml: .*\n.*num_leafs: unknown key"):
        load_params("stack", StackParams, inputs / "params.yaml", tuned)


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
        ({"space": {}}, r"search space of section 'stack' is empty"),
    ],
)
def test_bad_parameters_are_named(inputs: Path, tmp_path: Path, change: dict[str, object], message: str) -> None:
    params = tmp_path / "params.yaml"
    write_params(params, **change)
    with pytest.raises(ConfigError, match=message):
        run_tune(inputs, tmp_path, params)


def project(inputs: Path, folder: Path, **changes: object) -> Path:
    """The inputs where dvc.yaml puts them."""
    for name in ("posts.parquet", "splits.parquet"):
        (folder / "data/interim").mkdir(parents=True, exist_ok=True)
        (folder / "data/interim" / name).symlink_to(inputs / name)
    (folder / "data/embeddings").mkdir()
    for name in ("image", "text", "prototype"):
        (folder / "data/embeddings" / name).symlink_to(inputs / name)
    (folder / "data/features").symlink_to(inputs / "features")
    (folder / "models/selection").mkdir(parents=True)
    (folder / "models/selection/choice.yaml").write_text("{}\n", encoding="utf-8")
    write_params(folder / "params.yaml", **changes)
    return folder


def test_a_worker_joins_from_another_copy_of_the_project(inputs: Path, tmp_path: Path) -> None:
    """It runs what the stage has not, under the study's name; the stage then writes the result of both."""
    storage = f"journal:{tmp_path / 'journal'}"
    elsewhere = project(inputs, tmp_path / "elsewhere", n_trials=5, storage=storage)
    with pytest.raises(Exception, match=r"no study stack-.*\n.*expected: .*same parameters, inputs and code"):
        join(["--folder", str(elsewhere)])
    params = load_params("tune", objectives.TuneParams, elsewhere / "params.yaml")
    search, _ = objectives.stack_search(params, SMALL, StackInputs.below(elsewhere))
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
        return objectives.stack_search(params, stack, paths)[0].name

    own = name(params, SMALL, paths)
    assert name(replace(params, n_trials=99, timeout_hours=1.0, storage="journal:x"), SMALL, paths) == own
    assert name(replace(params, seed=9), SMALL, paths) != own
    assert name(replace(params, schemes=("group",)), SMALL, paths) != own
    assert name(params, replace(SMALL, early_stopping_rounds=9), paths) != own
    assert name(params, SMALL, replace(paths, posts=paths.splits)) != own
