"""A data set whose images and shards are as bad as they come, through the real stages that read them."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from ruamel.yaml import YAML

from popularity.core.atomic import read_json
from popularity.core.contracts import IMAGE_STATISTICS, IMAGE_STATUS, IMAGES, POSTS, read_table, write_table
from popularity.core.errors import DataError
from popularity.core.vectors import read_block
from stages import embed_image, index_images
from tests.encoders.tiny_encoders import encoder_sections, image_params, save_timm
from tests.repository import stage_flags
from tests.small_images import image_bytes, write_tar
from tests.small_tables import small_posts

pytestmark = pytest.mark.slow

MAX_PIXELS = 2_000_000


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def gray(width: int, height: int) -> Image.Image:
    return Image.new("L", (width, height), 90)


def bomb() -> bytes:
    """A PNG of a few kilobytes that announces, and holds, 20,000 x 20,000 pixels."""
    return encoded(Image.new("1", (20_000, 20_000)), "PNG")


def lying_png() -> bytes:
    """The header says 8 x 8 pixels, the data are those of 4,000 x 4,000."""
    honest = encoded(gray(4_000, 4_000), "PNG")
    header = b"IHDR" + (8).to_bytes(4, "big") * 2 + honest[24:29]
    return honest[:12] + header + zlib.crc32(header).to_bytes(4, "big") + honest[33:]


def text_bomb() -> bytes:
    """A PNG with a compressed note of 60 MB in a few kilobytes."""
    plain = encoded(gray(8, 8), "PNG")
    note = b"zTXtnote\x00\x00" + zlib.compress(bytes(60_000_000))
    chunk = (len(note) - 4).to_bytes(4, "big") + note + zlib.crc32(note).to_bytes(4, "big")
    return plain[:33] + chunk + plain[33:]


def frames(file_format: str) -> bytes:
    first, later = (Image.new("RGB", (30, 20), colour) for colour in ("red", "blue"))
    return encoded(first, file_format, save_all=True, append_images=[later] * 5)


# What an image is, and its status after both stages.
KINDS: dict[str, tuple[Callable[[], bytes], str]] = {
    "good": (lambda: image_bytes(1), "ok"),
    "cmyk": (lambda: encoded(Image.new("CMYK", (30, 20), (0, 90, 90, 0)), "JPEG"), "ok"),
    "16 bit": (lambda: encoded(Image.fromarray(np.full((20, 30), 40_000, np.uint16)), "PNG"), "ok"),
    "animated gif": (lambda: frames("GIF"), "ok"),
    "animated webp": (lambda: frames("WEBP"), "ok"),
    "one pixel": (lambda: encoded(Image.new("RGB", (1, 1), "red"), "JPEG"), "ok"),
    "20,000 pixels wide": (lambda: encoded(gray(20_000, 90), "JPEG"), "ok"),
    "20,000 pixels high": (lambda: encoded(gray(1, 20_000), "PNG"), "ok"),
    "20,000 x 20,000": (bomb, "too_large"),
    "above the limit": (lambda: encoded(gray(1_001, 2_000), "PNG"), "too_large"),
    "cut off": (lambda: image_bytes(2, size=(90, 90))[:2_000], "unreadable"),
    "corrupt tables": (lambda: image_bytes(3)[:30] + b"\xff" * 90 + image_bytes(3)[120:], "unreadable"),
    "corrupt pixels": (
        lambda: image_bytes(3, size=(90, 90))[:700] + bytes(range(256)) * 20,
        "ok",
    ),  # a JPEG can hold these
    "lying header": (lying_png, "ok"),  # what the header says is what is decoded
    "text bomb": (text_bomb, "unreadable"),
    "no image": (lambda: b"<html>not found</html>", "unreadable"),
    "empty": (lambda: b"", "unreadable"),
    "missing": (lambda: b"", "missing"),
    "symlink": (lambda: b"", "missing"),
    "hard link": (lambda: b"", "missing"),
    "above": (lambda: b"", "missing"),
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """tmp_path/data is the data set; next to it is an image that nothing may read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POPULARITY_WORKERS", "0")
    posts = small_posts(train=len(KINDS), test=3).sort("split", "source_index", descending=[True, False])
    paths = [f"{split}/{uid}/{pid}.jpg" for split, uid, pid in posts.select("split", "uid", "pid").iter_rows()]
    write_table(posts.with_columns(image_path=pl.Series(paths)), tmp_path / "posts.parquet", POSTS)
    secret = image_bytes(66)
    (tmp_path / "secret.jpg").write_bytes(secret)
    members: list[tuple[str, bytes] | tarfile.TarInfo] = []
    for path, (kind, (make, _)) in zip(paths[: len(KINDS)], KINDS.items(), strict=True):
        link = tarfile.TarInfo(path)
        if kind == "symlink":
            link.type, link.linkname = tarfile.SYMTYPE, "../secret.jpg"
            members.append(link)
        elif kind == "hard link":
            link.type, link.linkname = tarfile.LNKTYPE, str(tmp_path / "secret.jpg")
            members.append(link)
        elif kind == "above":
            members += [(f"../data/{path}", secret), (f"{tmp_path}/written.jpg", secret), ("../written.jpg", secret)]
        elif kind != "missing":
            members.append((path, make()))
    write_tar(tmp_path / "data/train_images.tar", members)
    write_tar(tmp_path / "data/test_images.tar", [(path, image_bytes(9 + n)) for n, path in enumerate(paths[-3:])])
    save_timm("test_efficientnet", tmp_path / "model")
    write_params(tmp_path, 1.0)
    return tmp_path


def write_params(root: Path, max_bad_fraction: float) -> None:
    encoder = image_params(model="test_efficientnet", weights=f"path:{root / 'model'}")
    index = {"max_bad_fraction": max_bad_fraction, "max_part_difference": 1.0, "max_pixels": MAX_PIXELS}
    dataset = {"follow_links": False, "several_pictures": "first"}
    content = {"index_images": index, "dataset": dataset, **encoder_sections(encoder)}
    YAML().dump(content, root / "params.yaml")


def index(root: Path) -> pl.DataFrame:
    names = {"root": "data", "posts": "posts.parquet", "images": "images.parquet", "summary": "images.json"}
    index_images.main(stage_flags("index_images", root, **names))
    return read_table(root / "images.parquet", IMAGES)


def embed(root: Path) -> dict[str, str]:
    """Status of every post after the stage."""
    names = {"root": "data", "images": "images.parquet", "out": "vectors"}
    embed_image.main(stage_flags("embed_image", root, **names))
    return dict(read_table(root / "vectors/status.parquet", IMAGE_STATUS).iter_rows())


def kinds(root: Path) -> dict[str, str]:
    """Kind to pid."""
    train = read_table(root / "posts.parquet", POSTS).filter(split="train").sort("source_index")
    return dict(zip(KINDS, train["pid"], strict=True))


def test_each_bad_image_is_counted_and_costs_no_other_anything(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    index(root)
    status, pid_of = embed(root), kinds(root)
    assert {kind: status[pid] for kind, pid in pid_of.items()} == {kind: wanted for kind, (_, wanted) in KINDS.items()}
    assert len(status) == len(KINDS) + 3
    block = read_block(root / "vectors", "pooled")
    assert set(block.pids) == {pid for pid, found in status.items() if found == "ok"}
    statistics = read_table(root / "vectors/statistics.parquet", IMAGE_STATISTICS)
    assert statistics["pid"].to_list() == list(block.pids)
    summary = read_json(root / "images.json")
    ignored = {name: found["count"] for name, found in summary["ignored_members"].items()}
    nothing = dict.fromkeys(("replaced", "unexpected", "of_systems", "leads_out"), 0)
    assert ignored == {**nothing, "not_a_file": 2, "unsafe_name": 3}
    assert sum(summary["statuses"]["train"].values()) == len(KINDS)
    # Nothing was written next to the outs, nothing changed.
    new = {path.relative_to(root).parts[0] for path in root.rglob("*")} - {
        path.relative_to(root).parts[0] for path in before
    }
    assert new <= {"images.parquet", "images.json", "index.json", "vectors", "embed.json", "reports", ".state"}
    assert not (root.parent / "written.jpg").exists()
    inputs = {path for path in before if path.is_file()}
    assert {path: path.stat().st_mtime_ns for path in inputs} == {path: before[path] for path in inputs}


def test_the_vectors_of_good_images_do_not_depend_on_bad_ones(root: Path) -> None:
    """Each alone in a data set has the vector it has among bad ones: no row has moved."""
    index(root)
    embed(root)
    block, pid_of = read_block(root / "vectors", "pooled"), kinds(root)
    for kind in ("good", "cmyk", "16 bit", "animated gif", "20,000 pixels wide"):
        path = read_table(root / "posts.parquet", POSTS).filter(pid=pid_of[kind])["image_path"][0]
        write_tar(root / "data/train_images.tar", [(path, KINDS[kind][0]())])
        index(root)
        embed(root)
        alone = read_block(root / "vectors", "pooled")
        np.testing.assert_allclose(
            alone.values[alone.rows([pid_of[kind]])[0]],
            block.values[block.rows([pid_of[kind]])[0]],
            rtol=2e-3,
            atol=2e-3,
        )


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_a_shard_that_was_cut_after_it_was_indexed(root: Path, share: float) -> None:
    """The stage stops with the shard's name and leaves no output; before it was indexed it counts as missing."""
    whole = (root / "data/train_images.tar").read_bytes()
    index(root)
    (root / "data/train_images.tar").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"train_images\.tar: ends \d+ bytes before the end of the image"):
        embed(root)
    assert not (root / "vectors").exists()
    images = index(root)
    assert len(images) == len(KINDS) + 3
    assert images.filter(status="missing").height > 4
    assert len(embed(root)) == len(KINDS) + 3
    write_params(root, 0.2)
    with pytest.raises(DataError, match=r"train_images\.tar is (cut off|damaged)"):
        index(root)
