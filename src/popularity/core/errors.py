"""Errors for people: what is wrong, where, what was expected, what to do next."""

from __future__ import annotations

from pathlib import Path


class PopularityError(Exception):
    """Base of every error that a command shows as one message, without a traceback."""


class ConfigError(PopularityError):
    """params.yaml holds an unknown, missing or ill-typed key."""


class ContractError(PopularityError):
    """A table or array breaks the contract that `popularity.core.contracts` states for it."""


class MissingWeightsError(PopularityError):
    """The weights of an encoder are not on this machine."""


class ClusterError(PopularityError):
    """Workers of a cluster are missing or keep failing."""


class BusyError(PopularityError):
    """Another run works in the same folder."""


class DataError(PopularityError):
    """Input data that cannot be used, with file and row.

    Args:
        problem: what was found, in one clause.
        file: the file that holds it.
        row: zero-based row (list index, line or column key) in that file.
        expected: what would have been accepted.
        fix: the next command or step for the user.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: Path | str | None = None,
        row: int | str | None = None,
        expected: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.problem, self.file, self.row, self.expected, self.fix = problem, file, row, expected, fix
        where = ", ".join([*([str(file)] if file is not None else []), *([f"row {row}"] if row is not None else [])])
        lines = [f"{where}: {problem}" if where else problem]
        if expected:
            lines.append(f"  expected: {expected}")
        if fix:
            lines.append(f"  next: {fix}")
        super().__init__("\n".join(lines))
