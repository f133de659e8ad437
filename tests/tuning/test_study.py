"""The engine on objectives that cost nothing: one worker, several, killed ones, storages that fail."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from popularity.core.errors import ConfigError, DataError
from popularity.tuning.results import best_of, write_patch, write_results
from popularity.tuning.space import Values
from popularity.tuning.storage import SQLITE, Heartbeat, open_study
from popularity.tuning.study import (
    DEFAULT,
    METRICS,
    REGISTERED,
    WORKERS_VARIABLE,
    Finished,
    Search,
    Step,
    _queue_again,
    run_search,
    workers_here,
)
from tests.tuning.objectives import BowlObjective, bowl_search

QUICK = Heartbeat(interval=1, stale_after=2)


def run(search: Search, state: Path, workers: int = 1, seconds: float = 0.0) -> list[Finished]:
    return run_search(search, partial(BowlObjective, seconds), state=state, workers=workers, heartbeat=QUICK)


def study_of(search: Search, state: Path) -> Study:
    return open_study(search.name, search.budget.storage, state, create=True, heartbeat=QUICK)


def without_metrics(trials: list[Finished]) -> list[tuple[object, ...]]:
    return [(trial.number, trial.state, trial.value, trial.values) for trial in trials]


def test_the_default_comes_first_and_the_best_is_better(tmp_path: Path) -> None:
    search = bowl_search(SQLITE, 20)
    trials = run(search, tmp_path)
    assert [trial.number for trial in trials] == list(range(20))
    assert trials[0].values == search.space.default
    assert {trial.state for trial in trials} == {"COMPLETE", "PRUNED"}
    best = best_of(trials)
    assert best is not None
    assert best.value < trials[0].value / 5
    assert isinstance(best.values["n"], int)
    assert isinstance(best.values["parts"], list)


def test_more_trials_go_on_where_fewer_ended(tmp_path: Path) -> None:
    fewer = run(bowl_search(SQLITE, 8), tmp_path)
    more = run(bowl_search(SQLITE, 15), tmp_path)
    assert more[:8] == fewer
    (tmp_path / "anew").mkdir()
    assert without_metrics(run(bowl_search(SQLITE, 15), tmp_path / "anew")) == without_metrics(more)
    assert run(bowl_search(SQLITE, 8), tmp_path) == fewer  # and a smaller budget takes the first


def test_another_seed_draws_other_trials_after_the_default(tmp_path: Path) -> None:
    first, second = run(bowl_search(SQLITE, 4), tmp_path), run(bowl_search(SQLITE, 4, seed=4), tmp_path)
    assert first[0].values == second[0].values
    assert all(one.values != other.values for one, other in zip(first[1:], second[1:], strict=True))


def test_a_pruned_trial_was_above_the_median_of_those_completed_before(tmp_path: Path) -> None:
    trials = run(bowl_search(SQLITE, 18), tmp_path)
    assert sum(trial.state == "PRUNED" for trial in trials) >= 3
    firsts = [trial.value + (trial.state == "COMPLETE") for trial in trials]  # the first step is worse by 1
    completed: list[float] = []
    for first, trial in zip(firsts, trials, strict=True):
        assert (trial.state == "PRUNED") == (len(completed) >= 5 and first > np.median(completed))
        completed += [first] if trial.state == "COMPLETE" else []


def test_the_default_is_never_pruned(tmp_path: Path) -> None:
    """Five better trials are completed before it."""
    search = bowl_search(SQLITE, 6)
    study, space = study_of(search, tmp_path), search.space
    for number in range(5):
        params = space.encode({**space.default, "x": 1.0 + number / 100, "parts": ["a"]})
        steps = dict.fromkeys((0, 1), -9.0)
        metrics = {METRICS: "{}"}
        study.add_trial(
            create_trial(
                value=-9.0, params=params, distributions=space.distributions(), intermediate_values=steps,
                user_attrs=metrics,
            )
        )  # fmt: skip
    *_, default = run(search, tmp_path)
    assert default.values == space.default
    assert default.state == "COMPLETE"


def test_registered_trials_come_first_in_their_order_and_keep_their_names(tmp_path: Path) -> None:
    default = bowl_search(SQLITE, 8).space.default
    first = {"far": {**default, "x": -5.0}, "near": {**default, "x": 1.0, "n": 4, "parts": ["a"]}}
    trials = run(replace(bowl_search(SQLITE, 8), first=first), tmp_path)
    assert {trial.name: trial.values for trial in trials[:2]} == first
    assert [trial.name for trial in trials] == ["far", "near", *[None] * 6]
    assert trials[0].state == trials[1].state == "COMPLETE"


def test_a_trial_that_was_broken_off_is_run_again(tmp_path: Path) -> None:
    """As a kill leaves it: running, without or with all of its parameters, the default among them."""
    search = bowl_search(SQLITE, 14)
    undisturbed = run(search, tmp_path)
    (tmp_path / "broken").mkdir()
    study = study_of(search, tmp_path / "broken")
    study.enqueue_trial(search.space.encode(search.space.default), user_attrs={REGISTERED: DEFAULT})
    study.ask(search.space.distributions())
    run(bowl_search(SQLITE, 8), tmp_path / "broken")
    study.ask()
    assert without_metrics(run(search, tmp_path / "broken")) == without_metrics(undisturbed)
    assert [trial.state for trial in study.get_trials()].count(TrialState.FAIL) == 2


def test_an_error_in_a_trial_ends_the_search_and_counts_for_nothing(tmp_path: Path) -> None:
    search = bowl_search(SQLITE, 5)
    with pytest.raises(ValueError, match="this objective fails"):
        run_search(search, partial(BowlObjective, fails=True), state=tmp_path)
    assert run(search, tmp_path)[0].values == search.space.default


def test_no_trial_is_started_after_the_hours(tmp_path: Path) -> None:
    trials = run(bowl_search(SQLITE, 500, hours=1 / 3600), tmp_path, seconds=0.3)
    assert 1 <= len(trials) < 20


def test_no_trials_need_no_storage(tmp_path: Path) -> None:
    search = bowl_search("postgresql+psycopg://nobody@127.0.0.1:1/none", 0)
    assert run(search, tmp_path) == []
    write_results([], search, tmp_path / "out")
    write_patch([], search, tmp_path / "out" / "best_params.yaml")
    assert (tmp_path / "out" / "best_params.yaml").read_text(encoding="utf-8") == "{}\n"
    assert json.loads((tmp_path / "out" / "study.json").read_text(encoding="utf-8"))["best"] is None
    assert (tmp_path / "out" / "trials.csv").read_text(encoding="utf-8") == "number,name,state,value,n,parts,x\n"


def test_several_workers_on_a_journal(tmp_path: Path) -> None:
    search = bowl_search(f"journal:{tmp_path / 'journal'}", 12)
    trials = run(search, tmp_path, workers=2, seconds=0.4)  # time for the second to start, too
    assert len(trials) == 12
    assert len({str(trial.values) for trial in trials}) == 12
    assert len({trial.metrics["pid"] for trial in trials}) == 2
    assert run(search, tmp_path) == trials  # it stays there: nothing is left to do


@pytest.mark.parametrize("before", [0, 8])
def test_one_worker_on_a_journal_runs_the_trial_of_a_dead_one_like_it(before: int, tmp_path: Path) -> None:
    search = bowl_search(f"journal:{tmp_path / 'journal'}", 14)
    undisturbed = run(bowl_search(SQLITE, 14), tmp_path)
    study = study_of(search, tmp_path)
    if before:
        run(bowl_search(f"journal:{tmp_path / 'journal'}", before), tmp_path)
        study.ask(search.space.distributions())  # all values drawn, by another sampler
    else:
        study.enqueue_trial(search.space.encode(search.space.default), user_attrs={REGISTERED: DEFAULT})
        study.ask()
    trials = run(search, tmp_path)
    if before:
        assert search.space.decode(study.get_trials()[before].params) == trials[before].values
        assert without_metrics(trials[:before]) == without_metrics(undisturbed[:before])
    else:
        assert without_metrics(trials) == without_metrics(undisturbed)
    assert [trial.state for trial in study.get_trials()].count(TrialState.FAIL) == 1


def test_a_trial_that_was_taken_for_dead_is_dropped(tmp_path: Path) -> None:
    """Another start of the search fails it and queues it again while its worker lives."""
    search = bowl_search(f"journal:{tmp_path / 'journal'}", 4)
    undisturbed = run(bowl_search(SQLITE, 4), tmp_path)
    study = study_of(search, tmp_path)
    taken: list[int] = []

    class Disturbed(BowlObjective):
        def __call__(self, values: Values) -> Iterator[Step]:
            for step in super().__call__(values):
                if not taken and len(study.get_trials()) == 3:
                    taken.append(2)
                    _queue_again(study, search)
                yield step

    trials = run_search(search, Disturbed, state=tmp_path)
    assert [trial.state for trial in study.get_trials()].count(TrialState.FAIL) == len(taken) == 1
    assert without_metrics(trials) == without_metrics(undisturbed)


def _kill_one(study: Study, killed: list[object]) -> None:
    """Kills the process of a trial that runs, once each of three has finished one."""

    def process(trial: FrozenTrial) -> int:
        return int(json.loads(trial.user_attrs[METRICS])["pid"])

    while not killed:
        trials = [trial for trial in study.get_trials(deepcopy=False) if METRICS in trial.user_attrs]
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        if running and len({process(trial) for trial in trials if trial.state.is_finished()}) == 3:
            os.kill(process(running[0]), signal.SIGKILL)
            killed.append((running[0].number, running[0].params))
        time.sleep(0.01)


def test_three_workers_on_postgresql_one_killed(postgresql: str, tmp_path: Path) -> None:
    """As many count as wanted, none twice, and what the dead worker was trying is tried by another."""
    search = bowl_search(postgresql, 30)
    study = study_of(search, tmp_path)
    killed: list[tuple[int, dict[str, object]]] = []
    killer = threading.Thread(target=_kill_one, args=(study, killed), daemon=True)
    killer.start()
    trials = run(search, tmp_path, workers=3, seconds=0.4)
    killer.join(timeout=1)
    ((number, params),) = killed
    stored = study.get_trials()
    assert stored[number].state == TrialState.FAIL
    finished = [trial for trial in stored if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(trials) == 30
    assert 30 <= len(finished) <= 32  # two workers may each be in a trial when the last one wanted is finished
    assert not any(trial.state in (TrialState.RUNNING, TrialState.WAITING) for trial in stored)
    assert len({str(trial.values) for trial in trials}) == 30
    assert search.space.decode(params) in [trial.values for trial in trials]
    assert len({trial.metrics["pid"] for trial in trials}) == 3
    print(
        f"3 workers, killed in trial {number}: {len(finished)} of 30 finished, {len(stored)} begun, none twice or lost"
    )


@pytest.mark.parametrize(
    ("storage", "error", "message"),
    [
        ("postgresql+psycopg://nobody@127.0.0.1:1/none", DataError, "cannot be used.*refused"),
        ("postgresql+psycopg://user:secret@127.0.0.1/none", ConfigError, r"password.*dvc\.lock.*PGPASSFILE"),
        ("nothing", ConfigError, "storage 'nothing': expected sqlite, journal:<path> or the URL"),
        ("oracledb7://x", ConfigError, "storage 'oracledb7://x': expected sqlite"),
        ("journal:/no/such/folder/journal", DataError, "cannot be used.*No such file"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_message(
    storage: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message) as caught:
        run(bowl_search(storage, 3), tmp_path)
    assert "secret" not in str(caught.value)


def test_a_missing_driver_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"driver is not installed.*psycopg"):
        run(bowl_search("postgresql+psycopg://nobody@127.0.0.1:1/none", 3), tmp_path)


def test_workers_that_all_end_early_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="all 2 workers ended after 0 of 4 trials"):
        run_search(bowl_search(SQLITE, 4), partial(BowlObjective, fails=True), state=tmp_path, workers=2)


def test_workers_may_have_processes_of_their_own(tmp_path: Path) -> None:
    trials = run_search(bowl_search(SQLITE, 4), partial(BowlObjective, has_children=True), state=tmp_path, workers=2)
    assert len(trials) == 4


@pytest.mark.parametrize("worth", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_ends_the_search(worth: float, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)trial 0: its value is (nan|inf).*from the space: \{'n': 8"):
        run_search(bowl_search(SQLITE, 4), partial(BowlObjective, worth=worth), state=tmp_path)


def test_a_default_that_another_worker_is_running_is_not_given_twice(tmp_path: Path) -> None:
    search = bowl_search(f"journal:{tmp_path / 'journal'}", 3)
    run_search(replace(search, budget=replace(search.budget, timeout_hours=1e-9)), BowlObjective, state=tmp_path)
    study = study_of(search, tmp_path)
    trial = study.ask()  # the enqueued default
    trial.suggest_float("x", -5.0, 5.0)
    run_search(
        replace(search, budget=replace(search.budget, timeout_hours=1e-9)),
        BowlObjective,
        state=tmp_path,
        heartbeat=QUICK,
    )
    again = [trial for trial in study.get_trials() if trial.state == TrialState.WAITING]
    assert [trial.system_attrs["fixed_params"] for trial in again] == [search.space.encode(search.space.default)]
    assert study.get_trials()[0].state == TrialState.FAIL


def test_workers_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORKERS_VARIABLE, raising=False)
    assert workers_here() == 1
    monkeypatch.setenv(WORKERS_VARIABLE, "3")
    assert workers_here() == 3
    for text in ("0", "two", "-1"):
        monkeypatch.setenv(WORKERS_VARIABLE, text)
        with pytest.raises(ConfigError, match="POPULARITY_TUNE_WORKERS: expected a whole number"):
            workers_here()


def journal(tmp_path: Path) -> tuple[Search, Path]:
    """A search of three trials in a journal file, and the file."""
    file = tmp_path / "trials.log"
    search = bowl_search(f"journal:{file}", 3)
    run(search, tmp_path)
    return search, file


@pytest.mark.parametrize("kept", [1, 60])
def test_half_a_line_at_the_end_of_a_journal_is_left_out(tmp_path: Path, kept: int) -> None:
    _, file = journal(tmp_path)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]) + lines[-1][:kept])
    again = bowl_search(f"journal:{file}", 4)
    trials = run(again, tmp_path)
    assert [trial.state for trial in trials].count("COMPLETE") == 4
    assert all(json.loads(line) for line in file.read_bytes().splitlines())


def test_a_damaged_line_of_a_journal_is_named(tmp_path: Path) -> None:
    search, file = journal(tmp_path)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:2], b"{half\n", *lines[3:]]))
    with pytest.raises(DataError, match="a damaged line") as caught:
        study_of(search, tmp_path)
    assert (caught.value.file, caught.value.row) == (str(file), 2)
