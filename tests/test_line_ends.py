"""Files have the same bytes on every system, whatever core.autocrlf says: stages and the environment go by them."""

from __future__ import annotations

import subprocess

import pytest

from tests.repository import REPOSITORY


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="no git repository")
def test_text_is_checked_out_with_line_feeds() -> None:
    command = ["git", "-c", "core.autocrlf=true", "ls-files", "--eol"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.splitlines()
    entries = [line.partition("\t") for line in listed]
    assert {"requirements.lock", "pyproject.toml", "dvc.lock", "params.yaml"} <= {name for _, _, name in entries}
    assert [name for kinds, _, name in entries if "eol=lf" not in kinds and "attr/-text" not in kinds] == []
    assert [name for kinds, _, name in entries if "w/crlf" in kinds or "i/crlf" in kinds] == []
