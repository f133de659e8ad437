"""Fills an environment with the packages of requirements.lock and this folder's package: what `make env` runs.

    .venv/bin/python tools/environment.py       # the environment of that Python; INSTALLER=pip leaves uv out

uv installs, which the lock names as well and pip brings first; pip installs everything where uv cannot. Both accept
only files with a hash of the lock, and fetch them from where pip's configuration says. The standard library alone.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
PIP = (sys.executable, "-m", "pip")
PIP_INSTALL = (*PIP, "install", "--quiet", "--disable-pip-version-check")
# pip takes the best version of all indexes; uv, by default, the first index that knows the package.
UV_INSTALL = ("-m", "uv", "pip", "install", "--index-strategy", "unsafe-best-match")
# Setting of pip -> variable of uv, and what stands between several values.
UV_VARIABLES = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "proxy": ("ALL_PROXY", " "),
}
OWN_INDEX = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL")


@dataclass(frozen=True)
class Package:
    """A package of the lock: `name`, `version`, `megabytes` to fetch, and `block`, its lines."""

    name: str
    version: str
    megabytes: float
    block: str


def read_lock(text: str) -> list[Package]:
    """The packages of a lock: blocks that begin with name==version, with hashes and a comment like `# 554.6 MB`."""
    packages = []
    for block in re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE):
        named = re.match(r"([a-z0-9-]+)==([^\s;]+)", block)
        size = re.search(r"# ([0-9.]+) MB$", block, flags=re.MULTILINE)
        if named:
            packages.append(Package(named[1], named[2], float(size[1]) if size else 0.0, block))
    return packages


def missing(packages: list[Package], installed: Mapping[str, str]) -> list[Package]:
    """The packages that are not installed in the version of the lock. `installed`: name to version."""
    return [package for package in packages if installed.get(package.name) != package.version]


def installed_packages() -> dict[str, str]:
    """Name, in the lock's spelling, to version."""
    return {re.sub(r"[-_.]+", "-", found.metadata["Name"] or "").lower(): found.version for found in distributions()}


def announcement(packages: list[Package], total: int) -> str:
    """What will be fetched, before anything is."""
    largest = sorted(packages, key=lambda package: -package.megabytes)[:3]
    named = ", ".join(f"{package.name} {package.megabytes:,.0f} MB" for package in largest)
    return (
        f"==> to install: {len(packages)} of {total} packages,"
        f" {sum(package.megabytes for package in packages):,.0f} MB to fetch unless cached ({named})"
    )


def pip_settings(listing: str) -> dict[str, str]:
    """Setting to value, from the output of `pip config list`: variables before section `install` before `global`."""
    settings: dict[str, str] = {}
    for section in ("global", "install", ":env:"):
        for line in listing.splitlines():
            name, equals, value = line.partition("=")
            if equals and name.startswith(f"{section}."):
                settings[name.removeprefix(f"{section}.")] = str(ast.literal_eval(value))
    return settings


def uv_environment(settings: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for uv: pip's settings where uv has none of its own. Folders that do not exist are left out."""
    result = dict(environment)
    chosen = any(name in environment for name in OWN_INDEX)
    for setting, value in settings.items():
        variable, between = UV_VARIABLES.get(setting, ("", ""))
        if not variable or (chosen and variable in ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS")):
            continue
        values = value.split()
        if setting == "find-links":
            values = [link for link in values if "://" in link or Path(link).exists()]
        if values:
            result.setdefault(variable, between.join(values))
    return result


def uv_command(settings: Mapping[str, str]) -> list[str]:
    """The command `uv pip install` for the environment of this Python."""
    no_index = settings.get("no-index", "").lower() in ("1", "true", "yes", "on")
    return [sys.executable, *UV_INSTALL, *["--no-index"] * no_index, "--python", sys.executable]


def run(*command: str, environment: Mapping[str, str] | None = None) -> bool:
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0


def bring_uv(packages: list[Package]) -> bool:
    """Whether the lock's uv is installed; pip installs it if it is not."""
    wanted = [package for package in packages if package.name == "uv"]
    if not wanted or not missing(wanted, installed_packages()):
        return bool(wanted)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "uv.txt"
        file.write_text(wanted[0].block, encoding="utf-8")
        return run(*PIP_INSTALL, "--require-hashes", "-r", str(file))


def install_by_uv(packages: list[Package]) -> bool:
    """Whether uv installed all packages of the lock."""
    if not bring_uv(packages):
        return False
    listing = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=False).stdout
    settings = pip_settings(listing)
    command = (*uv_command(settings), "--require-hashes", "-r", str(LOCK))
    return run(*command, environment=uv_environment(settings, os.environ))


def install_by_pip() -> bool:
    """Whether pip installed all packages of the lock."""
    return run(*PIP_INSTALL, "--require-hashes", "-r", str(LOCK))


def install_project() -> bool:
    """Whether this folder's package is installed. `make` has seen to the Python, and tries others on demand."""
    return run(*PIP_INSTALL, "--no-deps", "--no-build-isolation", "--ignore-requires-python", "--editable", ".")


def main() -> int:
    if sys.prefix == sys.base_prefix:
        print(f"error: {sys.executable} is in no environment of its own; expected: make env", file=sys.stderr)
        return 1
    packages = read_lock(LOCK.read_text(encoding="utf-8"))
    needed = missing(packages, installed_packages())
    if needed:
        print(announcement(needed, len(packages)), flush=True)
    by_uv = os.environ.get("INSTALLER") != "pip" and install_by_uv(packages)
    if not by_uv and os.environ.get("INSTALLER") != "pip":
        print("==> uv could not install (see above): pip does, which takes longer", flush=True)
    return 0 if (by_uv or install_by_pip()) and install_project() else 1


if __name__ == "__main__":
    sys.exit(main())
