"""Atomic writes, content fingerprints, and the state directories that let a killed run resume."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

STATE_ROOT = Path(".state")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` that replaces it when the block ends without an error.

    A failure inside the block removes the temporary file and leaves the old `path` as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        partial.chmod(0o644)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yields an empty temporary directory that replaces `path` as a whole on success."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    partial.chmod(0o755)
    try:
        yield partial
        retired = partial.with_suffix(".retired")
        if path.exists():
            os.replace(path, retired)
        os.replace(partial, path)
        shutil.rmtree(retired, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes JSON with sorted keys: the same content gives the same bytes. NaN is an error."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content, read in chunks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """16 hex digits of whatever a result depends on.

    Paths count by content, everything else by its JSON form. Directories are walked in name order.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            for file in sorted(p for p in part.rglob("*") if p.is_file()) if part.is_dir() else [part]:
                digest.update(sha256_of(file).encode())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\x00")
    return digest.hexdigest()[:16]


@cache
def code_fingerprint(*packages: str) -> str:
    """The `fingerprint` of this package's sources, or of those of some of its subpackages."""
    root = Path(__file__).parent
    return fingerprint(*(file for name in packages or (".",) for file in sorted((root / name).rglob("*.py"))))


@contextmanager
def resume_state(stage: str, key: str, root: Path = STATE_ROOT) -> Iterator[Path]:
    """The directory `.state/<stage>/<key>-<code>/` in which a stage keeps finished parts.

    It outlives a kill or an error and is removed on success; `key` is a `fingerprint` of the stage's
    parameters and inputs, so parts made from others, or by other code, are never picked up.
    """
    directory = root / stage / f"{key}-{code_fingerprint()}"
    directory.mkdir(parents=True, exist_ok=True)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
