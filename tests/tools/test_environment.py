"""`make env`: what it will fetch is said first, pip's settings hold for uv, and pip installs where uv cannot."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.repository import REPOSITORY
from tools import environment
from tools.environment import announcement, missing, pip_settings, read_lock, uv_command, uv_environment
from tools.lock import Locked, lock_text, merge

TEXT = lock_text({"small-one": Locked("1.2", 400_000, {"a" * 64}), "torch": Locked("2.0", 554_581_699, {"b" * 64})})


def test_the_lock_is_read_as_it_is_written() -> None:
    small, torch = read_lock(TEXT)
    assert (small.name, small.version, small.megabytes) == ("small-one", "1.2", 0.4)
    assert (torch.name, torch.version, torch.megabytes) == ("torch", "2.0", 554.6)
    assert f"--hash=sha256:{'b' * 64}" in torch.block
    assert "small-one" not in torch.block


def test_only_what_is_missing_is_announced() -> None:
    packages = read_lock(TEXT)
    needed = missing(packages, {"small-one": "1.2", "torch": "1.9"})
    assert [package.name for package in needed] == ["torch"]
    assert announcement(needed, 2) == ("==> to install: 1 of 2 packages, 555 MB to fetch unless cached (torch 555 MB)")


def test_the_lock_of_the_repository_has_hashes_sizes_and_no_host() -> None:
    text = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
    packages = read_lock(text)
    assert {"torch", "uv", "pytest"} <= {package.name for package in packages}
    assert all("--hash=sha256:" in package.block and package.megabytes >= 0 for package in packages)
    assert sum(package.megabytes for package in packages) > 1_000
    assert not re.search(r"https?:|\.(org|com)\b", text)


def test_one_version_on_every_python() -> None:
    def package(version: str, digest: str, size: int) -> dict[str, object]:
        return {"name": "a", "version": version, "wheels": [{"size": size, "hashes": {"sha256": digest}}]}

    source = {"name": "b", "version": "3", "sdist": {"size": 7, "hashes": {"sha256": "s"}}}
    merged = merge([[package("1", "x", 5), source], [package("1", "y", 6)]])
    assert merged == {"a": Locked("1", 5, {"x", "y"}), "b": Locked("3", 7, {"s"})}
    with pytest.raises(SystemExit, match="a has versions 1 and 2"):
        merge([[package("1", "x", 5)], [package("2", "y", 6)]])


def test_variables_come_before_files_in_pips_settings() -> None:
    listing = (
        "global.index-url='https://a/simple'\nglobal.cert='/c.pem'\ninstall.index-url='https://b/simple'\n"
        ":env:.index-url='https://c/simple'\n"
    )
    assert pip_settings(listing) == {"index-url": "https://c/simple", "cert": "/c.pem"}


def test_uv_reads_where_pip_reads(tmp_path: Path) -> None:
    settings = {
        "index-url": "https://a/simple",
        "extra-index-url": "https://b/simple\nfile:///c",
        "find-links": f"/nowhere {tmp_path}",
        "timeout": "180",
        "quiet": "1",
    }
    assert uv_environment(settings, {"HOME": "/h"}) == {
        "HOME": "/h",
        "UV_DEFAULT_INDEX": "https://a/simple",
        "UV_INDEX": "https://b/simple file:///c",
        "UV_FIND_LINKS": str(tmp_path),
        "UV_HTTP_TIMEOUT": "180",
    }


def test_an_index_that_is_set_for_uv_is_its_only_one() -> None:
    settings = {"index-url": "https://a/simple", "extra-index-url": "https://b/simple", "timeout": "9"}
    assert uv_environment(settings, {"UV_INDEX_URL": "https://own"}) == {
        "UV_INDEX_URL": "https://own",
        "UV_HTTP_TIMEOUT": "9",
    }
    assert "--no-index" in uv_command({"no-index": "true"})
    assert "--no-index" not in uv_command({"no-index": "false"})


@pytest.mark.parametrize("broken", ["", "install uv", "uv pip"])
def test_pip_installs_where_uv_cannot(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    calls: list[str] = []

    def run(*command: str, environment: Mapping[str, str] | None = None) -> bool:
        text = " ".join(command[2:])
        name = "install uv" if "uv.txt" in text else text
        calls.append(name)
        return not (broken and name.startswith(broken))

    def no_settings(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess((), 0, "", "")

    monkeypatch.setattr(environment, "run", run)
    monkeypatch.setattr(subprocess, "run", no_settings)
    monkeypatch.setattr(environment, "installed_packages", dict)
    monkeypatch.setattr(sys, "prefix", "/an/environment")
    monkeypatch.delenv("INSTALLER", raising=False)
    assert environment.main() == 0
    assert ("pip does" in capsys.readouterr().out) == bool(broken)
    assert calls[0] == "install uv"
    assert "--editable ." in calls[-1]
    assert sum("requirements.lock" in call and call.startswith("pip install") for call in calls) == bool(broken)
    assert sum(call.startswith("uv pip install") for call in calls) == (broken != "install uv")


def test_the_switch_for_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def run(*command: str) -> bool:
        calls.append(" ".join(command[1:]))
        return True

    monkeypatch.setattr(environment, "run", run)
    monkeypatch.setattr(sys, "prefix", "/an/environment")
    monkeypatch.setenv("INSTALLER", "pip")
    assert environment.main() == 0
    assert len(calls) == 2
    assert all(call.startswith("-m pip install") for call in calls)


def test_the_python_of_the_machine_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert environment.main() == 1
    assert "make env" in capsys.readouterr().err
