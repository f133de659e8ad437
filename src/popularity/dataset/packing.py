"""Packs a folder of images into tar shards and copies the metadata: tens of thousands of files slow DVC down."""

from __future__ import annotations

import hashlib
import logging
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from popularity.core.atomic import atomic_directory, atomic_path, fingerprint, read_json, write_json
from popularity.core.errors import DataError
from popularity.dataset.layout import SplitFiles
from popularity.images import ImageFolder

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_END = 2 * tarfile.BLOCKSIZE + tarfile.RECORDSIZE  # the largest end of an archive


@dataclass(frozen=True)
class Packed:
    """The packed copy of a data set.

    Args:
        target: its folder.
        shard_bytes: largest size of a shard, unless a single image is larger.
        follow_links: True to pack images that are links to files outside of the data set.
    """

    target: Path
    shard_bytes: int
    follow_links: bool


def pack(root: Path, splits: Sequence[SplitFiles], posts: pl.DataFrame, packed: Packed) -> None:
    """Writes the metadata files that are read, tar shards of the images in file order, and manifest.json into the copy.

    Every image gets the name that its post names, whatever its suffix and folder. The same folder gives the same bytes.
    A shard that the manifest lists is kept if it is intact and was made from the same images, so a killed run goes on
    where it stopped. Nothing is written into `root`.

    Raises:
        DataError: `target` holds another data set or lies inside `root`.
    """
    target = packed.target
    if target.is_relative_to(root):
        raise DataError(
            f"the packed copy {target} would lie inside the data set", file=root, fix="choose another --packed folder"
        )
    manifest = _manifest_of(target, root)
    target.mkdir(parents=True, exist_ok=True)
    for stale in target.glob(".*.partial"):
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    for source in splits:
        with atomic_directory(target / source.folder.name) as folder:
            for file in source.files.values():
                shutil.copyfile(file, folder / file.name)
    folders = {source.split: ImageFolder.of(root, source.split, follow_links=packed.follow_links) for source in splits}
    plans = {
        f"{split}_images_{number:04d}.tar": members
        for split, folder in folders.items()
        for number, members in enumerate(_plan(folder, posts.filter(split=split), packed.shard_bytes))
    }
    finished = {entry["shard"]: entry for entry in manifest["shards"] if entry["shard"] in plans}
    with tqdm(total=sum(map(len, plans.values())), desc="pack", unit="image") as progress:
        for name, members in plans.items():
            made_from = fingerprint(members)
            if name in finished and finished[name]["made_from"] == made_from and _is_intact(target, finished[name]):
                progress.update(len(members))
                continue
            _write_shard(folders[name.partition("_")[0]], target / name, members, progress)
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
    log.info("%s: %d images in %d shards", target, sum(map(len, plans.values())), len(plans))


def _manifest_of(target: Path, root: Path) -> dict[str, Any]:
    """The manifest of an earlier run over the same data set, or an empty one."""
    path = target / MANIFEST
    if not path.is_file():
        return {"source": str(root), "shards": []}
    manifest: dict[str, Any] = read_json(path)
    if manifest["source"] != str(root):
        raise DataError(
            f"holds the data set packed from {manifest['source']}",
            file=target,
            expected=f"an empty folder, or one packed from {root}",
            fix="remove the folder, or choose another one with --packed",
        )
    return manifest


Member = tuple[str, int, int]  # image path, bytes, time of last change (ns)


def _plan(folder: ImageFolder, posts: pl.DataFrame, shard_bytes: int) -> Iterator[list[Member]]:
    """The images that exist, in file order, divided into shards of at most `shard_bytes`."""
    members: list[Member] = []
    size = _END
    for path in posts.sort("source_index")["image_path"]:
        file = folder.usable(path)
        if file is None:
            continue  # index_images counts the missing images
        status = file.stat()
        blocks = -(-status.st_size // tarfile.BLOCKSIZE)
        cost = len(_member(path, status.st_size).tobuf(tarfile.GNU_FORMAT)) + blocks * tarfile.BLOCKSIZE
        if members and size + cost > shard_bytes:
            yield members
            members, size = [], _END
        members.append((path, status.st_size, status.st_mtime_ns))
        size += cost
    if members:
        yield members


def _write_shard(folder: ImageFolder, shard: Path, members: list[Member], progress: tqdm[Any]) -> None:
    with atomic_path(shard) as partial, tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as archive:
        for path, size, _ in members:
            file = folder.find(path)
            if file is None:
                raise DataError("is gone", file=folder.start / path, expected="the file that was there before")
            with file.open("rb") as content:
                archive.addfile(_member(path, size), content)
            progress.update()


def _member(path: str, size: int) -> tarfile.TarInfo:
    """A member with no owner and no time, so that the same images give the same shard."""
    member = tarfile.TarInfo(path)
    member.size = size
    return member


def _is_intact(target: Path, entry: dict[str, Any]) -> bool:
    shard = target / entry["shard"]
    return shard.is_file() and (shard.stat().st_size, _md5(shard)) == (entry["bytes"], entry["md5"])


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
