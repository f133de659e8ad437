"""Writes requirements.lock: every package of the project with its version, the hashes of its files, and their size.

    make lock              # versions stay; packages that pyproject.toml newly asks for come in
    make lock UPGRADE=1    # the newest versions that pyproject.toml allows

uv resolves for every Python and machine below; a package has the same version on all. The hashes are of the wheels
that these can install, and of the source where a package has no wheel. Nothing in the file says where it came from.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.environment import LOCK, PIP, ROOT, UV_INSTALL, pip_settings, uv_environment

PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64-manylinux_2_40", "aarch64-manylinux_2_40")
PARTIAL = ("extra-index-url", "find-links")
HEADER = """\
# Written by `make lock` (tools/lock.py) for Linux on x86_64 and aarch64 and the Pythons {pythons}.
# A package: its version, the hashes of its files, and how much an installation fetches.
"""


@dataclass
class Locked:
    """A package over all resolutions: its version, the hashes of its files, and the bytes of its largest file."""

    version: str
    size: int
    hashes: set[str] = field(default_factory=set)


def files(package: dict[str, Any]) -> list[dict[str, Any]]:
    """The wheels of a package, or its source where it has none."""
    return package.get("wheels") or [package["sdist"]]


def merge(resolutions: list[list[dict[str, Any]]]) -> dict[str, Locked]:
    """The packages of all resolutions by name.

    Raises:
        SystemExit: a package has another version on another Python or machine.
    """
    merged: dict[str, Locked] = {}
    for package in (package for packages in resolutions for package in packages):
        found = files(package)
        locked = merged.setdefault(package["name"], Locked(package["version"], max(file["size"] for file in found)))
        if locked.version != package["version"]:
            sys.exit(
                f"error: {package['name']} has versions {locked.version} and {package['version']}\n"
                "  expected: one version on every Python and machine\n  next: a narrower range in pyproject.toml"
            )
        locked.hashes |= {file["hashes"]["sha256"] for file in found}
    return merged


def lock_text(packages: dict[str, Locked]) -> str:
    """The text of requirements.lock."""
    blocks = []
    for name, package in sorted(packages.items()):
        hashes = " \\\n".join(f"    --hash=sha256:{value}" for value in sorted(package.hashes))
        blocks.append(f"{name}=={package.version} \\\n{hashes}\n    # {package.size / 1e6:.1f} MB\n")
    return HEADER.format(pythons=", ".join(PYTHONS)) + "".join(blocks)


def resolve(python: str, machine: str, versions: Path | None) -> list[dict[str, Any]]:
    """The packages that uv chooses, as a pylock.toml has them. `versions` is a file of versions to keep."""
    listing = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=True).stdout
    # Further indexes and folders may hold a part of a package's files: the one index has them all.
    settings = {name: value for name, value in pip_settings(listing).items() if name not in PARTIAL}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pylock.toml"
        command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--extra", "dev", *UV_INSTALL[-2:]]
        command += ["--python-version", python, "--python-platform", machine, "--format", "pylock.toml"]
        command += ["--quiet", "--output-file", str(out), *(["--constraint", str(versions)] if versions else [])]
        subprocess.run(command, cwd=ROOT, env=uv_environment(settings, os.environ), check=True)
        packages: list[dict[str, Any]] = tomllib.loads(out.read_text(encoding="utf-8"))["packages"]
        return packages


def main() -> None:
    versions = None if os.environ.get("UPGRADE") == "1" else LOCK
    text = lock_text(merge([resolve(python, machine, versions) for machine in MACHINES for python in PYTHONS]))
    LOCK.write_text(text, encoding="utf-8")
    print(f"{LOCK.name}: {text.count('==')} packages; next: make env, make test")


if __name__ == "__main__":
    main()
