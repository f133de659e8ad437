"""Opens the Optuna study of a search: in a SQLite file, a journal file on a shared disk or a database."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.pruners import MedianPruner
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, ProgrammingError, SQLAlchemyError

from popularity.core.errors import ConfigError, DataError

SQLITE, JOURNAL = "sqlite", "journal:"
BLOCK = 1 << 16  # bytes that are read at a time from the end of a journal
N_UNPRUNED_TRIALS = 5  # completed trials before the first pruning


@dataclass(frozen=True)
class Heartbeat:
    """The heartbeat of a running trial.

    Args:
        interval: seconds between two heartbeats.
        stale_after: seconds without a heartbeat after which the worker counts as dead.
    """

    interval: int = 5
    stale_after: int = 60


HEARTBEAT = Heartbeat()


def open_study(name: str, where: str, state: Path, *, create: bool, heartbeat: Heartbeat = HEARTBEAT) -> optuna.Study:
    """The study `name`; with `create` it and its storage are made if they do not exist.

    Args:
        name: of the study.
        where: `sqlite`, `journal:<path>` or the URL of a database.
        state: folder of the database under `sqlite`.
        create: for the search itself; workers that join it make no study.
        heartbeat: of running trials, in a database.

    Raises:
        ConfigError: the storage is not valid or holds a password, or its driver is not installed.
        DataError: the storage cannot be reached, or it has no such study.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # the error of a failed trial is raised
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    try:
        storage = _open_storage(where, state, create, heartbeat)
        pruner = MedianPruner(n_startup_trials=N_UNPRUNED_TRIALS)
        if create:
            return optuna.create_study(storage=storage, pruner=pruner, study_name=name, load_if_exists=True)
        return optuna.load_study(storage=storage, pruner=pruner, study_name=name)
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
                f"no study {name}",
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


class _Journal(JournalFileBackend):
    """A journal file that a full disk or a kill may have left with half a line at its end."""

    def __init__(self, path: str) -> None:
        super().__init__(path, lock_obj=_MendingLock(path))
        self.path = path

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """The entries from a number on, without half a line at the end.

        Raises:
            DataError: another line is damaged.
        """
        try:
            yield from super().read_logs(log_number_from)
        except ValueError as error:
            raise DataError(
                f"a damaged line: {error}",
                file=self.path,
                row=_damaged_line(Path(self.path)),
                expected="a JSON record in each line",
                fix="remove the line, or choose another storage in params.yaml",
            ) from error


class _MendingLock(JournalFileSymlinkLock):
    """The lock for appending: who holds it cuts off half a line, which would spoil the line after it."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def acquire(self) -> bool:
        """Takes the lock; the last line then ends with a line break."""
        taken = super().acquire()
        if taken:
            with Path(self.path).open("rb+") as stream:
                end = stream.seek(0, os.SEEK_END)
                start = end
                while start:
                    start = max(0, start - BLOCK)
                    stream.seek(start)
                    block = stream.read(min(BLOCK, end - start))
                    if (last := block.rfind(b"\n")) >= 0:
                        start += last + 1
                        break
                if start < end:
                    stream.truncate(start)
        return taken


def _damaged_line(path: Path) -> int:
    """The first line that is no JSON, from 0."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream):
            try:
                json.loads(line)
            except ValueError:
                return number
    return 0


def _open_storage(where: str, state: Path, create: bool, heartbeat: Heartbeat) -> BaseStorage:
    if where.startswith(JOURNAL):
        return JournalStorage(_Journal(where.removeprefix(JOURNAL)))
    if where != SQLITE and make_url(where).password is not None:
        raise ConfigError(
            "the URL of the storage holds a password, which would be written to dvc.lock and git; put it where the "
            "driver finds it (PostgreSQL: ~/.pgpass or PGPASSFILE)"
        )
    return RDBStorage(
        f"sqlite:///{state / 'study.db'}" if where == SQLITE else where,
        engine_kwargs={"connect_args": {"timeout": 60}} if where == SQLITE else {"pool_pre_ping": True},
        heartbeat_interval=heartbeat.interval,
        grace_period=heartbeat.stale_after,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        # Two processes that make the tables at once would fail: only the one that makes the study makes them.
        skip_table_creation=not create,
    )
