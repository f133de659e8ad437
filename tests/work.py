"""How much work a function does, in units that no busy machine changes: function calls and bytes."""

from __future__ import annotations

import cProfile
import tracemalloc
from collections.abc import Callable
from typing import NamedTuple


class Work(NamedTuple):
    """What a call cost.

    Args:
        calls: of Python functions and of those of extension modules, in this thread.
        peak: most bytes allocated at a time by Python and NumPy (not by polars), beyond what was there before.
    """

    calls: int
    peak: int


def work_of(function: Callable[[], object]) -> Work:
    """The calls and the memory of `function()`, each counted in a run of its own."""
    profile = cProfile.Profile()
    profile.runcall(function)
    calls = sum(entry.callcount for entry in profile.getstats())
    tracemalloc.start()
    try:
        function()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return Work(calls, peak)
