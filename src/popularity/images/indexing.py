"""Finds each post's image, reads its header and takes its checksum, without decoding a pixel."""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import polars as pl
from PIL import Image
from pydantic import Field
from tqdm import tqdm

from popularity.core.config import Section
from popularity.core.contracts import FURTHER_PICTURES, IMAGE_STATUSES, IMAGES
from popularity.core.errors import DataError
from popularity.images.findings import EXAMPLES, Findings, image_lines
from popularity.images.folder import ImageFolder, find_shards, of_table
from popularity.images.names import Wanted
from popularity.images.reading import ImageDecodeError, Slice, content_name, read_header
from popularity.images.shards import packed_images, places

log = logging.getLogger(__name__)

MAX_LISTED = 1000  # entries of a folder that are looked at for a hint


@dataclass(frozen=True)
class IndexImagesParams(Section):
    """Section `index_images` of params.yaml.

    Args:
        max_bad_fraction: of each part, largest accepted fraction of posts whose image is named and cannot be used:
            missing, unreadable or too large. A post that names no image is not bad.
        max_part_difference: largest accepted difference between the parts' fractions of posts without a usable image.
        max_pixels: an image whose header announces more is never decoded; Pillow itself opens no more than the limit.
    """

    max_bad_fraction: Annotated[float, Field(ge=0, le=1)]
    max_part_difference: Annotated[float, Field(ge=0, le=1)]
    max_pixels: Annotated[int, Field(gt=0, le=178_956_970)]


class _Image(NamedTuple):
    """The columns of IMAGES after pid."""

    shard: str
    offset: int
    bytes: int
    width: int | None = None
    height: int | None = None
    mode: str | None = None
    status: str = "missing"
    checksum: str = ""


_MISSING = _Image("", 0, 0)


def index_images(
    posts: pl.DataFrame,
    root: Path,
    params: IndexImagesParams,
    *,
    follow_links: bool = False,
    several: Literal["first", "mean"] = "first",
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The images of all posts, one row a post in the form of the contract IMAGES, and a summary.

    The images of a split come from its tar shards `<root>/{split}_images*.tar` or, where there are none, from the
    folder `<root>/{split}/<Uid>/<Pid>.jpg`; both may lie one folder deeper, and a suffix may be another one of
    `images.names.SUFFIXES`.

    Args:
        posts: contract POSTS.
        root: of the data set.
        params: section index_images.
        follow_links: True to take images of a folder that are links to files outside of it.
        several: of a post with several paths: the first one alone, or the first that can be used with the others as
            FURTHER_PICTURES.

    Raises:
        DataError: too many images of a part cannot be used, or the parts differ in them: see `params`.
    """
    if several == "first":
        posts = posts.with_columns(pl.col("image_path").str.split("\n").list.first())
    found: dict[str, _Image] = {}
    findings = Findings()
    with tqdm(total=len(posts), desc="index_images", unit="image") as progress:
        for split in sorted(set(posts["split"])):
            expected = set(posts.filter(split=split)["image_path"].str.split("\n").explode()) - {""}
            own = of_table(expected, split)
            shards = [] if own else find_shards(root, split)
            if shards:
                found_here = _from_tars(shards, root, Wanted(expected), findings, params.max_pixels)
            else:
                folder = (ImageFolder.own if own else partial(ImageFolder.of, split=split))(
                    root, follow_links=follow_links
                )
                found_here = _from_folder(folder, expected, findings, params.max_pixels)
            for path, image in found_here:
                found[path] = image
                progress.update()
    images = _table(posts, found)
    if several == "mean":
        images, further = _with_further(images, posts, found)
        findings.further |= further
    summary = _summary_of(images, posts.with_columns(pl.col("image_path").str.split("\n").list.first()), findings)
    _refuse_unusable(summary, root, params)
    return images, summary


def index_files(posts: pl.DataFrame, root: Path, params: IndexImagesParams) -> pl.DataFrame:
    """The images (contract IMAGES) of posts whose `image_path` is any file below `root`, or an absolute path.

    Args:
        posts: contract POSTS.
        root: that relative paths start from.
        params: section index_images.
    """
    findings, found = Findings(), {}
    for path in sorted(set(posts["image_path"]) - {""}):
        if (root / path).is_file():
            found[path] = _file_image(root / path, path, findings, params.max_pixels)
    return _table(posts, found)


def _table(posts: pl.DataFrame, found: Mapping[str, _Image]) -> pl.DataFrame:
    rows = [(pid, *found.get(path, _MISSING)) for pid, path in posts.select("pid", "image_path").iter_rows()]
    schema: dict[str, Any] = {name: column.dtype for name, column in IMAGES.columns.items()}
    return pl.DataFrame(rows, schema=schema, orient="row").sort(IMAGES.key)


def _with_further(
    images: pl.DataFrame, posts: pl.DataFrame, found: Mapping[str, _Image]
) -> tuple[pl.DataFrame, dict[str, int]]:
    """`images` with FURTHER_PICTURES, and how many of these can be used and cannot.

    The picture of a post is its first that can be used, else its first.
    """
    rows, further, counts = [], [], {"used": 0, "unusable": 0}
    for pid, text in posts.select("pid", "image_path").sort("pid").iter_rows():
        pictures = [found.get(path, _MISSING) for path in text.split("\n")]
        usable = [picture for picture in pictures if picture.status == "ok"]
        rows.append((pid, *(usable or pictures)[0]))
        further.append([picture._asdict() for picture in usable[1:]])
        counts["used"] += len(usable[1:])
        counts["unusable"] += len(pictures) - max(1, len(usable))
    listed = pl.List(pl.Struct({name: images.schema[name] for name in _Image._fields}))
    table = pl.DataFrame(rows, schema=images.schema, orient="row")
    return table.with_columns(pl.Series(FURTHER_PICTURES, further, dtype=listed)), counts


def _from_tars(
    shards: list[Path], root: Path, wanted: Wanted, findings: Findings, max_pixels: int
) -> Iterator[tuple[str, _Image]]:
    """The expected images in the order of the shards, each once."""
    by_place = sorted(places(shards, wanted, findings).items(), key=lambda item: item[1])
    names = [str(shard.relative_to(root)) for shard in shards]
    findings.shards |= dict.fromkeys(names, 0)
    at, stream = -1, None
    try:
        for path, place in by_place:
            if place.shard != at or stream is None:
                if stream is not None:
                    stream.close()
                at, stream = place.shard, shards[place.shard].open("rb")
            findings.shards[names[at]] += 1
            content = io.BufferedReader(Slice(stream, place.offset, place.length))
            yield path, _image(content, _Image(names[at], place.offset, place.length), findings, max_pixels)
    finally:
        if stream is not None:
            stream.close()


def _from_folder(
    folder: ImageFolder, expected: set[str], findings: Findings, max_pixels: int
) -> Iterator[tuple[str, _Image]]:
    """The expected images that are files; each is its own shard."""
    for path in sorted(expected):
        file = folder.find(path)
        if file is None:
            continue
        if folder.leads_out(file):
            findings.leads_out.add(path)
            if not folder.follow_links:
                continue
        if file.name != path.rpartition("/")[2]:
            findings.other_suffix.add(path)
        yield path, _file_image(file, str(file.relative_to(folder.root)), findings, max_pixels)


def _file_image(file: Path, name: str, findings: Findings, max_pixels: int) -> _Image:
    with file.open("rb") as stream:
        return _image(stream, _Image(name, 0, file.stat().st_size), findings, max_pixels)


def _image(stream: io.BufferedReader[Any], image: _Image, findings: Findings, max_pixels: int) -> _Image:
    """`image` with what its header says."""
    try:
        header = read_header(stream)
    except ImageDecodeError:
        stream.seek(0)
        findings.formats[content_name(stream.read(64))] += 1
        return image._replace(status="unreadable")
    except Image.DecompressionBombError:
        return image._replace(status="too_large")
    image = image._replace(width=header.width, height=header.height, mode=header.mode)
    if header.width * header.height > max_pixels:
        return image._replace(status="too_large")
    stream.seek(0)
    return image._replace(status="ok", checksum=hashlib.file_digest(stream, _checksum).hexdigest())


def _checksum() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def _summary_of(images: pl.DataFrame, posts: pl.DataFrame, findings: Findings) -> dict[str, Any]:
    joined = images.join(posts.select("pid", "split", "image_path"), on="pid", validate="1:1")
    splits = {split: joined.filter(split=split) for split in sorted(set(joined["split"]))}
    statuses = {
        split: {status: len(rows.filter(status=status)) for status in IMAGE_STATUSES} for split, rows in splits.items()
    }
    bad = joined.filter((pl.col("status") != "ok") & (pl.col("image_path") != "")).sort("image_path")
    usable = joined.filter(status="ok")
    ignored = ("replaced", "not_a_file", "unsafe_name", "unexpected", "of_systems", "leads_out")
    return {
        "images": len(images),
        "statuses": statuses,
        "no_picture": {split: len(rows.filter(image_path="")) for split, rows in splits.items()},
        "bad_share": {split: len(bad.filter(split=split)) / len(rows) for split, rows in splits.items()},
        "without_usable_image": {split: 1 - statuses[split]["ok"] / len(rows) for split, rows in splits.items()},
        "examples": {
            status: bad.filter(status=status)["image_path"].head(EXAMPLES).to_list() for status in IMAGE_STATUSES[1:]
        },
        "unreadable_formats": dict(sorted(findings.formats.items())),
        "modes": dict(usable.group_by("mode").len().sort("mode").iter_rows()),
        "pixels": {
            side: {"min": usable[side].min(), "median": usable[side].median(), "max": usable[side].max()}
            for side in ("width", "height")
        },
        "shards": findings.shards,
        "damaged_shards": findings.damaged_shards,
        "prefixes": dict(sorted(findings.prefixes.items())),
        "links": findings.links,
        "further_pictures": findings.further,
        "other_suffix": asdict(findings.other_suffix),
        "ignored_members": {name: asdict(getattr(findings, name)) for name in ignored},
    }


def _refuse_unusable(summary: Mapping[str, Any], root: Path, params: IndexImagesParams) -> None:
    """Raises DataError if a part has too many bad images, if the parts differ too much, or if no image is there."""
    for line in image_lines(summary):
        log.info("%s", line.strip())
    worst = max(summary["bad_share"], key=summary["bad_share"].__getitem__)
    hints = _hints(summary, root, worst)
    if summary["bad_share"][worst] > params.max_bad_fraction:
        raise DataError(
            f"{_counts_text(summary, worst)}: {'; '.join(hints)}",
            file=root,
            expected=(
                f"in each part a fraction of at most index_images.max_bad_fraction = {params.max_bad_fraction}, found "
                f"{summary['bad_share'][worst]:.4f} of the {worst} part; "
                "images are members split/Uid/Pid.jpg of <split>_images*.tar or files of that path in the folder"
            ),
            fix="complete the images, or raise index_images.max_bad_fraction in params.yaml to continue without them",
        )
    shares = summary["without_usable_image"]
    least, most = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
    if shares[most] - shares[least] > params.max_part_difference:
        raise DataError(
            f"{shares[most]:.1%} of the {most} posts have no usable image, but {shares[least]:.1%} of the {least} "
            "posts: " + "; ".join(_hints(summary, root, most)),
            file=root,
            expected=f"a difference of at most index_images.max_part_difference = {params.max_part_difference}",
            fix=(
                f"complete the images of the {most} part, or raise index_images.max_part_difference in params.yaml: "
                "what is learned with images would then be applied without them"
            ),
        )
    named = sum(sum(counts.values()) for counts in summary["statuses"].values()) > sum(summary["no_picture"].values())
    if named and not any(counts["ok"] for counts in summary["statuses"].values()):
        raise DataError(
            "no post has a usable image: " + "; ".join(hints),
            file=root,
            expected="images: the network and the image block of the stack (encoders.stack.image) need them",
            fix="put the images there",
        )


def _counts_text(summary: Mapping[str, Any], split: str) -> str:
    counts = dict(summary["statuses"][split])
    named = sum(counts.values()) - summary["no_picture"][split]
    counts["missing"] -= summary["no_picture"][split]
    found = [f"{count} {status}" for status, count in counts.items() if status != "ok" and count]
    return f"{named - counts['ok']} of {named} images of the {split} part cannot be used ({', '.join(found)})"


def _hints(summary: Mapping[str, Any], root: Path, split: str) -> list[str]:
    """Where the images of a split seem to be."""
    examples = [path for paths in summary["examples"].values() for path in paths if path.startswith(f"{split}/")]
    hints = [f"such as {', '.join(examples[:5])}"] if examples else []
    hints += [f"{shard} is {fault}" for shard, fault in summary["damaged_shards"].items()]
    hints += packed_images(root, split)
    if stray := summary["ignored_members"]["unexpected"]["examples"][:3]:
        hints.append(f"the shards hold members with other names, such as {', '.join(stray)}")
    if summary["ignored_members"]["leads_out"]["count"]:
        hints.append("links lead out of the folder (below); make dataset ... FOLLOW_LINKS=1 takes them")
    if (root / split).is_dir() and not hints[1:]:
        some = itertools.islice((root / split).rglob("*"), MAX_LISTED)
        others = sorted(path for path in some if path.is_file())[:2]
        hints += [f"the folder {root / split} has {', '.join(str(path.relative_to(root)) for path in others)}"] * bool(
            others
        )
    return hints or ["no shards and no folder of images are there"]
