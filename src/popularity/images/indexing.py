"""Finds each post's image and reads its header without decoding a pixel."""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple

import polars as pl
from PIL import Image
from pydantic import Field
from tqdm import tqdm

from popularity.core.config import Section
from popularity.core.contracts import IMAGE_STATUSES, IMAGES
from popularity.core.errors import DataError
from popularity.images.reading import ImageDecodeError, read_header

log = logging.getLogger(__name__)

EXAMPLES = 10  # names shown for each kind of fault
_BLOCK = 512  # bytes of a tar header


@dataclass(frozen=True)
class IndexImagesParams(Section):
    """Section `index_images` of params.yaml.

    Args:
        max_bad_fraction: largest accepted fraction of missing, unreadable or too large images.
        max_pixels: an image whose header announces more is never decoded; Pillow itself opens no more than the limit.
    """

    max_bad_fraction: Annotated[float, Field(ge=0, le=1)]
    max_pixels: Annotated[int, Field(gt=0, le=178_956_970)]


@dataclass
class _Tally:
    """A count, with the names of the first few cases."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(_printable(name))


@dataclass
class _Findings:
    """Members of the shards that are none of the expected images, and damaged shards."""

    duplicate: _Tally = field(default_factory=_Tally)
    not_a_file: _Tally = field(default_factory=_Tally)  # links, devices, pipes, sparse files
    unsafe_name: _Tally = field(default_factory=_Tally)  # absolute, or with '..'
    unexpected: _Tally = field(default_factory=_Tally)
    damaged_shards: dict[str, str] = field(default_factory=dict)  # shard -> fault
    shards: dict[str, int] = field(default_factory=dict)  # shard -> number of images used


class _Image(NamedTuple):
    """The columns of IMAGES after pid."""

    shard: str
    offset: int
    bytes: int
    width: int | None
    height: int | None
    mode: str | None
    status: str


_MISSING = _Image("", 0, 0, None, None, None, "missing")


def index_images(posts: pl.DataFrame, root: Path, params: IndexImagesParams) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The images of all posts, one row a post in the form of the contract IMAGES, and a summary.

    The images of a split come from its tar shards `<root>/{split}_images*.tar` or, where there are none, from the
    folder `<root>/{split}/<Uid>/<Pid>.jpg`.

    Args:
        posts: contract POSTS.
        root: of the data set.
        params: section index_images.

    Raises:
        DataError: the fraction of images that cannot be used is above `params.max_bad_fraction`.
    """
    found: dict[str, _Image] = {}
    findings = _Findings()
    with tqdm(total=len(posts), desc="index_images", unit="image") as progress:
        for split in sorted(set(posts["split"])):
            expected = set(posts.filter(split=split)["image_path"])
            shards = _shards(root, split)
            found_here = (
                _from_tars(shards, expected, findings, params) if shards else _from_folder(root, expected, params)
            )
            for path, image in found_here:
                found[path] = image
                progress.update()
    images = _table(posts, found)
    summary = _summary_of(images, posts, findings)
    _refuse_too_many_bad(summary, root, params)
    return images, summary


def index_files(posts: pl.DataFrame, root: Path, params: IndexImagesParams) -> pl.DataFrame:
    """The images (contract IMAGES) of posts whose `image_path` is any file below `root`, or an absolute path.

    Args:
        posts: contract POSTS.
        root: that relative paths start from.
        params: section index_images.
    """
    return _table(posts, dict(_from_folder(root, set(posts["image_path"]), params)))


def image_sizes(posts: pl.DataFrame, root: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Bytes of each post's image in the tar shards, by image_path, and the faults of damaged shards.

    Only the headers of the tar members are read: a file in this list may still be no image.

    Args:
        posts: contract POSTS.
        root: of the data set.
    """
    sizes: dict[str, int] = {}
    findings = _Findings()
    with tqdm(total=len(posts), desc="find images", unit="image") as progress:
        for split in sorted(set(posts["split"])):
            expected = set(posts.filter(split=split)["image_path"])
            for path, _, _, member in _expected_members(_shards(root, split), expected, findings):
                sizes[path] = member.size
                progress.update()
    return sizes, findings.damaged_shards


def _shards(root: Path, split: str) -> list[Path]:
    return sorted(root.glob(f"{split}_images*.tar"))


def _table(posts: pl.DataFrame, found: Mapping[str, _Image]) -> pl.DataFrame:
    rows = [(pid, *found.get(path, _MISSING)) for pid, path in posts.select("pid", "image_path").iter_rows()]
    schema: dict[str, Any] = {name: column.dtype for name, column in IMAGES.columns.items()}
    return pl.DataFrame(rows, schema=schema, orient="row").sort(IMAGES.key)


def _from_tars(
    shards: list[Path], expected: set[str], findings: _Findings, params: IndexImagesParams
) -> Iterator[tuple[str, _Image]]:
    for path, shard, archive, member in _expected_members(shards, expected, findings):
        content = archive.extractfile(member)
        assert content is not None  # a regular file has content
        yield path, _image(content, shard, member.offset_data, member.size, params)


def _expected_members(
    shards: list[Path], expected: set[str], findings: _Findings
) -> Iterator[tuple[str, str, tarfile.TarFile, tarfile.TarInfo]]:
    """Path, shard and member of the expected images; the first of several with one name counts."""
    seen: set[str] = set()
    for shard in shards:
        findings.shards[shard.name] = 0
        for archive, member in _members(shard, findings):
            path = _normalised(member.name)
            if path is None:
                findings.unsafe_name.add(member.name)
            elif not member.isreg() or member.issparse():
                findings.not_a_file.add(member.name)
            elif path not in expected:
                findings.unexpected.add(member.name)
            elif path in seen:
                findings.duplicate.add(member.name)
            else:
                seen.add(path)
                findings.shards[shard.name] += 1
                yield path, shard.name, archive, member


def _members(shard: Path, findings: _Findings) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The members, without folders, that lie wholly in the shard; a shard that ends early is noted as damaged.

    tarfile takes a damaged header in the middle for the end of the archive: the bytes after it are checked.
    """
    size = shard.stat().st_size
    with shard.open("rb") as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # it would keep every member
                    if member.size < 0 or (member.isreg() and member.offset_data + member.size > size):
                        findings.damaged_shards[shard.name] = f"cut off within {_printable(member.name)}"
                        return
                    if not member.isdir():
                        yield archive, member
                end = archive.offset
        except (tarfile.TarError, ValueError, IndexError, KeyError, OverflowError) as error:
            findings.damaged_shards[shard.name] = f"damaged: {error}"
            return
        stream.seek(end)
        if stream.read(_BLOCK) != bytes(_BLOCK):
            findings.damaged_shards[shard.name] = f"cut off or damaged at byte {end} of {size}: no end mark"


def _from_folder(root: Path, expected: set[str], params: IndexImagesParams) -> Iterator[tuple[str, _Image]]:
    """The expected images that are files below the root; each is its own shard."""
    for path in sorted(expected):
        file = root / path
        if file.is_file():
            with file.open("rb") as stream:
                yield path, _image(stream, path, 0, file.stat().st_size, params)


def _image(stream: IO[bytes], shard: str, offset: int, length: int, params: IndexImagesParams) -> _Image:
    try:
        header = read_header(stream)
    except ImageDecodeError:
        return _Image(shard, offset, length, None, None, None, "unreadable")
    except Image.DecompressionBombError:
        return _Image(shard, offset, length, None, None, None, "too_large")
    status = "ok" if header.width * header.height <= params.max_pixels else "too_large"
    return _Image(shard, offset, length, header.width, header.height, header.mode, status)


def _normalised(name: str) -> str | None:
    """A member's name without './' and double '/'; None when it is absolute or climbs with '..'."""
    names = name.split("/")
    return None if name.startswith("/") or ".." in names else "/".join(each for each in names if each not in ("", "."))


def _printable(name: str) -> str:
    """The name without lone surrogates, which stand for bytes that are no UTF-8 and cannot be written as JSON."""
    return name.encode("utf-8", "backslashreplace").decode()


def _summary_of(images: pl.DataFrame, posts: pl.DataFrame, findings: _Findings) -> dict[str, Any]:
    joined = images.join(posts.select("pid", "split", "image_path"), on="pid", validate="1:1")
    statuses = {
        split: {status: len(rows.filter(status=status)) for status in IMAGE_STATUSES}
        for split in sorted(set(joined["split"]))
        for rows in [joined.filter(split=split)]
    }
    bad = joined.filter(pl.col("status") != "ok").sort("image_path")
    usable = joined.filter(status="ok")
    return {
        "images": len(images),
        "statuses": statuses,
        "bad_share": len(bad) / len(images),
        "examples": {
            status: bad.filter(status=status)["image_path"].head(EXAMPLES).to_list() for status in IMAGE_STATUSES[1:]
        },
        "modes": dict(usable.group_by("mode").len().sort("mode").iter_rows()),
        "pixels": {
            side: {"min": usable[side].min(), "median": usable[side].median(), "max": usable[side].max()}
            for side in ("width", "height")
        },
        "shards": findings.shards,
        "damaged_shards": findings.damaged_shards,
        "ignored_members": {
            "duplicate": asdict(findings.duplicate),
            "not_a_file": asdict(findings.not_a_file),
            "unsafe_name": asdict(findings.unsafe_name),
            "unexpected": asdict(findings.unexpected),
        },
    }


def _refuse_too_many_bad(summary: Mapping[str, Any], root: Path, params: IndexImagesParams) -> None:
    counts = {status: sum(by_status[status] for by_status in summary["statuses"].values()) for status in IMAGE_STATUSES}
    bad = summary["images"] - counts["ok"]
    if bad:
        log.info("%d of %d images cannot be used: %s", bad, summary["images"], counts)
    for shard, fault in summary["damaged_shards"].items():
        log.info("%s: %s", root / shard, fault)
    if summary["bad_share"] <= params.max_bad_fraction:
        return
    found = [f"{count} {status}" for status, count in counts.items() if status != "ok" and count]
    examples = [path for paths in summary["examples"].values() for path in paths[:3]]
    damaged = [f"{shard} is {fault}" for shard, fault in summary["damaged_shards"].items()]
    stray = summary["ignored_members"]["unexpected"]["examples"][:3]
    hints = [f"such as {', '.join(examples)}", *damaged]
    if stray:
        hints.append(f"the shards hold members with other names, such as {', '.join(stray)}")
    raise DataError(
        f"{bad} of {summary['images']} images cannot be used ({', '.join(found)}): {'; '.join(hints)}",
        file=root,
        expected=(
            f"a fraction of at most index_images.max_bad_fraction = {params.max_bad_fraction}, found "
            f"{summary['bad_share']:.4f}; "
            "images are members split/Uid/Pid.jpg of <split>_images*.tar or files of that path in the folder"
        ),
        fix="complete the images, or raise index_images.max_bad_fraction in params.yaml to continue without them",
    )
