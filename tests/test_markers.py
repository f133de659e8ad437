"""The marks of the suite: `make test-fast` leaves out what is marked slow."""

from __future__ import annotations

from tests.conftest import FIRST, SLOW_FILES, TESTS


def test_every_file_that_the_suite_names_is_there() -> None:
    for name in (*SLOW_FILES, *FIRST):
        assert (TESTS / f"{name}.py").is_file(), name
