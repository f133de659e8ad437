"""Every expected image is found or counted, and nothing else in a shard is believed."""

from __future__ import annotations

import io
import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from PIL import Image

from popularity.core.config import load_params
from popularity.core.contracts import IMAGES, POSTS, check_table, read_table, write_table
from popularity.core.errors import ConfigError, DataError
from popularity.dataset import ingest
from popularity.images import (
    ImageReader,
    IndexImagesParams,
    decode_image,
    image_lines,
    index_files,
    index_images,
)
from stages import index_images as stage
from tests.repository import stage_flags
from tests.small_images import image_bytes, write_tar


def limits(max_bad_fraction: float, max_part_difference: float = 1.0) -> IndexImagesParams:
    return IndexImagesParams(max_bad_fraction, max_part_difference, max_pixels=10_000)


LENIENT, STRICT = limits(1.0), limits(0.0)


def posts(train: int = 4, test: int = 2) -> pl.DataFrame:
    """The columns that matter here."""
    rows = [("train", f"{number}") for number in range(train)] + [("test", f"{90 + number}") for number in range(test)]
    return pl.DataFrame(
        {
            "pid": [pid for _, pid in rows],
            "split": [split for split, _ in rows],
            "image_path": [f"{split}/7@N/{pid}.jpg" for split, pid in rows],
        }
    )


def members(split: str) -> list[tuple[str, bytes]]:
    return [(path, image_bytes(seed)) for seed, path in enumerate(posts().filter(split=split)["image_path"])]


def link(name: str, kind: bytes, target: str = "train/7@N/1.jpg") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def statuses(images: pl.DataFrame) -> dict[str, str]:
    return dict(images.select("pid", "status").iter_rows())


def test_a_stray_file_changes_nothing_and_a_changed_picture_does(tmp_path: Path) -> None:
    """Later stages depend on the table, not on the data set's folder: it stands for every byte that they read."""
    for number, path in enumerate(posts()["image_path"]):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(image_bytes(number))
    before, _ = index_images(posts(), tmp_path, STRICT)
    (tmp_path / "train/.DS_Store").write_bytes(b"\0")
    (tmp_path / "notes.txt").write_text("mine")
    assert index_images(posts(), tmp_path, STRICT)[0].equals(before)
    changed = tmp_path / "train/7@N/1.jpg"
    content = bytearray(changed.read_bytes())
    content[-20] ^= 1  # the same size and header
    changed.write_bytes(content)
    after, _ = index_images(posts(), tmp_path, STRICT)
    assert after.drop("checksum").equals(before.drop("checksum"))
    assert after.filter(after["checksum"] != before["checksum"])["pid"].to_list() == ["1"]


def test_images_in_tars(tmp_path: Path) -> None:
    write_tar(tmp_path / "train_images_0.tar", members("train")[:2])
    write_tar(tmp_path / "train_images_1.tar", members("train")[2:])
    write_tar(tmp_path / "test_images.tar", members("test"))
    images, report = index_images(posts(), tmp_path, STRICT)
    check_table(images, IMAGES)
    assert set(images["status"]) == {"ok"}
    assert set(images.select("width", "height", "mode").iter_rows()) == {(24, 16, "RGB")}
    assert report["shards"] == {"train_images_0.tar": 2, "train_images_1.tar": 2, "test_images.tar": 2}
    reader, contents = ImageReader(tmp_path), {**dict(members("train")), **dict(members("test"))}
    for row in images.join(posts(), on="pid").iter_rows(named=True):
        assert reader.read(row["shard"], row["offset"], row["bytes"]) == contents[row["image_path"]]


def test_images_in_a_folder(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for path, content in members(split):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(content)
    (tmp_path / "train/7@N/2.jpg").unlink()
    images, report = index_images(posts(), tmp_path, LENIENT)
    assert statuses(images) == {"0": "ok", "1": "ok", "2": "missing", "3": "ok", "90": "ok", "91": "ok"}
    row = images.row(by_predicate=pl.col("pid") == "3", named=True)
    assert (row["shard"], row["offset"]) == ("train/7@N/3.jpg", 0)
    assert ImageReader(tmp_path).read(row["shard"], row["offset"], row["bytes"]) == image_bytes(3)
    assert report["examples"]["missing"] == ["train/7@N/2.jpg"]


def test_names_are_normalised_and_long_names_read(tmp_path: Path) -> None:
    long = "train/" + "u" * 200 + "/5.jpg"
    table = posts(train=2, test=0).with_columns(image_path=pl.Series(["train/7@N/0.jpg", long]))
    write_tar(tmp_path / "train_images.tar", [("./train//7@N/./0.jpg", image_bytes(0)), (long, image_bytes(1))])
    images, _ = index_images(table, tmp_path, STRICT)
    assert set(images["status"]) == {"ok"}


def test_only_regular_expected_members_count(tmp_path: Path) -> None:
    content = image_bytes(50)
    write_tar(
        tmp_path / "train_images.tar",
        [
            link("train/7@N/0.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            link("train/7@N/0.jpg", tarfile.LNKTYPE, "../7@N/1.jpg"),
            link("train/7@N/0.jpg", tarfile.CHRTYPE),
            link("train/7@N/0.jpg", tarfile.FIFOTYPE),
            link("train/7@N", tarfile.DIRTYPE),
            ("../train/7@N/0.jpg", content),
            ("train/x/../7@N/0.jpg", content),
            ("/train/7@N/0.jpg", content),
            ("train/7@N/notes.txt", b"text"),
            ("train/7@N/\udcff.jpg", content),
            ("test/7@N/90.jpg", content),
            *members("train")[1:],
            ("train/7@N/1.jpg", content),
        ],
    )
    images, report = index_images(posts(test=0), tmp_path, LENIENT)
    assert statuses(images) == {"0": "missing", "1": "ok", "2": "ok", "3": "ok"}
    counts = {kind: found["count"] for kind, found in report["ignored_members"].items()}
    assert counts == {
        **{"replaced": 1, "not_a_file": 3, "unsafe_name": 3, "unexpected": 3},
        **{"of_systems": 0, "leads_out": 0},
    }
    last = images.row(by_predicate=pl.col("pid") == "1", named=True)
    assert ImageReader(tmp_path).read(last["shard"], last["offset"], last["bytes"]) == content
    orjson.dumps(report)  # names that are no text do not break the report


def test_a_copy_in_a_later_shard_replaces_the_image(tmp_path: Path) -> None:
    write_tar(tmp_path / "train_images_0.tar", members("train"))
    write_tar(tmp_path / "train_images_1.tar", [("train/7@N/2.jpg", image_bytes(50))])
    images, report = index_images(posts(test=0), tmp_path, STRICT)
    assert images["shard"].to_list() == [*["train_images_0.tar"] * 2, "train_images_1.tar", "train_images_0.tar"]
    assert report["ignored_members"]["replaced"] == {"count": 1, "examples": ["train/7@N/2.jpg"]}


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", "unreadable"),
        (b"<html>not found</html>", "unreadable"),
        (image_bytes()[:20], "unreadable"),
        (image_bytes(size=(100, 100)), "ok"),
        (image_bytes(size=(100, 101)), "too_large"),
    ],
)
def test_headers(tmp_path: Path, content: bytes, status: str) -> None:
    write_tar(tmp_path / "train_images.tar", [("train/7@N/0.jpg", content), *members("train")[1:]])
    images, _ = index_images(posts(test=0), tmp_path, LENIENT)
    assert statuses(images) == {"0": status, "1": "ok", "2": "ok", "3": "ok"}
    row = images.row(0, named=True)
    assert (row["bytes"], row["width"] is None) == (len(content), status == "unreadable")


def test_a_bomb_is_too_large(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(stream, "PNG")
    write_tar(tmp_path / "train_images.tar", [("train/7@N/0.jpg", stream.getvalue()), *members("train")[1:2]])
    images, _ = index_images(posts(2, 0), tmp_path, LENIENT)
    assert statuses(images) == {"0": "too_large", "1": "ok"}


def test_only_headers_are_read(tmp_path: Path) -> None:
    content = image_bytes(3, size=(90, 90))
    damaged = content[:700] + bytes(len(content) - 700)  # the header whole, the pixels gone
    write_tar(tmp_path / "train_images.tar", [("train/7@N/0.jpg", damaged)])
    images, _ = index_images(posts(1, 0), tmp_path, STRICT)
    assert statuses(images) == {"0": "ok"}


@pytest.mark.parametrize("cut", ["in content", "in header", "between members", "in the end mark"])
def test_truncated_tar(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "train_images.tar"
    write_tar(path, members("train"))
    whole = path.read_bytes()
    header = whole.index(b"train/7@N/2.jpg")
    length = {
        "in content": header + 512 + 100,
        "in header": header + 100,
        "between members": header,
        "in the end mark": len(whole.rstrip(b"\0")) // 512 * 512 + 512,
    }[cut]
    path.write_bytes(whole[:length])
    images, report = index_images(posts(test=0), tmp_path, LENIENT)
    lost = "ok" if cut == "in the end mark" else "missing"
    assert statuses(images) == {"0": "ok", "1": "ok", "2": lost, "3": lost}
    assert list(report["damaged_shards"]) == ["train_images.tar"]
    if lost == "missing":
        assert report["examples"]["missing"] == ["train/7@N/2.jpg", "train/7@N/3.jpg"]
        with pytest.raises(DataError, match=r"train_images\.tar is .*cut off"):
            index_images(posts(test=0), tmp_path, STRICT)


@pytest.mark.parametrize("content", [b"", b"not a tar" * 200, bytes(10_240)])
def test_a_shard_that_is_no_tar(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train_images_0.tar").write_bytes(content)
    write_tar(tmp_path / "train_images_1.tar", members("train")[3:])
    images, report = index_images(posts(test=0), tmp_path, LENIENT)
    assert images["status"].to_list() == [*["missing"] * 3, "ok"]
    assert bool(report["damaged_shards"]) == (content != bytes(10_240))  # that one is an empty archive


def test_a_damaged_header_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "train_images.tar"
    write_tar(path, members("train"))
    content = bytearray(path.read_bytes())
    content[content.index(b"train/7@N/2.jpg") + 148] ^= 0xFF  # its checksum
    path.write_bytes(content)
    images, report = index_images(posts(test=0), tmp_path, LENIENT)
    assert statuses(images) == {"0": "ok", "1": "ok", "2": "missing", "3": "missing"}
    assert "damaged" in report["damaged_shards"]["train_images.tar"]


def test_too_many_bad_images_stop_the_run(tmp_path: Path) -> None:
    write_tar(tmp_path / "train_images.tar", [*members("train")[1:], ("elsewhere/0.jpg", image_bytes())])
    write_tar(tmp_path / "test_images.tar", [members("test")[0], ("test/7@N/91.jpg", b"broken")])
    index_images(posts(), tmp_path, limits(1 / 2))
    with pytest.raises(DataError) as caught:
        index_images(posts(), tmp_path, limits(0.49))
    message = str(caught.value)
    for part in ("1 of 2 images of the test part", "(1 unreadable)", "test/7@N/91.jpg", "elsewhere/0.jpg"):
        assert part in message
    assert "index_images.max_bad_fraction = 0.49" in str(caught.value.expected)
    assert "params.yaml" in str(caught.value.fix)


def test_no_images_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 of 2 images of the test part cannot be used"):
        index_images(posts(), tmp_path, limits(0.99))
    with pytest.raises(DataError, match="no post has a usable image") as caught:
        index_images(posts(), tmp_path, LENIENT)
    assert "encoders.stack.image" in str(caught.value.expected)


def write_params(path: Path, **values: Any) -> Path:
    dataset = {"follow_links": False, "several_pictures": "first"}
    content = {"index_images": {**asdict(limits(0.05)), **values}, "dataset": dataset}
    path.write_text(orjson.dumps(content).decode())
    return path


def test_params_are_checked(tmp_path: Path) -> None:
    for wrong in ({"max_bad_fraction": 1.5}, {"max_pixels": 0}, {"max_pixels": 10**9}, {"extra": 1}):
        with pytest.raises(ConfigError, match="index_images"):
            load_params("index_images", IndexImagesParams, write_params(tmp_path / "params.yaml", **wrong))


def test_stage_on_the_tiny_demo(tmp_path: Path, tiny_dataset: Any) -> None:
    table = ingest(tiny_dataset.root).posts
    write_table(table, tmp_path / "posts.parquet", POSTS)
    write_params(tmp_path / "params.yaml")
    contents = []
    for attempt in ("first", "second"):
        paths = {name: tmp_path / attempt / name for name in ("images", "summary", "resources")}
        stage.main(stage_flags("index_images", tmp_path, root=tiny_dataset.root, posts="posts.parquet", **paths))
        contents.append([paths["images"].read_bytes(), paths["summary"].read_bytes()])
    assert contents[0] == contents[1]
    images = read_table(paths["images"], IMAGES)
    assert set(images["status"]) == {"ok"}
    assert images["pid"].equals(table["pid"])


def test_files_of_any_name_and_place(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in ("a.jpg", "below/b.png"):
        (tmp_path / name).write_bytes(image_bytes())
    (tmp_path / "c.jpg").write_bytes(b"no image")
    paths = ["a.jpg", str(tmp_path / "below/b.png"), "c.jpg", "", "a.jpg", "gone.jpg"]
    table = pl.DataFrame({"pid": [str(number) for number in range(6)], "image_path": paths})
    images = index_files(table, tmp_path, STRICT)
    check_table(images, IMAGES)
    assert list(statuses(images).values()) == ["ok", "ok", "unreadable", "missing", "ok", "missing"]
    row = images.row(1, named=True)
    assert ImageReader(tmp_path).read(row["shard"], row["offset"], row["bytes"]) == image_bytes()


def test_a_copy_that_was_appended_replaces_the_image(tmp_path: Path) -> None:
    mended = image_bytes(9, size=(333, 222))
    write_tar(tmp_path / "train_images.tar", [*members("train"), ("train/7@N/1.jpg", mended)])
    params = IndexImagesParams(0.0, 1.0, max_pixels=100_000)
    images, report = index_images(posts(test=0), tmp_path, params)
    row = images.row(by_predicate=pl.col("pid") == "1", named=True)
    assert (row["width"], row["height"]) == (333, 222)
    assert report["ignored_members"]["replaced"]["count"] == 1
    assert "  1 (train/7@N/1.jpg): replaced by a later copy" in image_lines(report)


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_within_a_shard_are_the_linked_image(tmp_path: Path, kind: bytes) -> None:
    targets = ("train/7@N/0.jpg", "train/7@N/1.jpg") if kind == tarfile.LNKTYPE else ("0.jpg", "../7@N/1.jpg")
    links = [link(f"train/7@N/{number}.jpg", kind, target) for number, target in enumerate(targets, 1)]
    write_tar(tmp_path / "train_images.tar", [*links[1:], *members("train")[:1], *links[:1], *members("train")[3:]])
    images, report = index_images(posts(test=0), tmp_path, STRICT)
    assert statuses(images) == dict.fromkeys("0123", "ok")
    assert report["links"] == 2
    reader = ImageReader(tmp_path)
    contents = [reader.read(row["shard"], row["offset"], row["bytes"]) for row in images.iter_rows(named=True)]
    assert contents[0] == contents[1] == contents[2] == image_bytes(0)


@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret.jpg", "train/7@N/0.jpg", "train/7@N/9.jpg", ""])
def test_links_that_lead_to_no_image_of_the_shard_are_missing(tmp_path: Path, target: str) -> None:
    write_tar(tmp_path / "train_images.tar", [link("train/7@N/0.jpg", tarfile.LNKTYPE, target), *members("train")[1:]])
    images, report = index_images(posts(test=0), tmp_path, LENIENT)
    assert statuses(images)["0"] == "missing"
    assert report["ignored_members"]["not_a_file"]["count"] == 1


def test_the_named_suffix_goes_before_another(tmp_path: Path) -> None:
    others = [("train/7@N/0.png", image_bytes(7)), ("train/7@N/1.JPG", image_bytes(8))]
    others.append(("thumbnails/train/7@N/0.jpg", image_bytes(6)))
    write_tar(tmp_path / "train_images.tar", [members("train")[0], *others, *members("train")[2:]])
    images, report = index_images(posts(test=0), tmp_path, STRICT)
    reader = ImageReader(tmp_path)
    rows = images.head(2).iter_rows(named=True)
    assert [reader.read(row["shard"], row["offset"], row["bytes"]) for row in rows] == [image_bytes(0), image_bytes(8)]
    assert report["other_suffix"]["examples"] == ["train/7@N/1.jpg"]


@pytest.mark.parametrize(("orientation", "size"), [(1, (100, 60)), (3, (100, 60)), (6, (60, 100)), (8, (60, 100))])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_sizes_are_those_of_the_upright_image(
    tmp_path: Path, kind: str, orientation: int, size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.open(io.BytesIO(image_bytes(size=(100, 60)))).save(stream, kind, exif=exif)
    write_tar(tmp_path / "train_images.tar", [("train/7@N/0.jpg", stream.getvalue())])
    images, _ = index_images(posts(1, 0), tmp_path, STRICT)
    assert images.select("width", "height").row(0) == size == decode_image(stream.getvalue(), 10_000).size


def test_unreadable_formats_are_counted_by_name(tmp_path: Path) -> None:
    contents = [b"\x00\x00\x00\x0cjP  \r\n\x87\n", b" <!DOCTYPE html><p>", b"\x00\x00\x00\x18ftypheic0000", b""]
    paths = posts(test=0)["image_path"]
    write_tar(tmp_path / "train_images.tar", [*zip(paths, contents, strict=True)])
    write_tar(tmp_path / "test_images.tar", members("test"))
    images, report = index_images(posts(), tmp_path, LENIENT)
    assert images["status"].to_list()[:4] == ["unreadable"] * 4
    assert report["unreadable_formats"] == {"HEIC": 1, "HTML": 1, "JPEG 2000": 1, "empty": 1}
    assert "1 are HEIC" in "\n".join(image_lines(report))


def test_a_part_without_usable_images_stops_the_run_unless_a_key_allows_it(tmp_path: Path) -> None:
    named = posts().with_columns(image_path=pl.when(split="train").then("image_path").otherwise(pl.lit("")))
    write_tar(tmp_path / "train_images.tar", members("train"))
    with pytest.raises(
        DataError, match=r"100\.0% of the test posts have no usable image, but 0\.0% of the train"
    ) as caught:
        index_images(named, tmp_path, limits(0.0, 0.99))
    assert "index_images.max_part_difference = 0.99" in str(caught.value.expected)
    images, report = index_images(named, tmp_path, limits(0.0, 1.0))
    assert (report["no_picture"], report["bad_share"]["test"]) == ({"train": 0, "test": 2}, 0.0)
    assert set(images.filter(pl.col("pid").is_in(["90", "91"]))["status"]) == {"missing"}


def test_the_error_says_where_the_images_seem_to_be(tmp_path: Path) -> None:
    write_tar(tmp_path / "train_images.tar", members("train"))
    (tmp_path / "test").mkdir()
    (tmp_path / "test/90.jpg").write_bytes(image_bytes())
    with pytest.raises(DataError, match=r"the folder .*test has test/90\.jpg"):
        index_images(posts(), tmp_path, STRICT)
