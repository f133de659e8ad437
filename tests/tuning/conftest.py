"""A PostgreSQL server on loopback, for the tests that need one."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def _programs() -> Path | None:
    """The folder of initdb and pg_ctl: Debian keeps them off the PATH."""
    found = shutil.which("pg_ctl")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of an empty database; gone after the session. The server refuses to run as root: another user does it."""
    programs = _programs()
    if programs is None:
        missing = "PostgreSQL's programs are missing (Debian: apt-get install postgresql)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    user: dict[str, Any] = {}
    if os.getuid() == 0:
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = {"user": "postgres" if "postgres" in names else "nobody", "extra_groups": []}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="popularity-postgresql-"))
    if user:
        shutil.chown(folder, user["user"])

    def call(*command: str) -> None:
        done = subprocess.run(
            [programs / command[0], *command[1:]], cwd=folder, capture_output=True, text=True, check=False, **user
        )
        assert done.returncode == 0, done.stdout + done.stderr

    call("initdb", "-D", "data", "-U", "optuna", "--auth=trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
    options = f"-c listen_addresses=127.0.0.1 -p {port} -c unix_socket_directories={folder} -c fsync=off"
    call("pg_ctl", "-D", "data", "-l", "log", "-w", "-o", options, "start")
    try:
        call("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "optuna", "optuna")
        yield f"postgresql+psycopg://optuna@127.0.0.1:{port}/optuna"
    finally:
        call("pg_ctl", "-D", "data", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
