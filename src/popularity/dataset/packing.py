"""A folder of pictures to tar shards beside copies of the metadata: tens of thousands of files slow DVC down."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from popularity.core.atomic import atomic_directory, atomic_path, fingerprint, write_json
from popularity.core.errors import DataError
from popularity.dataset.layout import PartFiles

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_END = 2 * tarfile.BLOCKSIZE + tarfile.RECORDSIZE  # what closes an archive, at most


def has_shards(root: Path, split: str) -> bool:
    return any(root.glob(f"{split}_images*.tar"))


def pack(root: Path, parts: Sequence[PartFiles], posts: pl.DataFrame, target: Path, shard_bytes: int) -> None:
    """Writes `target`: the metadata that is read, tar shards of the pictures in file order, and manifest.json.

    A shard holds at most `shard_bytes` unless one picture alone is larger. The same folder gives the same
    bytes. Shards that the manifest lists, made from the same pictures and intact, are kept: a killed run goes
    on where it stopped. `root` is only read.

    Raises:
        DataError: `target` holds another data set or lies inside `root`.
    """
    if target.is_relative_to(root):
        raise DataError(
            f"the packed copy {target} would lie inside the data set", file=root, fix="choose another --packed folder"
        )
    manifest = _manifest_of(target, root)
    target.mkdir(parents=True, exist_ok=True)
    for stale in target.glob(".*.partial"):
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    for part in parts:
        with atomic_directory(target / part.folder.name) as folder:
            for file in part.files.values():
                shutil.copyfile(file, folder / file.name)
    plans = {
        f"{part.split}_images_{number:04d}.tar": members
        for part in parts
        for number, members in enumerate(_plan(root, posts.filter(split=part.split), shard_bytes))
    }
    finished = {entry["shard"]: entry for entry in manifest["shards"] if entry["shard"] in plans}
    with tqdm(total=sum(map(len, plans.values())), desc="pack", unit="picture") as progress:
        for name, members in plans.items():
            made_from = fingerprint(members)
            if name in finished and finished[name]["made_from"] == made_from and _is_intact(target, finished[name]):
                progress.update(len(members))
                continue
            _write_shard(root, target / name, members, progress)
            finished[name] = {
                "shard": name,
                "bytes": (target / name).stat().st_size,
                "md5": _md5(target / name),
                "members": len(members),
                "made_from": made_from,
            }
            write_json(target / MANIFEST, {**manifest, "shards": list(finished.values())})
    write_json(target / MANIFEST, {**manifest, "shards": [finished[name] for name in plans]})
    for shard in target.glob("*_images*.tar"):
        if shard.name not in plans:
            shard.unlink()  # of an earlier state of the folder
    log.info("%s: %d pictures in %d shards", target, sum(map(len, plans.values())), len(plans))


def _manifest_of(target: Path, root: Path) -> dict[str, Any]:
    """The manifest of an earlier run over the same data set, or an empty one."""
    path = target / MANIFEST
    if not path.is_file():
        return {"source": str(root), "shards": []}
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if manifest["source"] != str(root):
        raise DataError(
            f"holds the data set packed from {manifest['source']}",
            file=target,
            expected=f"an empty folder, or one packed from {root}",
            fix="remove the folder, or choose another one with --packed",
        )
    return manifest


Member = tuple[str, int, int]  # path below the root, bytes, time of last change (ns)


def _plan(root: Path, posts: pl.DataFrame, shard_bytes: int) -> Iterator[list[Member]]:
    """The pictures that exist, in file order, cut into shards of at most `shard_bytes`."""
    members: list[Member] = []
    size = _END
    for path in posts.sort("source_index")["image_path"]:
        try:
            status = (root / path).stat()
        except OSError:
            continue  # index_images counts the missing pictures
        blocks = -(-status.st_size // tarfile.BLOCKSIZE)
        cost = len(_member(path, status.st_size).tobuf(tarfile.GNU_FORMAT)) + blocks * tarfile.BLOCKSIZE
        if members and size + cost > shard_bytes:
            yield members
            members, size = [], _END
        members.append((path, status.st_size, status.st_mtime_ns))
        size += cost
    if members:
        yield members


def _write_shard(root: Path, shard: Path, members: list[Member], progress: tqdm[Any]) -> None:
    with atomic_path(shard) as partial, tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as archive:
        for path, size, _ in members:
            with (root / path).open("rb") as content:
                archive.addfile(_member(path, size), content)
            progress.update()


def _member(path: str, size: int) -> tarfile.TarInfo:
    """A member with no owner and no time, so that the same pictures give the same shard."""
    member = tarfile.TarInfo(path)
    member.size = size
    return member


def _is_intact(target: Path, entry: dict[str, Any]) -> bool:
    shard = target / entry["shard"]
    return shard.is_file() and (shard.stat().st_size, _md5(shard)) == (entry["bytes"], entry["md5"])


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
