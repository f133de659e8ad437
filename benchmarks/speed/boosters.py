"""The boosters of a whole run: the task of `python -m benchmarks.speed boosters --folder RUN`."""

from __future__ import annotations

import importlib
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import lightgbm as lgb

from benchmarks.graph import change_params, expanded
from benchmarks.measuring import Clock, Task, run_task
from popularity.core.config import PARAMS_FILE, read_yaml

LEFT_OUT = shutil.ignore_patterns(".venv*", ".state", ".dvc", ".git", "__pycache__", ".*_cache")


@dataclass
class Trained:
    """Boosters that were made, those of the inner CV and of the error scale included, and seconds in LightGBM."""

    boosters: int = 0
    seconds: float = 0.0

    def counting(self) -> type[lgb.Booster]:
        """A booster that is counted."""
        trained = self

        class Counted(lgb.Booster):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                trained.boosters += 1

        return Counted

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """LightGBM's train or cv, timed."""

        def called(*args: Any, **kwargs: Any) -> Any:
            clock = Clock()
            found = function(*args, **kwargs)
            self.seconds += clock.read()["seconds"]
            return found

        return called


def task_boosters(run: Path) -> dict[str, Any]:
    """Stages tune and stack of a finished run once more, in a copy and one fit at a time.

    Args:
        run: folder in which the graph has run; the code is that of this repository.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=run.parent) as name:
        copy = Path(name) / "run"
        shutil.copytree(run, copy, ignore=LEFT_OUT)
        change_params(copy / PARAMS_FILE, lambda params: params["stack"].update(parallel_folds=1))
        commands = expanded(read_yaml(copy / "dvc.yaml"), read_yaml(copy / PARAMS_FILE))
        for stage in ("tune", "stack"):
            _, _, module, *flags = shlex.split(commands[stage]["cmd"])
            trained, clock = Trained(), Clock()
            with (
                chdir(copy),
                mock.patch.object(lgb.engine, "Booster", trained.counting()),
                mock.patch.object(lgb, "train", trained.timed(lgb.train)),
                mock.patch.object(lgb, "cv", trained.timed(lgb.cv)),
            ):
                importlib.import_module(module).main(flags)
            found[stage] = {"boosters": trained.boosters, "lightgbm": trained.seconds, **clock.read()}
    return found


TASKS: dict[str, Task] = {"boosters": task_boosters}

if __name__ == "__main__":
    run_task(TASKS, sys.argv[1:])
