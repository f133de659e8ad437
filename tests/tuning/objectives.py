"""Objectives that cost next to nothing, and the search over them; worker processes import them from here."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from popularity.core.config import Section
from popularity.tuning.space import Space, Values
from popularity.tuning.study import Budget, Search, Step


@dataclass(frozen=True)
class Bowl(Section):
    x: float
    n: int
    kind: str
    parts: tuple[str, ...]


BASE = Bowl(x=4.0, n=8, kind="plain", parts=("a", "b"))
SPEC = {
    "x": {"low": -5.0, "high": 5.0, "log": False, "integer": False},
    "n": {"low": 1, "high": 64, "log": True, "integer": True},
    "parts": {"choices": [["a", "b"], ["a"], []]},
}


def bowl_search(storage: str, trials: int, seed: int = 3, hours: float = 0.0) -> Search:
    """Least at x = 1, n = 4, parts = [a]."""
    space = Space.parse("tune.space", SPEC, "bowl", BASE)
    return Search(f"bowl-{seed}", space, Budget(seed, trials, hours, storage))


@dataclass
class BowlObjective:
    """Two steps; facts say which process ran it."""

    seconds: float = 0.0
    fails: bool = False
    has_children: bool = False
    worth: float | None = None  # in place of its value
    steps: int = 2

    def __call__(self, values: Values) -> Iterator[Step]:
        if self.fails:
            raise ValueError("this objective fails")
        if self.has_children:  # as the network's objective, whose loaders are processes
            child = multiprocessing.get_context("spawn").Process(target=os.getpid)
            child.start()
            child.join()
        if self.worth is not None:
            yield Step(self.worth, {})
        value = (values["x"] - 1) ** 2 + abs(values["n"] - 4) / 8 + (0 if values["parts"] == ["a"] else 1)
        facts: dict[str, float] = {"pid": os.getpid()}
        yield Step(value + 1, facts)
        time.sleep(self.seconds)
        yield Step(value, facts)
