"""What an artifact was made from: manifest.json in its folder, written before the folder takes its place.

    {"code": {"revision": "0f3c...", "modified": false}, "inputs": {"posts": "6f1d..."},
     "libraries": {"numpy": "2.4.6", ...}, "metrics": {...}, "params": {"stack": {...}}}

No time, no place and nothing of the machine: the same code, parameters, inputs and libraries give the same bytes. A
manifest is an input of stage `report` alone: in dvc.yaml others that read such a folder depend on its other files.
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
        folder: of the artifact, still the temporary one of `files.atomic_directory`.
        params: the values that the stage ran with, by section.
        inputs: file or folder by name; each counts by its content, a folder without its own manifest.
        metrics: of the artifact, for people; {} for none.
        repository: whose revision is told: that of this code.
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
    """`revision`, the last commit that touched CODE, and `modified`, whether they hold more than was committed.

    Both are None without git. The revision is None without a commit as well, and in a shallow clone that does not reach
    back to it: the oldest commit of such a clone looks as if it had brought every file.
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
    """Installed version of each dependency that pyproject.toml names, extras left out; None of one that is missing.

    Empty where the package was not installed: nothing then says what it needs.
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
    """The file itself; of a folder every file in name order, but no manifest."""
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != MANIFEST) or [path]


def _git(repository: Path, *command: str) -> str | None:
    """What git prints, None if there is no git or it fails."""
    try:
        done = subprocess.run(["git", "-C", repository, *command], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
