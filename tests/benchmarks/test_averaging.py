"""benchmarks.averaging: rules of choice among the trials of a search."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks import averaging
from popularity.core import paths
from popularity.core.config import read_yaml
from popularity.core.contracts import FOLDS, POSTS, TRIAL_PREDICTIONS, read_table, write_table
from popularity.core.errors import DataError
from popularity.core.manifest import REPOSITORY
from popularity.ensemble.greedy import OutOfFold
from popularity.validation import make_splits
from tests.random_posts import random_posts
from tests.stack.small_stack import SPLIT


def table(predictions: list[np.ndarray], label: np.ndarray) -> OutOfFold:
    n = len(label)
    return OutOfFold(
        names=[f"trial_{index}" for index in range(len(predictions))],
        fold=np.arange(n) * 2 // n,
        label=label,
        user=np.arange(n) % 40,
        baseline=np.full(n, float(np.median(label))),
        prediction=np.column_stack(predictions),
    )


@pytest.fixture
def trials() -> OutOfFold:
    """A simple trial that is a little worse, two equally good ones, and one that is not registered and the best."""
    rng = np.random.default_rng(3)
    label = rng.normal(6, 2, 400)
    errors = [1.1, 1.0, 1.0, 0.6]
    return table([label + rng.normal(0, error, 400) for error in errors], label)


def params_file(folder: Path, n_members: int, shrinkage: float = 0.3) -> Path:
    """params.yaml of the repository with another number of members and another shrinkage."""
    params = read_yaml(REPOSITORY / paths.PARAMS)
    params["tune"]["n_members"], params["ensemble"]["shrinkage"] = n_members, shrinkage
    file = folder / paths.PARAMS
    file.write_text(json.dumps(params), encoding="utf-8")
    return file


def test_the_rule_of_the_graph_has_its_parameters(trials: OutOfFold, tmp_path: Path) -> None:
    one = averaging.rules_of(params_file(tmp_path, n_members=1))["greedy, 1 members, shrunk"](trials, [0])
    assert sorted(one) == [0, 0, 0, 1]
    equal = averaging.rules_of(params_file(tmp_path, n_members=4, shrinkage=1.0))["greedy, 4 members, shrunk"]
    found = equal(trials, [0])
    assert found[found > 0].tolist() == pytest.approx([1 / (found > 0).sum()] * int((found > 0).sum()))


def test_rules_take_what_their_names_say(trials: OutOfFold, tmp_path: Path) -> None:
    registered = [0, 1, 2]
    rules = averaging.rules_of(params_file(tmp_path, n_members=3))
    weights = {name: choose(trials, registered) for name, choose in rules.items()}
    for found in weights.values():
        assert found.sum() == pytest.approx(1)
        assert (found >= 0).all()
    assert weights["best trial"].tolist() == [0, 0, 0, 1]
    assert weights["best registered"][3] == 0
    assert weights["equal, registered"].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    assert weights["one standard error"].max() == 1
    assert weights["one standard error"][3] == 0
    for name in ("greedy, 3 members", "greedy, 3 members, shrunk"):
        assert (weights[name] > 0).sum() <= 3
        assert weights[name][3] > 0.3
    assert weights["greedy, 3 members, shrunk"].max() < weights["greedy, 3 members"].max()
    assert weights["shrunk stacking"].argmax() == 3


def test_the_simplest_within_one_standard_error_is_taken() -> None:
    rng = np.random.default_rng(5)
    label, noise = rng.normal(6, 2, 400), rng.normal(0, 1, 400)
    clear = table([label + 1.5 * noise, label + noise], label)
    assert averaging.one_standard_error(clear, [0, 1]).tolist() == [0, 1]
    alike = table([label + noise, label + rng.permutation(noise)], label)
    assert averaging.one_standard_error(alike, [0, 1]).tolist() in ([1, 0], [0, 1])
    same = table([label + noise, label + noise], label)
    assert averaging.one_standard_error(same, [0, 1]).tolist() == [1, 0]


def test_a_finished_run_is_scored_with_the_weights_of_the_other_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    posts = random_posts(2, train=400, test=60, users=120).sort("pid")
    splits = make_splits(posts, SPLIT)[0]
    params_file(tmp_path, n_members=2)
    write_table(posts, tmp_path / paths.POSTS, POSTS)
    write_table(splits, tmp_path / paths.SPLITS, FOLDS)
    valid = splits.filter(scheme="forward", role="valid").join(posts, on="pid").sort("fold", "pid")
    rng = np.random.default_rng(0)
    frames = [
        valid.select(
            trial=pl.lit(number, pl.Int64), fold="fold", pid="pid",
            prediction=pl.col("label") + pl.Series(rng.normal(0, error, valid.height)),
        )
        for number, error in ((0, 0.8), (2, 0.8))
    ]  # fmt: skip
    write_table(pl.concat(frames), tmp_path / paths.TUNING_PREDICTIONS, TRIAL_PREDICTIONS)
    (tmp_path / paths.TUNING_TRIALS).write_text("number,name\n0,plain\n1,\n2,\n", encoding="utf-8")
    found, registered = averaging.read_trials(tmp_path)
    assert (list(found.names), registered) == (["plain", "trial_2"], [0])
    train = splits.filter(scheme="forward", fold=1, role="train").join(posts, on="pid")
    assert found.only(1).baseline[0] == train["label"].median()
    averaging.main([str(tmp_path), "--csv", str(tmp_path / "out.csv")])
    rows = {row["rule"]: row for row in pl.read_csv(tmp_path / "out.csv").iter_rows(named=True)}
    assert set(rows) == set(averaging.rules_of(tmp_path / paths.PARAMS))
    assert rows["one standard error"]["loss - one standard error"] == 0
    assert rows["greedy, all trials"]["mae"] < rows["one standard error"]["mae"]  # independent errors average out
    assert "shrunk stacking" in capsys.readouterr().out
    one = read_table(tmp_path / paths.TUNING_PREDICTIONS, TRIAL_PREDICTIONS).filter(fold=0)
    write_table(one, tmp_path / paths.TUNING_PREDICTIONS, TRIAL_PREDICTIONS)
    with pytest.raises(DataError, match="fewer than two forward splits"):
        averaging.read_trials(tmp_path)
