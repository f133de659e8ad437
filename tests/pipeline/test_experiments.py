"""The recipes for trials: queued, compared, applied, kept as a branch, removed, with the real DVC."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clones import Clone, copy_of

RATES = ("0.2", "0.3")
RATE = "stack.lightgbm.learning_rate"


@pytest.fixture(scope="module")
def searched(clone: Clone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Clone, dict[str, str]]]:
    """A copy of the finished run after a grid of two trials by queue; name of the trial by its learning rate."""
    copy = copy_of(clone, tmp_path_factory.mktemp("trials") / "clone")
    # One configuration and no further trial: nothing is searched, and the trials differ in the rate alone.
    fixed = (
        "-S",
        "tune.candidates=[]",
        "-S",
        "tune.n_trials=0",
        "-S",
        "stack.columns.feature_blocks=[metadata,image]",
    )
    copy.run("dvc", "exp", "run", "--queue", *fixed, "-S", f"{RATE}={','.join(RATES)}")
    copy.run("dvc", "queue", "start", "-j", "1")
    deadline = time.monotonic() + 400
    try:
        while any(word in (status := copy.run("dvc", "queue", "status").stdout) for word in ("Queued", "Running")):
            assert time.monotonic() < deadline, status
            next_look = time.monotonic() + 30  # starting DVC takes seconds of a core that the trials need
            while len(finished(copy)) < len(RATES) and time.monotonic() < next_look:
                time.sleep(0.5)
            time.sleep(1)
    finally:
        copy.run("dvc", "queue", "stop", "--kill")
    assert status.count("Success") == len(RATES), status
    yield copy, {rate: name for name in names(copy) if (rate := learning_rate(copy, name))}


def finished(clone: Clone) -> list[str]:
    """References of the finished trials, which git lists in milliseconds."""
    return clone.run("git", "for-each-ref", "--format=%(refname)", "refs/exps/*/*/*").stdout.split()


def names(clone: Clone) -> list[str]:
    return clone.run("dvc", "exp", "list", "--name-only").stdout.split()


def learning_rate(clone: Clone, name: str) -> str:
    (reference,) = clone.run("git", "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{name}").stdout.split()
    text = clone.run("git", "show", f"{reference}:params.yaml").stdout
    return next(line.split()[1] for line in text.splitlines() if line.startswith("    learning_rate:"))


def test_a_grid_leaves_the_workspace_as_it_was(searched: tuple[Clone, dict[str, str]]) -> None:
    copy, trials = searched
    assert set(trials) == set(RATES)
    assert copy.run("git", "status", "--porcelain").stdout == ""
    assert "up to date" in copy.run("dvc", "status").stdout


def test_the_table_has_scores_and_changed_parameters_and_nothing_else(searched: tuple[Clone, dict[str, str]]) -> None:
    copy, trials = searched
    lines = copy.run("make", "--silent", "trials").stdout.split("\n|")
    columns, _, *table = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in lines]
    assert columns[0] == "Experiment"
    scores = {f"{scheme}.stack.{metric}" for scheme in ("forward", "group") for metric in ("mae", "src")}
    parameters = {column.removeprefix("params.yaml:") for column in columns[1:]} - scores
    assert scores & set(columns)
    assert parameters == {RATE, "tune.candidates", "tune.n_trials", "stack.columns.feature_blocks"}
    for rate, name in trials.items():
        (row,) = [row for row in table if name in row[0]]
        assert rate in row
    errors = [float(row[columns.index("forward.stack.mae")]) for row in table[2:]]  # after workspace and baseline
    assert errors == sorted(errors)


def test_compare_apply_keep_and_remove(searched: tuple[Clone, dict[str, str]]) -> None:
    copy, trials = searched
    one, other = (trials[rate] for rate in RATES)
    difference = json.loads(copy.run("dvc", "exp", "diff", one, other, "--json").stdout)
    assert difference["params"]["params.yaml"][RATE] | {"diff": 0} == {"old": 0.2, "new": 0.3, "diff": 0}
    before = manifest(copy)
    assert before["code"]["revision"]
    copy.run("dvc", "exp", "apply", other)
    assert copy.stages_run(copy.run("dvc", "repro").stdout) == []
    assert manifest(copy)["params"]["members"]["start"]["lightgbm"]["learning_rate"] == 0.3
    assert manifest(copy)["code"] == before["code"]  # the copy in which a trial runs has the history as well
    copy.run("git", "restore", "params.yaml", "dvc.lock", "reports")
    copy.run("dvc", "checkout")
    assert manifest(copy) == before
    copy.run("dvc", "exp", "branch", other, "better")
    copy.run("dvc", "exp", "remove", one, other)
    assert names(copy) == []
    assert copy.run("make", "--silent", "trials").stdout.startswith(
        "No finished trial of this commit yet; to make one:"
    )
    copy.run("git", "checkout", "-q", "better")
    copy.run("dvc", "checkout")
    assert manifest(copy)["params"]["members"]["start"]["lightgbm"]["learning_rate"] == 0.3
    assert "up to date" in copy.run("dvc", "status").stdout


def manifest(clone: Clone) -> dict[str, dict[str, dict[str, dict[str, dict[str, float]]]]]:
    """The manifest of models/stack."""
    path = clone.root / Path("models/stack/manifest.json")
    content: dict[str, dict[str, dict[str, dict[str, dict[str, float]]]]] = json.loads(path.read_text(encoding="utf-8"))
    return content
