"""Training curves through DVCLive, for `dvc plots`, `dvc metrics` and `dvc exp show`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dvclive.live import Live
from scmrepo.exceptions import SCMError

from popularity.core.errors import DataError
from popularity.training.loop import Epoch, OnEpoch, no_op


@contextmanager
def curves(folder: Path, *, writes: bool) -> Iterator[OnEpoch]:
    """A function that writes the values of an epoch to <folder>/metrics.json and <folder>/plots.

    Args:
        folder: emptied first.
        writes: true on one process alone; on the others the function does nothing.

    Raises:
        DataError: the repository has no commit yet; DVCLive cannot work without one.
    """
    if not writes:
        yield no_op
        return
    try:
        live = Live(str(folder), dvcyaml=None, save_dvc_exp=False, report=None)
    except SCMError as error:
        raise DataError(
            f"DVCLive cannot write {folder}: {error}",
            expected="a git repository with at least one commit",
            fix="git add -A && git commit -m start",
        ) from error

    def on_epoch(index: int, epoch: Epoch) -> None:
        live.step = index
        for name, value in sorted(epoch.items()):  # a resumed run reads its history in the same order
            live.log_metric(name, value)
        live.make_summary()  # type: ignore[no-untyped-call]

    yield on_epoch
    live.end()  # type: ignore[no-untyped-call]
