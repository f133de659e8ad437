"""Files as they lie on the disk are read as the official ones, with a line in the summary, or refused with advice."""

from __future__ import annotations

import gzip
import json
import math
import shutil
import tarfile
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from popularity.core.errors import DataError
from popularity.dataset import DatasetParams, ingest
from popularity.dataset import __main__ as command
from popularity.dataset import reading as reading_module
from popularity.dataset.preparation import Options, prepare, set_root, summary_text
from popularity.images import IndexImagesParams
from tests.dataset.layout import Layout, build, write_folder, write_tars
from tests.dataset.test_ingest import post, read
from tests.small_images import image_bytes, write_tar

TEXT, LABEL = "train_allmetadata_json/train_text.json", "train_allmetadata_json/train_label.txt"


def options(packed: Path, *, bad: float = 0.0, follow_links: bool = False) -> Options:
    dataset = DatasetParams("", "last_post", "log2", without_user_file=False)
    return Options(dataset, IndexImagesParams(bad, 1.0, 10_000), packed, 30_000, follow_links)


def as_lines(content: bytes) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in json.loads(content)).encode()


def as_utf16(content: bytes) -> bytes:
    return content.decode().encode("utf-16")


STORED: dict[str, tuple[Callable[[bytes], bytes], str, dict[str, str]]] = {
    # name: change of the content, suffix of the name, what the summary says
    "JSON lines": (as_lines, ".json", {"layout": "lines of JSON", "stored_as": ""}),
    "jsonl": (as_lines, ".jsonl", {"layout": "lines of JSON"}),
    "gzip": (gzip.compress, ".json.gz", {"layout": "list", "stored_as": "gzip"}),
    "gzip without a suffix": (gzip.compress, ".json", {"stored_as": "gzip"}),
    "UTF-16": (as_utf16, ".json", {"layout": "list", "stored_as": "UTF-16"}),
    "all": (lambda content: gzip.compress(as_utf16(as_lines(content))), ".jsonl.gz", {"stored_as": "gzip, UTF-16"}),
}


@pytest.mark.parametrize("chunk", [64, 1 << 20])
@pytest.mark.parametrize("stored", STORED)
def test_a_file_stored_otherwise_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, chunk: int
) -> None:
    monkeypatch.setattr(reading_module, "CHUNK_BYTES", chunk)
    layout = build()
    layout.train.records["text"][3]["Title"] = "gr\u00fc\u00df \U0001f600"
    plain = read(layout, tmp_path)
    change, suffix, said = STORED[stored]
    content = change((tmp_path / TEXT).read_bytes())
    (tmp_path / TEXT).unlink()
    file = (tmp_path / TEXT).with_suffix(suffix)
    file.write_bytes(content)
    found = ingest(tmp_path)
    assert found.posts.equals(plain.posts)
    entry = found.summary["files"][str(file.relative_to(tmp_path))]
    assert said.items() <= entry.items()


def test_a_broken_line_of_json_is_named(tmp_path: Path) -> None:
    build().write(tmp_path)
    lines = as_lines((tmp_path / TEXT).read_bytes()).splitlines()
    lines[4] = lines[4][:-5]
    (tmp_path / TEXT).write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match="JSON lines") as caught:
        ingest(tmp_path)
    assert caught.value.row == 4


def test_a_damaged_gzip_is_named(tmp_path: Path) -> None:
    build().write(tmp_path)
    (tmp_path / TEXT).write_bytes(gzip.compress((tmp_path / TEXT).read_bytes())[:-20])
    with pytest.raises(DataError, match="damaged gzip") as caught:
        ingest(tmp_path)
    assert caught.value.file == tmp_path / TEXT


@pytest.mark.parametrize(
    ("file", "header"), [(LABEL, "popularity_score"), (LABEL.replace("label", "img_filepath"), "path")]
)
def test_a_header_line_is_left_out_and_said(tmp_path: Path, file: str, header: str) -> None:
    plain = read(build(), tmp_path)
    (tmp_path / file).write_text(f"{header}\n" + (tmp_path / file).read_text())
    found = ingest(tmp_path)
    assert found.posts.equals(plain.posts)
    assert found.summary["files"][file]["header"] == header


def test_a_first_label_that_is_no_number_is_no_header_of_a_full_file(tmp_path: Path) -> None:
    layout = build()
    layout.train.labels[0] = "popularity_score"
    with pytest.raises(DataError, match="no finite number") as caught:
        read(layout, tmp_path)
    assert caught.value.row == 0


def test_lists_of_tags_are_words(tmp_path: Path) -> None:
    layout = build()
    tags: list[Any] = [["pie", "dessert"], ["dog", "golden retriever"], []]
    for row, value in enumerate(tags):
        layout.train.records["text"][row]["Alltags"] = value
    found = read(layout, tmp_path)
    assert [post(found, row)["tags"] for row in range(3)] == ["pie dessert", "dog golden retriever", ""]
    assert found.quarantine.is_empty()


def test_vectors_as_lists_of_numbers(tmp_path: Path) -> None:
    plain, layout = read(build("A"), tmp_path / "plain"), build("A")
    for part in layout.parts:
        for record in part.records["user"]:
            for name in ("user_description", "location_description"):
                record[name] = [float(number) for number in record[name].split(",")] if record[name] else ""
    assert read(layout, tmp_path / "lists").users.equals(plain.users)


@pytest.mark.parametrize(
    ("published", "minutes"),
    [("+0530", 330), ("-0800", -480), ("+1400", 840), ("-0030", -30), ("+05:30", 330), ("-28800", -480), ("-3600", -60),
     ("+1800", 30), ("0", 0), ("", None)],
)  # fmt: skip
def test_offsets_with_and_without_a_colon(tmp_path: Path, published: str, minutes: int | None) -> None:
    layout = build()
    layout.train.records["user"][0]["timezone_offset"] = published
    found = read(layout, tmp_path)
    assert post(found, 0)["timezone_offset"] == minutes
    assert found.quarantine.is_empty()


def test_milliseconds_are_converted_and_counted(tmp_path: Path) -> None:
    plain = read(build(train=30, test=9), tmp_path / "plain")
    layout = build(train=30, test=9)
    for part in layout.parts:
        for row in part.records["temporalspatial"][::3]:
            row["Postdate"] = int(row["Postdate"]) * 1000
    layout.train.records["user"][1]["photo_firstdate"] = 1_400_000_000_000
    found = read(layout, tmp_path / "mixed")
    assert found.posts.equals(plain.posts)
    counts = {(entry["field"], entry["reason"]): entry["values"] for entry in found.summary["quarantine"]["by_reason"]}
    assert counts == {("Postdate", "milliseconds"): 13, ("photo_firstdate", "milliseconds"): 1}


@pytest.mark.parametrize("value", ["", None, "0", "-1", "yesterday", "86400", "4000000000", 1430000000.5])
def test_one_bad_date_is_set_aside_and_stretches_no_time_axis(tmp_path: Path, value: Any) -> None:
    layout = build(train=40)
    layout.train.records["temporalspatial"][7]["Postdate"] = value
    found = read(layout, tmp_path)
    middle = datetime.fromtimestamp(1_430_000_000 + 20 * 86_400, UTC)
    assert post(found, 7)["posted_at"] == middle
    assert found.quarantine["row"].to_list() == [7]


def test_many_bad_dates_stop_the_run_at_the_first(tmp_path: Path) -> None:
    layout = build(train=40)
    for row in (11, 3, 5):
        layout.train.records["temporalspatial"][row]["Postdate"] = "0"
    with pytest.raises(DataError, match="3 of 40 values of Postdate") as caught:
        read(layout, tmp_path)
    assert caught.value.row == 3


def test_the_point_zero_is_no_place(tmp_path: Path) -> None:
    layout = build()
    places = [("0", "0", "0"), ("0", "0", "16"), ("0.0", "0.000000", "0"), ("51.5", "0", "16"), ("0", "32.6", "12")]
    for row, (latitude, longitude, accuracy) in enumerate(places):
        layout.train.records["temporalspatial"][row] |= {
            **{"Latitude": latitude, "Longitude": longitude, "Geoaccuracy": accuracy}
        }
    found = read(layout, tmp_path)
    rows = [post(found, row) for row in range(5)]
    assert [row["latitude"] for row in rows] == [None, None, None, 51.5, 0.0]
    assert [row["longitude"] for row in rows] == [None, None, None, 0.0, 32.6]
    assert [row["geo_accuracy"] for row in rows] == [0, 0, 0, 16, 12]
    assert found.summary["places_at_zero"] == {"train": 3, "test": 0}


def test_counts_become_labels_by_the_switch_alone(tmp_path: Path) -> None:
    layout = build()
    layout.train.labels = ["194", "12", "90817", "4", "1033", *["0"] * 7]
    layout.write(tmp_path)
    with pytest.raises(DataError, match=r"log2\(views \+ 1\); are these raw counts\?") as caught:
        ingest(tmp_path)
    assert (caught.value.row, "dataset.labels: counts" in str(caught.value)) == (0, True)
    found = ingest(tmp_path, "counts")
    assert post(found, 0)["label"] == pytest.approx(math.log2(195))
    assert post(found, 11)["label"] == 0.0


def test_a_missing_user_file_needs_the_switch(tmp_path: Path) -> None:
    plain = read(build(), tmp_path)
    (tmp_path / "test_allmetadata_json/test_user_data.json").unlink()
    with pytest.raises(DataError, match=r"dataset\.without_user_file: true"):
        ingest(tmp_path)
    found = ingest(tmp_path, without_user_file=True)
    assert found.summary["without_user_file"] == ["test"]
    assert found.posts.filter(split="test")["photo_count"].null_count() == 6
    assert found.posts.filter(split="train").equals(plain.posts.filter(split="train"))
    assert found.users["uid"].to_list() == plain.users["uid"].to_list()


@pytest.mark.parametrize(
    ("spelled", "counted"),
    [("./{0}", 12), ("train\\{1}\\{2}.jpg", 12), ("train/{1}/{2}.JPG", 12), ("train/{1}/{2}.jpeg", 12), ("{0}", 0)],
)
def test_paths_of_images_spelled_otherwise(tmp_path: Path, spelled: str, counted: int) -> None:
    plain, layout = read(build(), tmp_path / "plain"), build()
    for row, path in enumerate(layout.train.image_paths):
        uid, pid = path.removesuffix(".jpg").split("/")[1:]
        layout.train.image_paths[row] = spelled.format(path, uid, pid)
    found = read(layout, tmp_path / "spelled")
    assert found.posts.equals(plain.posts)
    file = "train_allmetadata_json/train_img_filepath.txt"
    assert found.summary["files"][file]["spelled_otherwise"] == counted


def test_the_path_of_another_post_is_named_as_written(tmp_path: Path) -> None:
    layout = build()
    layout.train.image_paths[4] = ".\\train\\x\\y.jpg"
    with pytest.raises(DataError, match="image path is") as caught:
        read(layout, tmp_path)
    assert caught.value.row == 4


def test_an_empty_line_is_a_post_without_a_picture(tmp_path: Path) -> None:
    layout = build()
    for row in (2, 10, 11):  # the last ones too
        layout.train.image_paths[row] = ""
    found = read(layout, tmp_path)
    assert [row for row in range(12) if not post(found, row)["image_path"]] == [2, 10, 11]
    write_folder(Layout(build().train, build().test), tmp_path)
    _, summary = prepare(tmp_path, options(tmp_path.parent / "raw"))
    assert summary["images"]["no_picture"] == {"train": 3, "test": 0}
    assert summary["images"]["bad_share"] == {"train": 0.0, "test": 0.0}
    assert "images of train: 9 of 9 can be used; 3 more posts name no picture" in summary_text(summary)


def test_a_link_to_nothing_and_a_folder_are_named(tmp_path: Path) -> None:
    build().write(tmp_path)
    (tmp_path / TEXT).unlink()
    (tmp_path / TEXT).symlink_to("gone.json")
    with pytest.raises(DataError, match=r"is a link to nothing: gone\.json"):
        ingest(tmp_path)
    (tmp_path / TEXT).unlink()
    (tmp_path / TEXT).mkdir()
    with pytest.raises(DataError, match="is a folder"):
        ingest(tmp_path)


def test_files_that_systems_leave_behind_are_no_files(tmp_path: Path) -> None:
    plain = read(build(), tmp_path)
    (tmp_path / "train_allmetadata_json/._train_text.json").write_bytes(b"\0\5\x16\7")
    (tmp_path / "train_allmetadata_json/.DS_Store").write_bytes(b"\0")
    found = ingest(tmp_path)
    assert found.posts.equals(plain.posts)
    assert found.summary["files_not_read"] == {"train_allmetadata_json": [], "test_allmetadata_json": []}


# make dataset


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    layout = build()
    root = layout.write(tmp_path / "set")
    write_tars(layout, root)
    return root


def test_packed_shards_are_named_with_the_command(shards: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        tar = shards / f"{split}_images.tar"
        (shards / f"{split}_images.tar.gz").write_bytes(gzip.compress(tar.read_bytes()))
        tar.unlink()
    with pytest.raises(DataError, match=r"train_images\.tar\.gz is compressed with gzip: unpack it \(gunzip"):
        prepare(shards, options(tmp_path / "raw"))


def test_gzip_called_tar_is_refused_before_the_graph(shards: Path, tmp_path: Path) -> None:
    (shards / "train_images.tar").write_bytes(gzip.compress((shards / "train_images.tar").read_bytes()))
    params = tmp_path / "params.yaml"
    text = (
        "dataset: {root: data/demo, collected_at: last_post, labels: log2, without_user_file: false}\n"
        "index_images: {max_bad_fraction: 0.02, max_part_difference: 0.05, max_pixels: 10000}\n"
    )
    params.write_text(text)
    with pytest.raises(
        DataError, match=r"12 of 12 images of the train part.*train_images\.tar is compressed with gzip"
    ):
        command.main([str(shards), "--params", str(params), "--packed", str(tmp_path / "raw")])
    assert params.read_text() == text


def test_a_zip_beside_and_no_images(tmp_path: Path) -> None:
    root = build().write(tmp_path / "set")
    (root / "train.zip").write_bytes(b"PK\x03\x04rest")
    with pytest.raises(DataError, match=r"train\.zip is a zip archive: unpack it \(unzip"):
        prepare(root, options(tmp_path / "raw"))


def test_shards_one_folder_deeper(shards: Path, tmp_path: Path) -> None:
    (shards / "images").mkdir()
    for split in ("train", "test"):
        shutil.move(shards / f"{split}_images.tar", shards / "images")
    (shards / "__MACOSX").mkdir()
    (shards / "__MACOSX/train_images.tar").write_bytes(b"")
    root, summary = prepare(shards, options(tmp_path / "raw"))
    assert root == shards
    assert summary["images"]["shards"] == {"images/train_images.tar": 12, "images/test_images.tar": 6}


def test_a_folder_with_other_suffixes_one_folder_deeper(tmp_path: Path) -> None:
    layout = build()
    root = layout.write(tmp_path / "set")
    write_folder(layout, root / "images")
    suffixes = [".JPG", ".jpeg", ".png", ".webp", ".PNG"]
    for number, path in enumerate(layout.train.image_paths):
        file = root / "images" / path
        file.rename(file.with_suffix(suffixes[number % 5]))
    packed, summary = prepare(root, options(tmp_path / "raw"))
    assert summary["images"]["other_suffix"]["count"] == 12
    with tarfile.open(packed / "train_images_0000.tar") as archive:
        assert archive.getnames() == layout.train.image_paths
        content = archive.extractfile(layout.train.image_paths[3])
        assert content is not None
        assert content.read() == image_bytes(3)


def test_links_out_of_the_folder_are_taken_by_the_switch_alone(tmp_path: Path) -> None:
    layout = build()
    root = layout.write(tmp_path / "set")
    write_folder(layout, root)
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(image_bytes(99))
    inside, outside = root / layout.train.image_paths[1], root / layout.train.image_paths[2]
    for file, target in ((inside, root / layout.train.image_paths[0]), (outside, secret)):
        file.unlink()
        file.symlink_to(target)
    with pytest.raises(DataError, match=r"FOLLOW_LINKS=1") as caught:
        prepare(root, options(tmp_path / "raw"))
    assert layout.train.image_paths[2] in str(caught.value)
    assert layout.train.image_paths[1] not in str(caught.value)
    packed, summary = prepare(root, options(tmp_path / "raw", bad=0.1))
    assert summary["images"]["ignored_members"]["leads_out"]["count"] == 1
    assert image_bytes(99) not in b"".join(path.read_bytes() for path in packed.glob("*.tar"))
    packed, summary = prepare(root, options(tmp_path / "raw", follow_links=True))
    assert image_bytes(99) in b"".join(path.read_bytes() for path in packed.glob("*.tar"))


def test_members_of_systems_prefixes_back_slashes_and_unicode_forms(tmp_path: Path) -> None:
    layout = build(train=4, test=0)
    for records in layout.train.records.values():
        records[0]["Uid"] = unicodedata.normalize("NFC", "Zo\u00eb")
    layout.train.image_paths[0] = "train/Zo\u00eb/5000.jpg"
    root = layout.write(tmp_path / "set")
    first, second, third, fourth = layout.train.image_paths
    write_tar(
        root / "train_images.tar",
        [
            (unicodedata.normalize("NFD", first), image_bytes(0)),
            (f"photos/{second}", image_bytes(1)),
            (third.replace("/", "\\"), image_bytes(2)),
            (fourth, image_bytes(3)),
            (f"__MACOSX/{fourth.replace('5021', '._5021')}", b"x"),
            ("train/.DS_Store", b"x"),
        ],
    )
    _, summary = prepare(root, options(tmp_path / "raw"))
    images = summary["images"]
    assert images["statuses"]["train"]["ok"] == 4
    assert images["prefixes"] == {"photos/": 1}
    assert images["ignored_members"]["of_systems"]["count"] == 2
    assert "  1 members lie below photos/" in summary_text(summary)


@pytest.mark.parametrize("name", ["My Data", "a;b", "a$(touch x)b", 'a"b', "T\u00e9l\u00e9"])
def test_a_root_with_characters_of_the_shell(tmp_path: Path, name: str) -> None:
    layout = build()
    root = layout.write(tmp_path / name)
    write_tars(layout, root)
    assert prepare(root, options(tmp_path / "raw"))[0] == root


@pytest.mark.parametrize("name", ["it's", "a${b}"])
def test_a_root_that_cannot_be_quoted_is_refused(tmp_path: Path, name: str) -> None:
    layout = build()
    root = layout.write(tmp_path / name)
    write_tars(layout, root)
    with pytest.raises(DataError, match="the path holds a quote"):
        prepare(root, options(tmp_path / "raw"))


def test_the_root_in_params_keeps_its_characters(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text("dataset:\n  root: data/demo\n")
    set_root(params, Path("/My Data: #1/\u00e9"))
    assert "root: '/My Data: #1/\u00e9'" in params.read_text(encoding="utf-8")


def test_test_posts_that_are_older_than_the_training_are_said(shards: Path, tmp_path: Path) -> None:
    _, summary = prepare(shards, options(tmp_path / "raw"))
    assert summary["test_posts_before_training_ends"] == 0.0
    layout = build()
    assert layout.test is not None
    for row in layout.test.records["temporalspatial"]:
        row["Postdate"] = str(int(row["Postdate"]) - 86_400 * 30)
    layout.write(shards)
    _, summary = prepare(shards, options(tmp_path / "raw"))
    assert summary["test_posts_before_training_ends"] == 1.0
    assert "this is no split by time" in summary_text(summary)
