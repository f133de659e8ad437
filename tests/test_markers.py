"""The marks of the suite: `make test-fast` leaves out what is marked slow."""

from __future__ import annotations

from tests.conftest import FIRST, SLOW, TESTS


def test_every_file_and_test_that_the_suite_names_is_there() -> None:
    for name in (*SLOW, *FIRST):
        file, _, test = name.partition("::")
        assert (TESTS / f"{file}.py").is_file(), name
        assert f"def {test}(" in (TESTS / f"{file}.py").read_text(encoding="utf-8") or not test, name
