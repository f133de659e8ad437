"""The choice among registered configurations: the rule, the stage on files, and where its result goes."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from popularity.core.config import load_params, read_yaml
from popularity.core.contracts import FOLDS, POSTS, PREDICTIONS, read_table, write_table
from popularity.core.errors import ConfigError
from popularity.core.metrics import mean_absolute_error, spearman
from popularity.evaluation.bootstrap import resample, resample_folds
from popularity.stack import StackParams, read_blocks
from popularity.stack.fit import fit_and_predict
from popularity.tuning import candidates
from popularity.tuning.candidates import (
    CandidatePredictions,
    SelectParams,
    candidates_of,
    choose,
    resampled_losses,
    scores_of,
)
from popularity.validation import rows_of
from popularity.validation.folds import load_fold
from stages import featurize, stack
from tests.repository import REPOSITORY
from tests.stack.small_stack import posts_with_signal, tree_bytes
from tests.tuning.small_tune import SMALL, SPACE, flags, input_flags, run_select, run_tune, select_flags, write_inputs

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "baseline": {"columns.feature_blocks": ["metadata"], "num_boost_round": 2},
    "same": {"columns.feature_blocks": ["metadata"], "num_boost_round": 2},
    "all": {"columns.feature_groups": ["class_time"], "lightgbm.num_leaves": 8},
    "no candidate": {"detrend": "linear"},
}
CANDIDATES = ["baseline", "same", "all"]


def params_file(inputs: Path, folder: Path, candidates: list[str] | None = None, **tune: Any) -> Path:
    """params.yaml of the inputs with a section select, and with changes of section tune."""
    content = json.loads((inputs / "params.yaml").read_text(encoding="utf-8"))
    tried = CANDIDATES if candidates is None else candidates
    content["select"] = {"candidates": tried, "configurations": CONFIGURATIONS}
    content["tune"] |= tune
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "params.yaml").write_text(json.dumps(content), encoding="utf-8")
    return folder / "params.yaml"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("select")
    write_inputs(root, *posts_with_signal(6, train=300, test=60, users=100))
    return root


@pytest.fixture(scope="module")
def selected(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished stage."""
    out = tmp_path_factory.mktemp("selected")
    return run_select(inputs, out, params_file(inputs, out))


def around(values: list[float], spreads: list[float]) -> np.ndarray[Any, Any]:
    """Two draws of each candidate, `spread` to each side: a standard deviation of spread times the root of 2."""
    draws: np.ndarray[Any, Any] = np.array([values, values]) + np.outer([-1, 1], spreads)
    return draws


@pytest.mark.parametrize(
    ("values", "spreads", "chosen"),
    [
        ([1.0, 0.9, 0.8], [0.0, 0.0, 0.0], 2),  # no doubt: the best
        ([1.0, 0.9, 0.8], [0.1, 0.1, 0.0], 1),  # error .14: .2 is more, .1 is less
        ([1.0, 0.9, 0.8], [0.2, 0.0, 0.0], 0),  # error .28: the simplest, though the second is clearly worse
        ([0.8, 0.9, 1.0], [0.0, 0.5, 0.5], 0),  # the best is the simplest
        ([0.9, 0.8, 0.8], [0.0, 0.0, 0.0], 1),  # of equals the first
        ([0.8, 0.8, 0.8], [0.1, 0.3, 0.2], 0),
        ([0.7], [0.1], 0),
    ],
)
def test_the_simplest_within_one_standard_error_of_the_best(
    values: list[float], spreads: list[float], chosen: int
) -> None:
    found = choose(np.array(values), around(values, spreads))
    assert found.chosen == chosen
    assert found.best == values.index(min(values))
    np.testing.assert_allclose(found.differences, np.array(values) - min(values))
    np.testing.assert_allclose(found.errors, np.sqrt(2) * np.abs(np.array(spreads) - spreads[found.best]), atol=1e-12)


def test_a_difference_of_exactly_one_standard_error_is_none() -> None:
    draws = np.array([[-1.0, 0.0], [2.0, 0.0], [2.0, 0.0]])  # paired: deviation of -1, 2, 2 is the root of 3
    assert choose(np.array([np.sqrt(3), 0.0]), draws).chosen == 0
    assert choose(np.array([np.nextafter(np.sqrt(3), 2), 0.0]), draws).chosen == 1


def test_draws_without_a_value_are_left_out() -> None:
    draws = np.array([[1.0, 0.0], [np.nan, 5.0], [1.2, 0.0], [9.0, np.nan]])
    assert choose(np.array([1.0, 0.0]), draws).errors.tolist() == pytest.approx([np.std([1.0, 1.2], ddof=1), 0])
    unknown = choose(np.array([1.0, 0.0, 0.0]), np.full((4, 3), np.nan))
    assert (unknown.chosen, unknown.errors.tolist()) == (1, [0, 0, 0])


def predictions_by(
    predictions: Mapping[str, np.ndarray[Any, Any]], labels: np.ndarray[Any, Any], users: int
) -> CandidatePredictions:
    """Two splits, in which every user has a post."""
    n = len(labels)
    return CandidatePredictions(
        names=list(predictions),
        folds=[0, 1],
        fold_index=np.arange(n) * 2 // n,
        labels=labels,
        users=np.arange(n) % users,
        baseline=np.full(n, float(np.median(labels))),
        predictions=np.column_stack(list(predictions.values())),
    )


def test_the_paired_error_sees_what_that_of_single_values_hides() -> None:
    """Users are hard or easy for both candidates alike; the second is a little better on every post."""
    rng = np.random.default_rng(4)
    labels = rng.normal(6, 2, 400)
    hard = rng.exponential(2.0, 40)[np.arange(400) % 40] * rng.normal(0, 1, 400)
    predicted = predictions_by({"simple": labels + hard, "better": labels + 0.97 * hard}, labels, 40)
    values = (
        scores_of(predicted).group_by("configuration", maintain_order=True).agg(pl.mean("value"))["value"].to_numpy()
    )
    draws = resampled_losses(predicted, 0)
    assert draws.mean(axis=0) == pytest.approx(values, abs=0.03)
    found = choose(values, draws)
    single = np.sqrt((draws.std(axis=0, ddof=1) ** 2).sum())
    assert found.errors[0] < found.differences[0] < single
    assert found.chosen == 1
    alone = np.column_stack([draws[:, 0], np.random.default_rng(1).permutation(draws[:, 1])])  # not on the same draws
    assert choose(values, alone).chosen == 0


def test_the_value_is_error_over_that_of_the_constant_minus_rank_correlation_mean_over_splits() -> None:
    rng = np.random.default_rng(2)
    labels = rng.normal(6, 2, 60)
    predicted = predictions_by({"one": labels + rng.normal(0, 1, 60)}, labels, 20)
    scores = scores_of(predicted)
    for fold, rows in enumerate((slice(30), slice(30, 60))):
        own = labels[rows], predicted.predictions[rows, 0]
        src, mae = spearman(*own), mean_absolute_error(*own)
        constant = mean_absolute_error(labels[rows], predicted.baseline[rows])
        assert src is not None
        assert scores.row(fold) == ("one", fold, 30, src, mae, constant, mae / constant - src)
    drawn = resample_folds(
        labels, predicted.predictions, predicted.users, resamples=50, seed=3, folds=predicted.fold_index
    )
    assert drawn["mae"].shape == (2, 50, 1)
    for metric, values in resample(
        labels, predicted.predictions, predicted.users, resamples=50, seed=3, folds=predicted.fold_index
    ).items():
        np.testing.assert_array_equal(values, drawn[metric].mean(axis=0))


def test_an_undefined_rank_correlation_counts_as_none(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(2)
    labels = rng.normal(6, 2, 60)
    flat = np.where(np.arange(60) < 30, 5.0, labels)
    predicted = predictions_by({"flat": flat, "all flat": np.full(60, 6.0)}, labels, 20)
    with caplog.at_level(logging.WARNING):
        scores = scores_of(predicted)
    assert scores["src"].to_list() == [None, pytest.approx(1.0), None, None]
    assert "flat: SRC is not defined on split 0: it counts as 0" in caplog.text
    assert np.isfinite(resampled_losses(predicted, 0)).all()
    assert choose(scores["value"].to_numpy().reshape(2, 2).mean(axis=1), resampled_losses(predicted, 0)).chosen == 0


def test_splits_of_one_post_are_enough() -> None:
    """Draws that miss one of the posts have no value; a constant that hits the label has no error."""
    predicted = predictions_by({"one": np.array([5.0, 6.0]), "other": np.array([5.5, 7.0])}, np.array([5.0, 7.0]), 2)
    predicted = replace(predicted, baseline=np.array([5.0, 5.0]))
    scores, draws = scores_of(predicted), resampled_losses(predicted, 0)
    assert scores["value"].to_list() == [0.0, 0.5, 0.5, 0.0]
    assert 0.3 < np.isnan(draws[:, 0]).mean() < 0.7
    assert choose(np.array([0.25, 0.25]), draws).chosen == 0


@pytest.mark.parametrize(
    ("candidates", "configurations", "message"),
    [
        (["plane"], {"plain": {}}, r"select\.candidates\.0: found 'plane'; expected a name in .*: plain"),
        (["plain"], {}, r"select\.candidates\.0: .*there is none"),
        (["a", "b", "a"], {"a": {}, "b": {}}, r"select\.candidates\.2: 'a' is listed before"),
        (
            [],
            {"a": {"columns.feature_group": []}},
            r"select\.configurations\.a: .*\n.*stack\.columns\.feature_group: unknown key; allowed",
        ),
        (
            [],
            {"a": {"detrend": "rising"}},
            r"select\.configurations\.a: .*\n.*stack\.detrend: .*'none'.*found 'rising'",
        ),
        (
            [],
            {"a": {"lightgbm.num_leaves": 8.5}},
            r"select\.configurations\.a: .*\n.*num_leaves: .*integer, found 8\.5",
        ),
        ([], {"a": {"detrend.kind": "none"}}, r"select\.configurations\.a: .*\n.*stack\.detrend: "),
    ],
)
def test_bad_configurations_are_named(
    candidates: list[str], configurations: dict[str, dict[str, Any]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        candidates_of(SelectParams(tuple(candidates), configurations), SMALL)


def test_eight_candidates_are_the_most(inputs: Path, tmp_path: Path) -> None:
    file = params_file(inputs, tmp_path, [f"c{number}" for number in range(9)])
    with pytest.raises(ConfigError, match=r"select\.candidates: .*at most 8 items"):
        load_params("select", SelectParams, file)


def test_the_candidates_are_the_stack_with_their_keys_replaced() -> None:
    params = SelectParams(("all", "baseline"), CONFIGURATIONS)
    found = candidates_of(params, SMALL)
    assert [candidate.name for candidate in found] == ["all", "baseline"]
    columns, trees = replace(SMALL.columns, feature_groups=("class_time",)), replace(SMALL.lightgbm, num_leaves=8)
    assert found[0].stack == replace(SMALL, columns=columns, lightgbm=trees)


def test_outs_hold_what_separate_fits_score(inputs: Path, selected: Path) -> None:
    assert sorted(path.name for path in selected.iterdir()) == [
        "choice.yaml", "manifest.json", "scores.csv", "selection.json",
    ]  # fmt: skip
    assert not list((selected.parent / "state" / "select").iterdir())
    posts = read_table(inputs / "posts.parquet", POSTS)
    blocks = read_blocks(inputs / "image", inputs / "text", inputs / "prototype")
    labels = dict(posts.select("pid", "label").iter_rows())
    scores = pl.read_csv(selected / "scores.csv")
    assert scores.select("configuration", "fold").rows() == [(name, fold) for name in CANDIDATES for fold in (0, 1)]
    params = candidates_of(SelectParams(tuple(CANDIDATES), CONFIGURATIONS), replace(SMALL, n_seeds=1))
    for key, rows in rows_of(read_table(inputs / "splits.parquet", FOLDS), ["forward"]):
        fold = load_fold(key, rows, posts, inputs / "features")
        for candidate in params:
            predicted = fit_and_predict(fold, blocks, candidate.stack)
            truth = np.array([labels[pid] for pid in predicted["pid"]])
            (row,) = scores.filter(configuration=candidate.name, fold=key.fold).to_dicts()
            assert row["src"] == pytest.approx(spearman(truth, predicted["prediction"].to_numpy()))
            assert row["mae"] == pytest.approx(mean_absolute_error(truth, predicted["prediction"].to_numpy()))
            assert row["posts"] == len(truth)
            assert row["mae_of_constant"] == pytest.approx(np.abs(truth - np.median(fold.label)).mean())
    summary = json.loads((selected / "selection.json").read_text(encoding="utf-8"))
    assert (summary["chosen"], summary["best"], summary["scheme"]) == ("all", "all", "forward")
    assert [one["name"] for one in summary["configurations"]] == CANDIDATES
    for one in summary["configurations"]:
        own = scores.filter(configuration=one["name"])
        assert one["value"] == pytest.approx((own["mae"] / own["mae_of_constant"] - own["src"]).mean())
        assert (one["src"], one["mae"]) == pytest.approx((own["src"].mean(), own["mae"].mean()))
        assert one["keys"] == CONFIGURATIONS[one["name"]]
    baseline, same, best = summary["configurations"]
    assert {**baseline, "name": ""} == {**same, "name": ""}
    assert baseline["difference"] > baseline["standard_error"] > 0
    assert best["difference"] == best["standard_error"] == 0
    assert read_yaml(selected / "choice.yaml") == {
        "stack": {"columns": {"feature_groups": ["class_time"]}, "lightgbm": {"num_leaves": 8}}
    }


def test_two_runs_give_the_same_bytes_and_equals_share_a_fit(
    inputs: Path, selected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = counted_fits(monkeypatch)
    assert tree_bytes(run_select(inputs, tmp_path, params_file(inputs, tmp_path))) == tree_bytes(selected)
    assert len(fits) == 2 * 2  # splits, and baseline is same


def counted_fits(monkeypatch: pytest.MonkeyPatch, *, end_at: int | None = None) -> list[StackParams]:
    """A list to which every fit adds its parameters; the fit of number `end_at` ends in an error."""
    fits: list[StackParams] = []

    def counted(fold: Any, blocks: Any, params: StackParams) -> pl.DataFrame:
        if len(fits) == end_at:
            raise KeyboardInterrupt
        fits.append(params)
        return fit_and_predict(fold, blocks, params)

    monkeypatch.setattr(candidates, "fit_and_predict", counted)
    return fits


def test_finished_fits_are_not_fitted_again(
    inputs: Path, selected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fits = counted_fits(patch, end_at=3)
        with pytest.raises(KeyboardInterrupt):
            run_select(inputs, tmp_path, params_file(inputs, tmp_path, ["all", "baseline", "no candidate"]))
        assert len(fits) == 3  # the first split
    assert not (tmp_path / "selection").exists()
    fits = counted_fits(monkeypatch)
    out = run_select(inputs, tmp_path, params_file(inputs, tmp_path))  # other candidates, two of them fitted
    assert len(fits) == 2
    assert tree_bytes(out) == tree_bytes(selected)


def test_killed_it_goes_on_to_the_same_bytes(inputs: Path, selected: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stages.select", *select_flags(inputs, tmp_path, params_file(inputs, tmp_path))]
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'src'}{os.pathsep}{REPOSITORY}"}
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list((tmp_path / "state").rglob("*-forward-0.parquet")):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "selection").exists()
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "-> all" in done.stderr
    assert tree_bytes(tmp_path / "selection") == tree_bytes(selected)


def test_labels_that_no_split_may_see_change_nothing(inputs: Path, selected: Path, tmp_path: Path) -> None:
    """Those of the valid posts of `holdout`; the same change of valid posts of the splits shows."""
    splits, posts = read_table(inputs / "splits.parquet", FOLDS), read_table(inputs / "posts.parquet", POSTS)

    def with_turned(scheme: str, folder: Path) -> Path:
        folder.mkdir()
        pids = splits.filter(scheme=scheme, role="valid")["pid"]
        turned = pl.when(pl.col("pid").is_in(pids.implode())).then(20 - pl.col("label")).otherwise(pl.col("label"))
        for name in ("splits.parquet", "images.parquet", "params.yaml", "image", "text", "prototype"):
            (folder / name).symlink_to(inputs / name)
        write_table(posts.with_columns(label=turned), folder / "posts.parquet", POSTS)
        given = {name: folder / f"{name}.parquet" for name in ("posts", "splits", "images")}
        out = {
            "params": folder / "params.yaml",
            "out": folder / "features",
            "summary": folder / "target_statistics.json",
        }
        featurize.main(flags({**given, **out, "resources": folder / "f.json"}))
        return run_select(folder, folder / "out", params_file(folder, folder / "out"))

    found = {scheme: tree_bytes(with_turned(scheme, tmp_path / scheme)) for scheme in ("holdout", "forward")}
    before = tree_bytes(selected)
    for name in ("choice.yaml", "scores.csv", "selection.json"):
        assert found["holdout"][name] == before[name]
    assert found["forward"]["scores.csv"] != before["scores.csv"]


def test_without_candidates_nothing_is_fitted_and_nothing_replaced(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = counted_fits(monkeypatch)
    out = run_select(inputs, tmp_path, params_file(inputs, tmp_path, []))
    assert not fits
    assert read_yaml(out / "choice.yaml") == {}
    assert pl.read_csv(out / "scores.csv").columns == list(candidates.SCORES)
    summary = json.loads((out / "selection.json").read_text(encoding="utf-8"))
    assert (summary["chosen"], summary["best"], summary["configurations"]) == (None, None, [])


def test_the_chosen_keys_reach_the_search_and_the_stack(inputs: Path, selected: Path, tmp_path: Path) -> None:
    choice = {"columns": {"feature_groups": ["class_time"]}, "lightgbm": {"num_leaves": 8}}
    untuned = run_tune(
        inputs, tmp_path / "a", params_file(inputs, tmp_path / "a", n_trials=0), selected / "choice.yaml"
    )
    assert read_yaml(untuned / "best_params.yaml") == {"stack": choice}
    space = {
        "lightgbm.min_data_in_leaf": SPACE["lightgbm.min_data_in_leaf"],
        "lightgbm.num_leaves": SPACE["lightgbm.num_leaves"],
    }
    params = params_file(inputs, tmp_path / "b", n_trials=3, space=space)
    tuned = run_tune(inputs, tmp_path / "b", params, selected / "choice.yaml")
    study = json.loads((tuned / "study.json").read_text(encoding="utf-8"))
    assert study["default"]["params"] == {
        "lightgbm.min_data_in_leaf": SMALL.lightgbm.min_data_in_leaf,
        "lightgbm.num_leaves": 8,
    }
    best = study["best"]["params"]
    trees = {name.removeprefix("lightgbm."): value for name, value in best.items()}
    assert read_yaml(tuned / "best_params.yaml") == {"stack": {**choice, "lightgbm": trees}}
    manifest = json.loads((tuned / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["params"]["stack"]["columns"]["feature_groups"] == ["class_time"]
    stack.main(
        [
            *input_flags(inputs),
            *flags({"params": inputs / "params.yaml", "tuned": untuned / "best_params.yaml"}),
            *flags({name: tmp_path / name for name in ("predictions", "models", "resources", "state")}),
        ]
    )
    own = read_table(tmp_path / "predictions" / "predictions.parquet", PREDICTIONS)
    (chosen,) = candidates_of(SelectParams(("all",), CONFIGURATIONS), SMALL)
    fitted = json.loads((tmp_path / "models" / "manifest.json").read_text(encoding="utf-8"))["params"]["stack"]
    assert fitted == json.loads(json.dumps(asdict(chosen.stack)))
    key, rows = next(iter(rows_of(read_table(inputs / "splits.parquet", FOLDS), ["forward"])))
    fold = load_fold(key, rows, read_table(inputs / "posts.parquet", POSTS), inputs / "features")
    blocks = read_blocks(inputs / "image", inputs / "text", inputs / "prototype")
    expected = fit_and_predict(fold, blocks, chosen.stack)
    found = own.filter(scheme="forward", fold=0, model="stack")
    assert found["prediction"].to_list() == expected.sort("pid")["prediction"].to_list()
