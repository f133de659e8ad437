"""Atomic writes, content fingerprints, and errors that name a damaged file."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from popularity.core.errors import ContractError

_DAMAGED: tuple[type[Exception], ...] = (ValueError, KeyError, EOFError, zipfile.BadZipFile, SafetensorError)
LARGE = 1 << 20  # bytes
MIN_FREE = 1 << 16  # bytes; a disk with less is full


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path` that replaces `path` when the block ends without an error.

    An error inside the block removes the temporary file and leaves the old `path` as it was. What a killed process
    left behind is removed when another process writes the same `path`.
    """
    with _partial(path, _make_file) as partial:
        yield partial
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        partial.chmod(left_by_umask(0o666))
        os.replace(partial, path)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yields an empty temporary directory that replaces `path` as a whole on success; otherwise as `atomic_path`."""
    # One look: between two of them another process may move the folder away.
    with suppress(FileNotFoundError):
        if not stat.S_ISDIR(path.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    with _partial(path, tempfile.mkdtemp) as partial:
        partial.chmod(left_by_umask(0o777))
        yield partial
        _put_in_place(partial, path)


def left_by_umask(mode: int) -> int:
    """The mode that a new file of `mode` gets in this process."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mode & ~mask


@contextmanager
def _partial(path: Path, make: Callable[..., str]) -> Iterator[Path]:
    """Yields a new temporary file or directory in the folder of `path`, locked while it is written, removed afterwards.

    Older ones that no living process holds are removed: a kill leaves one behind, and they would fill the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A process holds the folder's lock with others while it makes a file, and alone while it removes some.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        if _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            for left in path.parent.iterdir():
                if left.name.startswith(f".{path.name}.") and left.name.endswith(".partial") and _is_abandoned(left):
                    _remove(left)
        _lock(folder, fcntl.LOCK_SH)
        partial = Path(make(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        handle = os.open(partial, os.O_RDONLY)
        _lock(handle, fcntl.LOCK_SH)
    finally:
        os.close(folder)
    try:
        with reporting_full_disk(path):
            yield partial
    finally:
        os.close(handle)
        _remove(partial)


@contextmanager
def reporting_full_disk(path: Path) -> Iterator[None]:
    """Turns the error of a full disk into ENOSPC: NumPy, SQLite and others raise errors of their own.

    Raises:
        OSError: ENOSPC for `path`, in place of an error that names no file, if no space is left there.
    """
    try:
        yield
    except Exception as error:
        status = os.statvfs(path.parent)
        full = status.f_bavail * status.f_frsize < MIN_FREE or "No space left" in str(error)
        if full and getattr(error, "filename", None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def _make_file(**where: Any) -> str:
    handle, name = tempfile.mkstemp(**where)
    os.close(handle)
    return str(name)


def _lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind)
    except OSError:  # another process holds it, or the disk has no locks
        return False
    return True


def _is_abandoned(partial: Path) -> bool:
    try:
        handle = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _put_in_place(directory: Path, path: Path) -> None:
    """Makes `directory` the new `path` and removes an older one.

    An older folder is moved away first: a process killed in between leaves no `path`, and its stage runs again. If the
    new folder cannot be moved, the older one is moved back.
    """
    aside = directory.with_suffix(".old.partial")
    while True:
        try:
            directory.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                if aside.exists():
                    aside.rename(path)
                raise
            shutil.rmtree(aside, ignore_errors=True)
            with suppress(FileNotFoundError):  # another process has just moved it
                path.rename(aside)
        else:
            shutil.rmtree(aside, ignore_errors=True)
            return


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes JSON with sorted keys: the same content gives the same bytes. NaN is an error."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def reading(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """Names the damaged file if the lines in the block cannot read it: truncated, of another format, a pickle.

    Args:
        path: of the file that the block reads.
        errors: further exceptions of the library that reads it.

    Raises:
        ContractError: in place of the library's exception.
    """
    try:
        yield
    except (*_DAMAGED, *errors) as error:
        raise ContractError(
            f"{path}: cannot be read: {(str(error) or type(error).__name__).splitlines()[0]}\n"
            "  expected: the file as the stage wrote it\n"
            "  next: restore it (dvc checkout), or run the stage again (dvc repro)"
        ) from error


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file.

    Args:
        path: of a UTF-8 file that holds one JSON document.

    Raises:
        ContractError: the file holds no JSON.
        FileNotFoundError: there is no such file.
    """
    with reading(path):
        return json.loads(path.read_text(encoding="utf-8"))


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content. A process reads a large file, such as weights, again only if it has changed."""
    found = path.stat()
    if found.st_size < LARGE:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return _digest(path.absolute(), (found.st_ino, found.st_mtime_ns, found.st_size))


@lru_cache(maxsize=64)
def _digest(path: Path, _version: tuple[int, int, int]) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(*values: Any) -> str:
    """16 hex digits of everything that a result depends on.

    A path counts by its content (a directory by its files in name order), any other value by its JSON form.
    """
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, Path):
            for file in sorted(p for p in value.rglob("*") if p.is_file()) if value.is_dir() else [value]:
                digest.update(sha256_of(file).encode())
        else:
            digest.update(json.dumps(value, sort_keys=True, default=str).encode())
        digest.update(b"\x00")
    return digest.hexdigest()[:16]
