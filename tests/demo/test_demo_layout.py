"""The generated files keep the official layout, row by row, and tell nothing of the truth."""

from __future__ import annotations

import dataclasses
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from popularity.core.atomic import fingerprint, read_json
from popularity.core.errors import DataError
from popularity.demo import DemoParams, generate
from tests.conftest import Dataset

ALIGNED = {
    "category": {"Category", "Subcategory", "Concept"},
    "text": {"Title", "Mediatype", "Alltags"},
    "temporalspatial_information": {"Postdate", "Latitude", "Longitude", "Geoaccuracy"},
    "additional_information": {"Pathalias", "Ispublic", "Mediastatus"},
}
PROFILE = {"photo_firstdate", "photo_count", "ispro", "canbuypro", "timezone_offset", "photo_firstdatetaken"} | {
    "user_description",
    "location_description",
}


def read(root: Path, split: str, name: str) -> Any:
    return read_json(root / f"{split}_allmetadata_json" / f"{split}_{name}.json")


def lines(root: Path, split: str, name: str) -> list[str]:
    return (root / f"{split}_allmetadata_json" / f"{split}_{name}.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(("split", "posts"), [("train", 210), ("test", 90)])
def test_every_file_has_the_same_posts_in_the_same_rows(tiny_dataset: Dataset, split: str, posts: int) -> None:
    root = tiny_dataset.root
    ids = [(row["Uid"], row["Pid"]) for row in read(root, split, "category")]
    assert len(ids) == len({pid for _, pid in ids}) == posts
    for name, fields in ALIGNED.items():
        rows = read(root, split, name)
        assert [(row["Uid"], row["Pid"]) for row in rows] == ids
        assert all(set(row) == {"Uid", "Pid"} | fields for row in rows)
        assert all(isinstance(value, str) for row in rows for value in row.values())
    assert lines(root, split, "img_filepath") == [f"{split}/{uid}/{pid}.jpg" for uid, pid in ids]
    with tarfile.open(root / f"{split}_images.tar") as tar:
        assert tar.getnames() == lines(root, split, "img_filepath")


def test_user_file_of_form_a_repeats_a_users_row(tiny_dataset: Dataset) -> None:
    profiles: dict[str, Any] = {}
    for split in ("train", "test"):
        rows, uids = (
            read(tiny_dataset.root, split, "user_data"),
            [r["Uid"] for r in read(tiny_dataset.root, split, "text")],
        )
        assert len(rows) == len(uids)
        for uid, row in zip(uids, rows, strict=True):
            assert set(row) == PROFILE | {"timezone_id"}
            assert profiles.setdefault(uid, row) == row
    vectors = [(p["user_description"].split(","), p["location_description"]) for p in profiles.values()]
    assert all(len(user) == 399 and np.isfinite([float(x) for x in user]).all() for user, _ in vectors)
    assert {len(location.split(",")) for _, location in vectors if location} == {400}
    assert any(not location for _, location in vectors)


def test_user_file_of_form_b_is_columnar_with_ids(
    tiny_params: DemoParams, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    generate(dataclasses.replace(tiny_params, user_file="B"), tmp_path / "data", tmp_path / "truth")
    for split in ("train", "test"):
        columns = read(tmp_path / "data", split, "user_data")
        assert set(columns) == PROFILE | {"Uid", "Pid", "timezone_timezone_id"}
        text = read(tmp_path / "data", split, "text")
        assert text == read(tiny_dataset.root, split, "text")  # the form changes the user file alone
        for i, row in enumerate(text):
            assert (columns["Uid"][str(i)], columns["Pid"][str(i)]) == (row["Uid"], row["Pid"])
        assert any("<b>" in description for description in columns["user_description"].values())


def test_the_same_seed_gives_the_same_bytes(tiny_params: DemoParams, tiny_dataset: Dataset, tmp_path: Path) -> None:
    generate(tiny_params, tmp_path / "root", tmp_path / "truth")
    assert fingerprint(tmp_path / "root") == fingerprint(tiny_dataset.root)
    assert fingerprint(tmp_path / "truth") == fingerprint(tiny_dataset.truth)
    generate(dataclasses.replace(tiny_params, seed=tiny_params.seed + 1), tmp_path / "other", tmp_path / "other_truth")
    assert fingerprint(tmp_path / "other") != fingerprint(tiny_dataset.root)


def test_nothing_of_the_truth_lies_in_the_data_set(tiny_dataset: Dataset) -> None:
    files = {str(path.relative_to(tiny_dataset.root)) for path in tiny_dataset.root.rglob("*") if path.is_file()}
    official = {
        f"{split}_allmetadata_json/{split}_{name}"
        for split in ("train", "test")
        for name in (*(f"{name}.json" for name in (*ALIGNED, "user_data")), "img_filepath.txt")
    }
    assert files == official | {"train_allmetadata_json/train_label.txt", "train_images.tar", "test_images.tar"}


def test_truth_inside_the_data_set_is_refused(tiny_params: DemoParams, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="truth may not lie inside"):
        generate(tiny_params, tmp_path, tmp_path / "truth")


def test_split_is_by_time_and_most_test_posts_are_of_new_users(tiny_dataset: Dataset) -> None:
    rows = {split: read(tiny_dataset.root, split, "temporalspatial_information") for split in ("train", "test")}
    assert max(int(row["Postdate"]) for row in rows["train"]) < min(int(row["Postdate"]) for row in rows["test"])
    seen = {row["Uid"] for row in rows["train"]}
    assert np.mean([row["Uid"] not in seen for row in rows["test"]]) == pytest.approx(0.64, abs=0.05)
    joined = [row["Uid"] for row in rows["train"] if int(row["Postdate"]) > 1_445_000_000]
    assert set(joined) - {row["Uid"] for row in rows["train"] if int(row["Postdate"]) <= 1_445_000_000}


def test_rows_follow_collection_and_not_quite_time(tiny_dataset: Dataset) -> None:
    pids = [int(row["Pid"]) for split in ("train", "test") for row in read(tiny_dataset.root, split, "text")]
    assert pids == sorted(pids)
    assert set(np.diff(pids)) != {1}
    times = [int(row["Postdate"]) for row in read(tiny_dataset.root, "train", "temporalspatial_information")]
    assert times != sorted(times)
    assert np.corrcoef(times, range(len(times)))[0, 1] > 0.9


def test_activity_is_skewed_and_comes_in_bursts(tiny_dataset: Dataset) -> None:
    rows = read(tiny_dataset.root, "train", "temporalspatial_information")
    times: dict[str, list[int]] = {}
    for row in rows:
        times.setdefault(row["Uid"], []).append(int(row["Postdate"]))
    counts = [len(own) for own in times.values()]
    assert max(counts) > 4 * np.median(counts)
    gaps = np.concatenate([np.diff(sorted(own)) for own in times.values()])
    assert 0.1 < np.mean(gaps <= 600) < 0.7


def test_some_texts_are_empty_and_places_are_given_or_blank(tiny_dataset: Dataset) -> None:
    text = read(tiny_dataset.root, "train", "text")
    assert 0.02 < np.mean([row["Title"] == "" for row in text]) < 0.2
    assert 0.02 < np.mean([row["Alltags"] == "" for row in text]) < 0.4
    locations = read(tiny_dataset.root, "train", "temporalspatial_information")
    blank = [row["Latitude"] == "" for row in locations]
    assert 0.3 < np.mean(blank) < 0.9
    for row, empty in zip(locations, blank, strict=True):
        assert (row["Longitude"] == "", row["Geoaccuracy"] == "0") == (empty, empty)
        assert empty or (abs(float(row["Latitude"])) <= 90 and abs(float(row["Longitude"])) <= 180)


def test_images_decode_at_their_size_and_differ_by_class_and_quality(tiny_dataset: Dataset) -> None:
    quality = dict(pl.read_parquet(tiny_dataset.truth / "latents.parquet").select("pid", "quality").iter_rows())
    category = {row["Pid"]: row["Category"] for row in read(tiny_dataset.root, "train", "category")}
    colours: dict[str, list[Any]] = {}
    contrast, good, shapes = [], [], set()
    with tarfile.open(tiny_dataset.root / "train_images.tar") as tar:
        for member in tar:
            stream = tar.extractfile(member)
            assert stream is not None
            assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
            with Image.open(io.BytesIO(stream.read())) as image:
                assert image.format == "JPEG"
                assert max(image.size) == 32
                shapes.add(image.size)
                pixels = np.asarray(image.convert("RGB"), dtype=float)
            pid = Path(member.name).stem
            contrast.append(np.ptp(np.percentile(pixels.mean(axis=2), (5, 95))))
            good.append(quality[pid])
            mean = pixels.mean(axis=(0, 1))
            if quality[pid] > 0.5:
                colours.setdefault(category[pid], []).append(mean - mean.mean())
    assert len(shapes) >= 4
    assert np.corrcoef(contrast, good)[0, 1] > 0.5
    centres = np.array([np.mean(own, axis=0) for own in colours.values() if len(own) >= 5])
    distances = np.linalg.norm(centres[:, None] - centres[None], axis=2)[np.triu_indices(len(centres), 1)]
    spread = np.mean([np.std(own, axis=0).mean() for own in colours.values() if len(own) >= 5])
    assert np.median(distances) > 2 * spread
