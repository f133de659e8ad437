"""Where the images of posts lie in tar shards; only the headers of the members are read."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from popularity.images.findings import Findings, printable
from popularity.images.names import Match, Wanted, left_by_a_system, normalised

MAX_LINKS = 5  # links to links that are followed
_BLOCK = 512  # bytes of a tar header
# First bytes of a shard that is no tar, and what it is with the command that unpacks it.
_PACKED = {
    b"\x1f\x8b": ("compressed with gzip", "gunzip -c {name} > {stem}.tar"),
    b"BZh": ("compressed with bzip2", "bunzip2 -c {name} > {stem}.tar"),
    b"\xfd7zXZ": ("compressed with xz", "xz -dc {name} > {stem}.tar"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "zstd -dc {name} > {stem}.tar"),
    b"PK\x03\x04": ("a zip archive", "unzip -q {name} -d {split}"),
}


class Place(NamedTuple):
    """Where an image lies: the shard's number, the first byte and the length."""

    shard: int
    offset: int
    length: int


class _Found(NamedTuple):
    """A member that a post names.

    Args:
        match: of its name.
        place: None for a link that leads to no file in the shard.
        is_link: it is one.
    """

    match: Match
    place: Place | None
    is_link: bool


def places(shards: list[Path], wanted: Wanted, findings: Findings) -> dict[str, Place]:
    """Where each image lies, by image_path.

    Of several with one name the last counts, as tar extracts; one that is named exactly so goes before the others.
    """
    result: dict[str, _Found] = {}
    for number, shard in enumerate(shards):
        for name, found in _found(number, shard, wanted, findings).items():
            before = result.get(found.match.path)
            if found.place is None:
                findings.not_a_file.add(name)
            elif before is not None and before.match.rank > found.match.rank:
                findings.unexpected.add(name)
            else:
                if before is not None:
                    findings.replaced.add(name)
                result[found.match.path] = found
    for found in result.values():
        findings.links += found.is_link
        findings.note(found.match)
    return {path: found.place for path, found in result.items() if found.place is not None}


def _found(number: int, shard: Path, wanted: Wanted, findings: Findings) -> dict[str, _Found]:
    """The members of a shard that posts name, by name: the last of each."""
    found: dict[str, _Found] = {}
    links: dict[str, str] = {}  # name -> target
    for member in _members(shard, findings):
        name = _name(member.name, wanted)
        if name is None:
            findings.unsafe_name.add(member.name)
        elif (match := wanted.match(name)) is None:
            (findings.of_systems if left_by_a_system(name) else findings.unexpected).add(member.name)
        elif _is_link(member):
            links[name] = _target(member, name)
            found[name] = _Found(match, None, is_link=True)
        elif not _is_file(member):
            findings.not_a_file.add(member.name)
        else:
            if name in found and not found[name].is_link:
                findings.replaced.add(member.name)
            links.pop(name, None)
            found[name] = _Found(match, Place(number, member.offset_data, member.size), is_link=False)
    for name, place in _followed(number, shard, links).items():
        found[name] = found[name]._replace(place=place)
    return found


def _is_link(member: tarfile.TarInfo) -> bool:
    return member.islnk() or member.issym()


def _is_file(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse()


def _name(published: str, wanted: Wanted) -> str | None:
    """The normalised name of a member; back slashes divide folders if no wanted name holds them."""
    name = normalised(published)
    if "\\" not in published or (name is not None and wanted.match(name)):
        return name
    return normalised(published.replace("\\", "/"))


def _target(member: tarfile.TarInfo, name: str) -> str:
    """The name in the shard that a link leads to; "" for one that leads out of it."""
    target = member.linkname if member.islnk() else posixpath.join(posixpath.dirname(name), member.linkname)
    target = posixpath.normpath(target) if member.issym() and not member.linkname.startswith("/") else target
    return normalised(target) or ""


def _followed(number: int, shard: Path, links: Mapping[str, str]) -> dict[str, Place | None]:
    """Where the files lie that links lead to; None for a link that leads to none. Reads the headers again."""
    targets = dict(links)
    found: dict[str, Place | None] = dict.fromkeys(links)
    for _ in range(MAX_LINKS):
        sought = {target for name, target in targets.items() if found[name] is None and target}
        if not sought:
            break
        there: dict[str, Place] = {}
        further: dict[str, str] = {}
        for member in _members(shard, Findings()):  # its faults were noted when it was read first
            name = normalised(member.name)
            if name is None or name not in sought:
                continue
            if _is_file(member):
                there[name] = Place(number, member.offset_data, member.size)
            elif _is_link(member):
                further[name] = _target(member, name)
        for name, target in targets.items():
            if found[name] is None:
                found[name] = there.get(target)
                targets[name] = further.get(target, "")
    return found


def _members(shard: Path, findings: Findings) -> Iterator[tarfile.TarInfo]:
    """The members, without folders, that lie wholly in the shard; a shard that ends early is noted as damaged.

    tarfile takes a damaged header in the middle for the end of the archive: the bytes after it are checked.
    """
    size = shard.stat().st_size
    with shard.open("rb") as stream:
        if packed := _packed(stream.peek(8)[:8], shard, shard.name.partition("_")[0]):
            findings.damaged_shards[shard.name] = packed.removeprefix(f"{shard.name} is ")
            return
        try:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # it would keep every member
                    if member.size < 0 or (member.isreg() and member.offset_data + member.size > size):
                        findings.damaged_shards[shard.name] = f"cut off within {printable(member.name)}"
                        return
                    if not member.isdir():
                        yield member
                end = archive.offset
        except (tarfile.TarError, ValueError, IndexError, KeyError, OverflowError) as error:
            findings.damaged_shards[shard.name] = f"damaged: {error}"
            return
        stream.seek(end)
        if stream.read(_BLOCK) != bytes(_BLOCK):
            findings.damaged_shards[shard.name] = f"cut off or damaged at byte {end} of {size}: no end mark"


def packed_images(root: Path, split: str) -> list[str]:
    """What to do with each packed file in the root that seems to hold the images of a split."""
    advice = []
    for path in sorted(path for path in root.glob(f"{split}*") if path.is_file() and not path.name.endswith(".tar")):
        with path.open("rb") as stream:
            if packed := _packed(stream.read(8), path, split):
                advice.append(packed)
    return advice


def _packed(start: bytes, path: Path, split: str) -> str:
    """What a packed file is and how it is unpacked; "" for one that is not packed."""
    for magic, (what, command) in _PACKED.items():
        if start.startswith(magic):
            stem = path.name.partition(".")[0]
            stem = f"{stem}_unpacked" if path.suffix == ".tar" else stem
            return f"{path.name} is {what}: unpack it ({command.format(name=path.name, stem=stem, split=split)})"
    return ""
