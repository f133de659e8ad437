"""Runs the trials of a search on an Optuna study that can be killed at any moment and resumed.

    trials = run_search(search, make_objective, state=folder, workers=1)

Optuna does the work: its storage keeps the trials (popularity.tuning.storage), its heartbeat finds the trial of a
killed worker, its retry callback queues that trial again, its MedianPruner ends weak trials and its MaxTrialsCallback
ends the search. Added here:

- Optuna stores no state of a sampler. So each trial has a fresh TPE sampler, seeded from the search's seed, the worker
  and the number of finished trials. With one worker the finished trials are the same however often it was killed.
- A search that starts fails every trial that is still marked as running and queues it again. If its worker was alive
  after all (on another machine), that worker drops the trial. So no trial counts twice.
- The registered points (`Search.first`, or the default alone) are the first trials, and they are never pruned.

What Optuna does not do:

- A journal has no heartbeat: the trial of a killed worker is run again when the search is started again, not before.
- A heartbeat starts after the trial is created: a worker that is killed in between is found at the next start too.
- Workers do not wait for one another: n workers may run n - 1 trials too many. The first trials count.
- If a worker is killed while the others finish the last trials, its trial is not run again.
- MedianPruner compares the best step of a trial, not its last one, with the completed trials alone.
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import optuna
from optuna.exceptions import TrialPruned, UpdateFinishedTrialError
from optuna.samplers import TPESampler
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.study import MaxTrialsCallback
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import Field
from tqdm import tqdm

from popularity.core.config import Section
from popularity.core.errors import ConfigError, DataError
from popularity.tuning.space import Space, Values
from popularity.tuning.storage import HEARTBEAT, Heartbeat, open_study

logger = logging.getLogger(__name__)

WORKERS_VARIABLE = "POPULARITY_TUNE_WORKERS"
N_STARTUP_TRIALS = 10  # random trials before TPE draws
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
REGISTERED, METRICS = "registered", "metrics"  # user attributes of a trial
DEFAULT = "default"  # name of the first trial where none is registered


@dataclass(frozen=True)
class Budget(Section):
    """The budget of a search.

    Args:
        seed: of the samplers.
        n_trials: number of finished trials, with the registered ones; 0: no search.
        timeout_hours: after which no trial is started; 0 for no limit.
        storage: `sqlite`, `journal:<path>` or the URL of a database.
    """

    seed: Annotated[int, Field(ge=0)]
    n_trials: Annotated[int, Field(ge=0)]
    timeout_hours: Annotated[float, Field(ge=0)]
    storage: str


@dataclass(frozen=True)
class Search:
    """A search.

    Args:
        name: of the study, with a fingerprint of all that the values of trials depend on, the code too.
        space: that is searched.
        budget: how many trials, and where they are stored.
        first: values of the registered trials, which come first, by name; if there are none, the default.
    """

    name: str
    space: Space[Any]
    budget: Budget
    first: Mapping[str, Values] = field(default_factory=dict)

    @property
    def registered(self) -> Mapping[str, Values]:
        """The first trials by name."""
        return self.first or {DEFAULT: self.space.default}


@dataclass(frozen=True)
class Step:
    """What a trial has reached after a step.

    Args:
        value: of the trial so far; lower is better.
        metrics: for the table of trials, by name.
    """

    value: float
    metrics: dict[str, float]


class Objective(Protocol):
    """Yields a trial's value after each of its `steps`; the last one counts. Equal parameters give equal steps."""

    @property
    def steps(self) -> int: ...

    def __call__(self, values: Values) -> Iterator[Step]: ...


@dataclass(frozen=True)
class Finished:
    """A trial that was completed or pruned.

    Args:
        number: its index among the finished trials.
        state: COMPLETE or PRUNED.
        value: the last one of its steps.
        values: of the parameters, by dotted key.
        metrics: of its last step.
        name: of a registered trial; None: the sampler drew it.
    """

    number: int
    state: str
    value: float
    values: dict[str, Any]
    metrics: dict[str, float]
    name: str | None = None


def workers_here() -> int:
    """How many processes search on this machine: POPULARITY_TUNE_WORKERS, by default one."""
    text = os.environ.get(WORKERS_VARIABLE) or "1"
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{WORKERS_VARIABLE}: expected a whole number from 1 up, found {text!r}")
    return int(text)


def run_search(
    search: Search,
    make_objective: Callable[[], Objective],
    *,
    state: Path,
    workers: int = 1,
    heartbeat: Heartbeat = HEARTBEAT,
) -> list[Finished]:
    """The first `budget.n_trials` finished trials, in order; fewer after the timeout.

    Args:
        search: what to search; a study of its name is resumed.
        make_objective: called before the first trial; pickled if there are several workers.
        state: folder of the database under `sqlite`.
        workers: processes on this machine.
        heartbeat: of running trials.

    Raises:
        ConfigError: the storage is not valid, or the search space is empty.
        DataError: the storage cannot be reached, or all workers ended early.
    """
    if search.budget.n_trials == 0:
        return []
    if not search.space.axes:
        raise ConfigError(f"the search space of section '{search.space.section}' is empty: set n_trials to 0")
    study = open_study(search.name, search.budget.storage, state, create=True, heartbeat=heartbeat)
    deadline = time.time() + search.budget.timeout_hours * 3600 if search.budget.timeout_hours else math.inf
    _queue_again(study, search)
    _queue_registered(study, search)
    if workers == 1:
        work(study, search, make_objective, worker=0, deadline=deadline)
    else:
        _work_in_processes(study, search, _Task(make_objective, state, heartbeat, deadline), workers)
    return finished_trials(study, search)


def finished_trials(study: optuna.Study, search: Search) -> list[Finished]:
    """The finished trials of a study, at most `budget.n_trials`, in the order in which they were started."""
    found = study.get_trials(deepcopy=False, states=FINISHED)[: search.budget.n_trials]
    return [
        Finished(
            number,
            trial.state.name,
            trial.intermediate_values[max(trial.intermediate_values)],
            search.space.decode(trial.params),
            json.loads(trial.user_attrs[METRICS]),
            trial.user_attrs.get(REGISTERED),
        )
        for number, trial in enumerate(found)
    ]


def work(
    study: optuna.Study,
    search: Search,
    make_objective: Callable[[], Objective],
    *,
    worker: int,
    deadline: float = math.inf,
) -> None:
    """Runs trials until `budget.n_trials` are finished, the deadline has passed or the parent process has ended.

    Args:
        study: of the search.
        search: what to search.
        make_objective: called before the first trial.
        worker: number of this worker; its draws differ from those of others.
        deadline: time.time() after which no trial is started.
    """
    wanted, run = search.budget.n_trials, _Run(search, cache(make_objective))
    parent = multiprocessing.parent_process()

    def reseed(study: optuna.Study, _trial: FrozenTrial | None = None) -> None:
        seeds = np.random.SeedSequence([search.budget.seed, worker, _count(study)])
        study.sampler = TPESampler(
            seed=int(seeds.generate_state(1)[0]), n_startup_trials=N_STARTUP_TRIALS, multivariate=True
        )

    def stop_without_parent(study: optuna.Study, _trial: FrozenTrial) -> None:
        if parent is not None and not parent.is_alive():
            study.stop()

    while (left := wanted - _count(study)) > 0 and time.time() < deadline and (parent is None or parent.is_alive()):
        reseed(study)
        try:
            study.optimize(
                run,
                n_trials=left,
                timeout=None if deadline == math.inf else max(deadline - time.time(), 0.0),
                callbacks=[MaxTrialsCallback(wanted, states=FINISHED), stop_without_parent, reseed],
                show_progress_bar=parent is None,
            )
        except (UpdateFinishedTrialError, ValueError):  # raised for the value of a trial that was failed meanwhile
            if run.failed:
                raise
            logger.warning(
                "another worker took this one for dead and queued its trial again: the trial is dropped here"
            )


@dataclass
class _Run:
    """Optuna's objective: runs a trial to its end, or until Optuna's pruner ends it.

    Args:
        search: its space decodes what a trial draws.
        objective: makes the objective, or returns the one it made before.
        failed: whether the objective raised an error.
    """

    search: Search
    objective: Callable[[], Objective]
    failed: bool = False

    def __call__(self, trial: Trial) -> float:
        try:
            return self._value(trial)
        except (TrialPruned, UpdateFinishedTrialError):
            raise
        except Exception:
            self.failed = True
            raise

    def _value(self, trial: Trial) -> float:
        values, objective, value = self.search.space.suggest(trial), self.objective(), math.nan
        for index, step in enumerate(objective(values)):
            value = step.value
            if not math.isfinite(value):
                raise DataError(
                    f"trial {trial.number}: its value is {value}",
                    expected="a finite number",
                    fix=f"remove these values from the space: {values}",
                )
            trial.set_user_attr(METRICS, json.dumps(step.metrics))
            trial.report(value, index)
            may_end = index < objective.steps - 1 and REGISTERED not in trial.user_attrs
            if may_end and trial.should_prune():
                raise TrialPruned
        return value


def _count(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=FINISHED))


def _queue_again(study: optuna.Study, search: Search) -> None:
    """Fails the trials that are marked as running and queues them again.

    A trial that was killed before it had drawn all its values is not queued: the next trial draws them all.
    """
    retry = RetryHeartbeatStaleTrialCallback()
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        if REGISTERED in trial.user_attrs or set(trial.params) == set(search.space.axes):
            retry(study, trial)


def _queue_registered(study: optuna.Study, search: Search) -> None:
    """Queues the registered trials that are neither queued nor finished."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.FAIL]
    known = {trial.user_attrs.get(REGISTERED) for trial in trials}
    for name, values in search.registered.items():
        if name not in known:
            study.enqueue_trial(search.space.encode(values), user_attrs={REGISTERED: name})


@dataclass(frozen=True)
class _Task:
    """The arguments of every worker process."""

    make_objective: Callable[[], Objective]
    state: Path
    heartbeat: Heartbeat
    deadline: float


def _work_in_processes(study: optuna.Study, search: Search, task: _Task, workers: int) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [
        # No daemons: those may not have children, and the network's objective starts loader processes.
        context.Process(target=_start_worker, args=(search, worker, task))
        for worker in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        with tqdm(total=search.budget.n_trials, desc=search.space.section, unit="trial") as progress:
            while any(process.is_alive() for process in processes):
                progress.update(min(_count(study), progress.total) - progress.n)
                time.sleep(1.0)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    for worker, process in enumerate(processes):
        if process.exitcode:
            logger.warning("worker %d ended with exit code %d", worker, process.exitcode)
    found = _count(study)
    if found < search.budget.n_trials and time.time() < task.deadline:
        raise DataError(
            f"all {workers} workers ended after {found} of {search.budget.n_trials} trials",
            expected="workers that run until the last trial is finished",
            fix=f"read their messages above; the same command continues, and {WORKERS_VARIABLE}=1 shows the error",
        )


def _start_worker(search: Search, worker: int, task: _Task) -> None:
    """Main function of a worker process."""
    study = open_study(search.name, search.budget.storage, task.state, create=False, heartbeat=task.heartbeat)
    work(study, search, task.make_objective, worker=worker, deadline=task.deadline)
