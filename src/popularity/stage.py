"""What every stage shares: logging, a cost record, and errors shown as one message."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from popularity.errors import PopularityError
from popularity.files import write_json


@contextmanager
def measured(name: str, record: Path) -> Iterator[None]:
    """Runs a stage's work and writes its wall time (s) and peak memory (MiB) to `record` on success.

    Peak memory is the largest resident set of this process and of its largest child.
    """
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    own, children = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    write_json(
        record,
        {"stage": name, "seconds": round(seconds, 2), "peak_mib": round(own), "largest_child_mib": round(children)},
    )


def run(main: Callable[[], None]) -> None:
    """Entry point of a stage or command: logs to stderr; a PopularityError exits 1 with its message."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it tells of every file of a checkpoint
    try:
        main()
    except PopularityError as error:
        sys.exit(f"error: {error}")
