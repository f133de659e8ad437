"""Runs the trials of a search on an Optuna study that can be killed at any moment and gone on with.

    trials = run_search(search, make_objective, state=folder, workers=1)

Optuna keeps no state of its sampler, so none is relied on: before each trial a fresh TPE sampler is seeded from the
search's seed and the number of finished trials. What it draws, and whether a trial is pruned, then depends on finished
trials alone. A trial that was broken off counts for nothing. So the finished trials of one worker are the same however
often it was killed.

Several workers share a study through its storage. Each running trial beats (a counter in the storage); a worker that
sees no beat for a while has the trial run again. Two rules keep their number exact: a trial is started only while those
finished and running are fewer than wanted, and given up at once if, by then, as many older ones are not failed.
Optuna's own heartbeat is not used: its journal storage has none.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, ProgrammingError, SQLAlchemyError
from tqdm import tqdm

from popularity.config import Section
from popularity.errors import ConfigError, DataError
from popularity.tuning.space import Space, Values

logger = logging.getLogger(__name__)

SQLITE, JOURNAL = "sqlite", "journal:"
WORKERS_VARIABLE = "POPULARITY_TUNE_WORKERS"
STARTUP = 10  # random trials before TPE has something to go by
JUDGES = 5  # finished trials before one is pruned
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
BEAT, FACTS = "beat", "facts"  # user attributes of a trial


@dataclass(frozen=True)
class Budget(Section):
    """What every search is given.

    Args:
        seed: of the samplers.
        trials: finished ones wanted, the default among them; 0 searches nothing.
        hours: after which no trial is started; 0 for no limit.
        storage: `sqlite`, `journal:<path>` or the URL of a database.
    """

    seed: Annotated[int, Field(ge=0)]
    trials: Annotated[int, Field(ge=0)]
    hours: Annotated[float, Field(ge=0)]
    storage: str


@dataclass(frozen=True)
class Search:
    """What is searched.

    Args:
        name: of the study; it holds a fingerprint of all that the values of trials depend on, code included.
        space: searched.
        budget: how much, and where trials are kept.
    """

    name: str
    space: Space[Any]
    budget: Budget


@dataclass(frozen=True)
class Step:
    """The value of a trial so far, the less the better, and facts about it for the table."""

    value: float
    facts: dict[str, float]


class Objective(Protocol):
    """Yields a trial's value after each of its `steps`; the last is its value. Equal values, equal steps."""

    @property
    def steps(self) -> int: ...

    def __call__(self, values: Values) -> Iterator[Step]: ...


@dataclass(frozen=True)
class Finished:
    """A trial that was completed or pruned.

    Args:
        number: its place among the finished, from 0.
        state: COMPLETE or PRUNED.
        value: the last one of its steps.
        values: what it tried, by dotted key.
        facts: of its last step.
    """

    number: int
    state: str
    value: float
    values: dict[str, Any]
    facts: dict[str, float]


@dataclass(frozen=True)
class Pulse:
    """Seconds between the beats of a running trial, and without one before others take it for dead."""

    beat: float = 5.0
    grace: float = 60.0


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
    pulse: Pulse = Pulse(),
) -> list[Finished]:
    """The first `budget.trials` finished trials, in order; fewer if the hours ended before.

    Args:
        search: what to search; a study of its name is gone on with.
        make_objective: called where the first trial is run; with several workers it is pickled.
        state: folder of the database under `sqlite`.
        workers: processes on this machine.
        pulse: of running trials.

    Raises:
        ConfigError: a storage that is none.
        DataError: the storage cannot be reached, or all workers ended early.
    """
    if search.budget.trials == 0:
        return []
    if not search.space.axes:
        raise ConfigError(f"the search space of section '{search.space.section}' is empty: set its trials to 0")
    study = open_study(search, state, create=True)
    deadline = time.time() + search.budget.hours * 3600 if search.budget.hours else float("inf")
    shared = search.budget.storage != SQLITE
    _settle(study, search, pulse if shared else None)
    if workers == 1:
        work(study, search, make_objective, worker=0, deadline=deadline, pulse=pulse if shared else None)
    else:
        _work_in_processes(study, search, make_objective, state, workers, deadline, pulse)
    return finished_trials(study, search)


def open_study(search: Search, state: Path, *, create: bool) -> optuna.Study:
    """The study of the search, made if it is not there and `create` says so; its storage is made with it.

    Raises:
        ConfigError: a storage that is none, a password in it, or a driver that is not installed.
        DataError: the storage cannot be reached, or it has no such study.
    """
    where = search.budget.storage
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    try:
        storage = _open_storage(where, state, create=create)
        if create:
            return optuna.create_study(storage=storage, study_name=search.name, load_if_exists=True)
        return optuna.load_study(storage=storage, study_name=search.name)
    except (ArgumentError, ValueError) as error:
        raise ConfigError(f"storage {where!r}: expected {SQLITE}, {JOURNAL}<path> or the URL of a database") from error
    except ImportError as error:
        raise ConfigError(
            f"storage {where!r}: its driver is not installed; for PostgreSQL (postgresql+psycopg://...): "
            "pip install 'psycopg[binary]>=3.3'"
        ) from error
    except (KeyError, SQLAlchemyError, StorageInternalError, OSError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, KeyError | ProgrammingError):  # no such study, or not even its tables
            raise DataError(
                f"no study {search.name}",
                file=where,
                expected="one that the stage began with the same parameters, inputs and code",
                fix="start the search itself first, or bring params.yaml, data and code to the state it began with",
            ) from error
        reason = str(cause).splitlines()[0]
        raise DataError(
            f"the trials' storage cannot be used: {reason}",
            file=where,
            expected=f"{SQLITE}, {JOURNAL}<path> in a folder that exists, or a database that answers",
            fix="start the database, or choose another storage in params.yaml",
        ) from error


def _open_storage(where: str, state: Path, *, create: bool) -> BaseStorage:
    if where == SQLITE:
        return RDBStorage(f"sqlite:///{state / 'study.db'}", engine_kwargs={"connect_args": {"timeout": 60}})
    if where.startswith(JOURNAL):
        return JournalStorage(JournalFileBackend(where.removeprefix(JOURNAL)))
    if make_url(where).password is not None:
        raise ConfigError(
            "a storage's URL holds a password, which would end up in dvc.lock and git; leave it out and put it where "
            "the driver finds it (PostgreSQL: ~/.pgpass or PGPASSFILE)"
        )
    # Two processes that make the tables at once would fail: only the one that makes the study does it.
    return RDBStorage(where, engine_kwargs={"pool_pre_ping": True}, skip_table_creation=not create)


def finished_trials(study: optuna.Study, search: Search) -> list[Finished]:
    """The finished trials of a study, as many as the search wants, in the order in which they were started."""
    found = study.get_trials(deepcopy=False, states=FINISHED)[: search.budget.trials]
    return [
        Finished(
            number,
            trial.state.name,
            trial.intermediate_values[max(trial.intermediate_values)],
            search.space.decode(trial.params),
            json.loads(trial.user_attrs[FACTS]),
        )
        for number, trial in enumerate(found)
    ]


def work(
    study: optuna.Study,
    search: Search,
    make_objective: Callable[[], Objective],
    *,
    worker: int,
    deadline: float = float("inf"),
    pulse: Pulse | None = None,
) -> None:
    """Runs trials until as many as wanted are finished, the deadline has passed or the parent process has gone.

    Args:
        study: of the search.
        search: what to search.
        make_objective: called before the first trial.
        worker: number of this worker; its draws differ from those of others.
        deadline: time.time() after which no trial is started.
        pulse: of trials that others watch; None if there are no others.
    """
    wanted, objective, watch = search.budget.trials, None, _Watch()
    parent = multiprocessing.parent_process()
    with tqdm(total=wanted, desc=search.space.section, unit="trial", disable=parent is not None) as progress:
        while time.time() < deadline and (parent is None or parent.is_alive()):
            trials = study.get_trials(deepcopy=False)
            finished = [trial for trial in trials if trial.state in FINISHED]
            running = [trial for trial in trials if trial.state == TrialState.RUNNING]
            waiting = any(trial.state == TrialState.WAITING for trial in trials)
            _show(progress, finished)
            if len(finished) >= wanted:
                return
            if dead := watch.silent(running, pulse.grace) if pulse else []:
                for trial in dead:
                    _retire(study, search, trial)
                continue
            if not waiting and len(finished) + len(running) >= wanted:
                time.sleep(min(pulse.beat if pulse else 1.0, 1.0))
                continue
            objective = objective or make_objective()
            seed = np.random.SeedSequence([search.budget.seed, worker, len(finished)]).generate_state(1)[0]
            study.sampler = optuna.samplers.TPESampler(seed=int(seed), n_startup_trials=STARTUP, multivariate=True)
            asked = study.ask(search.space.distributions())
            if _is_surplus(study, asked.number, wanted):
                study.tell(asked, state=TrialState.FAIL, skip_if_finished=True)
                continue
            with _beating(asked, pulse):
                _run_trial(study, search, asked, objective)


def _show(progress: Any, finished: Sequence[FrozenTrial]) -> None:
    values = [trial.value for trial in finished if trial.state == TrialState.COMPLETE and trial.value is not None]
    progress.set_postfix({"best": f"{min(values):.4f}"} if values else {}, refresh=False)
    progress.update(min(len(finished), progress.total) - progress.n)
    progress.refresh()


def _run_trial(study: optuna.Study, search: Search, trial: optuna.Trial, objective: Objective) -> None:
    """Runs one trial to its end, or until the trials before it say that it is none of the better half."""
    try:
        for number, step in enumerate(objective(search.space.decode(trial.params))):
            if not math.isfinite(step.value):
                raise DataError(
                    f"trial {trial.number}: its value is {step.value}",
                    expected="a finite number",
                    fix=f"keep what it tried out of the space: {search.space.decode(trial.params)}",
                )
            trial.set_user_attr(FACTS, json.dumps(step.facts))
            trial.report(step.value, number)
            if number < objective.steps - 1 and _is_hopeless(study, number, step.value):
                study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
                return
        study.tell(trial, step.value, skip_if_finished=True)
    except UpdateFinishedTrialError:
        logger.warning("trial %d was taken for dead by another worker: it does not count", trial.number)
    except Exception:
        study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        raise


def _is_hopeless(study: optuna.Study, step: int, value: float) -> bool:
    """Whether the value after this step is worse than the median of the finished trials that came so far.

    Optuna's MedianPruner compares a trial's best step instead, and values after different folds differ in level.
    """
    trials = study.get_trials(deepcopy=False, states=FINISHED)
    values = [trial.intermediate_values[step] for trial in trials if step in trial.intermediate_values]
    return len(trials) >= JUDGES and value > float(np.median(values))


def _is_surplus(study: optuna.Study, number: int, wanted: int) -> bool:
    """Whether `wanted` trials with a smaller number are finished, running or waiting.

    Their number can only fall, for numbers are given in order and a failed trial stays failed: no more than `wanted`
    trials ever pass.
    """
    trials = study.get_trials(deepcopy=False)
    return sum(trial.number < number and trial.state != TrialState.FAIL for trial in trials) >= wanted


def _settle(study: optuna.Study, search: Search, pulse: Pulse | None) -> None:
    """Leaves no trial of a killed run behind, and sees to it that the default is tried first.

    Without a pulse nobody else is there: a running trial is a dead one. With one, each is waited for until it beats.
    """
    watch = _Watch()
    while running := study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        dead = running if pulse is None else watch.silent(running, pulse.grace)
        for trial in dead:
            _retire(study, search, trial)
        if pulse is not None and not dead:
            if all(trial.number in watch.alive for trial in running):
                break
            time.sleep(pulse.beat)
    _enqueue_default(study, search)


def _enqueue_default(study: optuna.Study, search: Search) -> None:
    default = search.space.encode(search.space.default)
    trials = study.get_trials(deepcopy=False)
    given = [
        trial.system_attrs.get("fixed_params") or trial.params for trial in trials if trial.state != TrialState.FAIL
    ]
    if default not in given:
        study.enqueue_trial(default)


def _retire(study: optuna.Study, search: Search, trial: FrozenTrial) -> None:
    """Fails a trial that nobody runs any more; what it tried is tried again by whoever comes next."""
    try:
        study.tell(trial.number, state=TrialState.FAIL)
    except (ValueError, UpdateFinishedTrialError):
        return  # another worker was quicker, or the trial has ended after all
    logger.info("trial %d was broken off: it is run again", trial.number)
    if set(trial.params) == set(search.space.axes):
        study.enqueue_trial(trial.params)
    _enqueue_default(study, search)


@dataclass
class _Watch:
    """When this process saw the beats of running trials: other machines' clocks do not matter."""

    seen: dict[int, tuple[int, float]] = field(default_factory=dict)
    alive: set[int] = field(default_factory=set)  # numbers of trials that were seen to beat

    def silent(self, running: Sequence[FrozenTrial], grace: float) -> list[FrozenTrial]:
        """Those that have not beaten for `grace` seconds."""
        now, result = time.monotonic(), []
        for trial in running:
            beat = int(trial.user_attrs.get(BEAT, 0))
            before, since = self.seen.get(trial.number, (beat, now))
            if beat != before:
                self.alive.add(trial.number)
                since = now
            self.seen[trial.number] = (beat, since)
            if now - since >= grace:
                result.append(trial)
        return result


@contextmanager
def _beating(trial: optuna.Trial, pulse: Pulse | None) -> Iterator[None]:
    """Counts up in the storage while the block runs, in a thread: LightGBM and torch let it."""
    if pulse is None:
        yield
        return
    ended = threading.Event()

    def beat() -> None:
        for count in itertools.count(1):
            try:
                trial.set_user_attr(BEAT, count)
            except UpdateFinishedTrialError:
                return
            except (StorageInternalError, SQLAlchemyError, OSError) as error:
                logger.warning("trial %d could not beat: %s", trial.number, error)
            if ended.wait(pulse.beat):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _work_in_processes(
    study: optuna.Study,
    search: Search,
    make_objective: Callable[[], Objective],
    state: Path,
    workers: int,
    deadline: float,
    pulse: Pulse,
) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [
        # No daemons: those may not have children, and the network's objective starts loader processes.
        context.Process(target=_start_worker, args=(search, make_objective, state, worker, deadline, pulse))
        for worker in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        with tqdm(total=search.budget.trials, desc=search.space.section, unit="trial") as progress:
            while any(process.is_alive() for process in processes):
                _show(progress, study.get_trials(deepcopy=False, states=FINISHED))
                time.sleep(1.0)
            _show(progress, study.get_trials(deepcopy=False, states=FINISHED))
    finally:
        for process in processes:
            process.terminate()
            process.join()
    for worker, process in enumerate(processes):
        if process.exitcode:
            logger.warning("worker %d ended with exit code %d", worker, process.exitcode)
    found = len(study.get_trials(deepcopy=False, states=FINISHED))
    if found < search.budget.trials and time.time() < deadline:
        raise DataError(
            f"all {workers} workers ended after {found} of {search.budget.trials} trials",
            expected="workers that live until the last trial is finished",
            fix=f"see what they wrote above; the same command goes on, {WORKERS_VARIABLE}=1 shows the error plainly",
        )


def _start_worker(
    search: Search,
    make_objective: Callable[[], Objective],
    state: Path,
    worker: int,
    deadline: float,
    pulse: Pulse,
) -> None:
    """Main function of a worker process."""
    study = open_study(search, state, create=False)
    work(study, search, make_objective, worker=worker, deadline=deadline, pulse=pulse)
