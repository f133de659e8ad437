"""manifest.json: the inputs of an artifact, written into its folder before the folder gets its name.

    {"code": {"revision": "0f3c...", "modified": false}, "inputs": {"posts": "6f1d..."},
     "libraries": {"numpy": "2.4.6", ...}, "metrics": {...}, "params": {"stack": {...}}}

It holds no time, path or other trace of the machine: the same code, parameters, inputs and libraries give the same
bytes. Only stage `report` reads manifests: in dvc.yaml other readers of such a folder depend on its other files.
"""

from __future__ import annotations

import logging
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from popularity.core.atomic import fingerprint, write_json

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
CODE = ("src", "stages", "configs")
REPOSITORY = Path(__file__).resolve().parents[3]


def write_manifest(
    folder: Path,
    *,
    params: Mapping[str, Any],
    inputs: Mapping[str, Path],
    metrics: Mapping[str, Any],
    repository: Path = REPOSITORY,
) -> None:
    """Writes manifest.json into `folder`.

    Args:
        folder: of the artifact, still the temporary one of `atomic_directory`.
        params: the values of the run, by section.
        inputs: file or folder by name; each counts by its content, a folder without its manifest.
        metrics: of the artifact, for people; may be empty.
        repository: whose revision is written; by default that of this code.
    """
    write_json(
        folder / MANIFEST,
        {
            "code": code_state(repository),
            "inputs": {name: fingerprint(*_files(path)) for name, path in inputs.items()},
            "libraries": library_versions(),
            "metrics": metrics,
            "params": params,
        },
    )


def code_state(repository: Path) -> dict[str, str | bool | None]:
    """`revision`: the last commit that touched CODE. `modified`: True if CODE differs from what was committed.

    Both are None without git. The revision is also None without a commit, and in a shallow clone that does not reach
    back to it: the oldest commit of such a clone seems to have added every file.
    """
    found = _git(repository, "log", "-1", "--format=%H %P", "--", *CODE) or ""
    revision, _, parents = found.partition(" ")
    if not parents and _git(repository, "rev-parse", "--is-shallow-repository") == "true":
        revision = ""
    if not revision:
        logger.warning("the manifest has no code revision: %s is no git repository with its history", repository)
    status = _git(repository, "status", "--porcelain", "--untracked-files=normal", "--", *CODE)
    return {"revision": revision or None, "modified": None if status is None else status != ""}


def library_versions() -> dict[str, str | None]:
    """Installed version of each dependency in pyproject.toml without extras; None for a missing one.

    Empty if this package is not installed, because its dependencies are then unknown.
    """
    try:
        required = metadata.requires("popularity") or []
    except metadata.PackageNotFoundError:
        return {}
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in required if "extra ==" not in line]
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _files(path: Path) -> list[Path]:
    """The file itself; of a folder every file but the manifest, in name order."""
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != MANIFEST) or [path]


def _git(repository: Path, *command: str) -> str | None:
    """The output of git; None if git is missing or fails."""
    try:
        done = subprocess.run(["git", "-C", repository, *command], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
