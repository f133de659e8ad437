"""Training curves through DVCLive, for `dvc plots`, `dvc metrics` and `dvc exp show`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dvclive.live import Live
from scmrepo.exceptions import SCMError

from popularity.errors import DataError
from popularity.training.loop import Epoch, say_nothing


@contextmanager
def curves(folder: Path, *, writes: bool) -> Iterator[Callable[[int, Epoch], None]]:
    """A function to be told (number, values) of each epoch, which writes <folder>/metrics.json and <folder>/plots.

    Args:
        folder: emptied first.
        writes: false on all processes but one: theirs does nothing.

    Raises:
        DataError: the repository has no commit yet; DVCLive cannot work without one.
    """
    if not writes:
        yield say_nothing
        return
    try:
        live = Live(str(folder), dvcyaml=None, save_dvc_exp=False, report=None)
    except SCMError as error:
        raise DataError(
            f"DVCLive cannot write {folder}: {error}",
            expected="a git repository with at least one commit",
            fix="git add -A && git commit -m start",
        ) from error

    def tell(number: int, epoch: Epoch) -> None:
        live.step = number
        for name, value in sorted(epoch.items()):  # a resumed run reads its history in this order
            live.log_metric(name, value)
        live.make_summary()  # type: ignore[no-untyped-call]

    yield tell
    live.end()  # type: ignore[no-untyped-call]
