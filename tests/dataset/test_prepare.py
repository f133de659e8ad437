"""`make dataset`: a data set is checked, its images are packed once, and params.yaml points at the result."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from popularity.core.atomic import read_json
from popularity.core.config import read_yaml
from popularity.core.errors import ConfigError, DataError
from popularity.dataset import DatasetParams, ingest, packing
from popularity.dataset import __main__ as command
from popularity.dataset.preparation import Options, prepare, summary_text
from popularity.images import ImageFolder, ImageReader, IndexImagesParams, index_images
from tests.dataset.layout import Layout, build, write_folder, write_tars
from tests.repository import profile_text, write_profile

PARAMS = """# The only hyper-parameter file.
profile: demo

dataset:
  # Folder in the official layout.
  root: data/demo
  collected_at: last_post
  labels: log2
  without_user_file: false

index_images: {max_bad_fraction: 1.0, max_part_difference: 1.0, max_pixels: 1000}

training:
  rate: 1.0e-4   # per step
  names: ["a", 'b']
  long: "a text that is a good deal longer than the eighty characters at which YAML writers like to break a line"
"""
SHARD_BYTES = 30_000
IMAGES = IndexImagesParams(max_bad_fraction=0.0, max_part_difference=1.0, max_pixels=1000)
LENIENT = IndexImagesParams(max_bad_fraction=1.0, max_part_difference=1.0, max_pixels=1000)


def options(packed: Path, shard_bytes: int = SHARD_BYTES, *, follow_links: bool = False) -> Options:
    dataset = DatasetParams("", "last_post", "log2", without_user_file=False)
    return Options(dataset, LENIENT, packed, shard_bytes, follow_links)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose images lie in a folder."""
    layout = build("B", train=40, test=20)
    root = layout.write(tmp_path_factory.mktemp("made") / "flickr")
    write_folder(layout, root)
    return root


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "source" / "flickr"))


def snapshot(root: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def contents(files: dict[str, tuple[bytes, int]]) -> dict[str, bytes]:
    return {name: content for name, (content, _) in files.items()}


def rewritten_shards(before: dict[str, tuple[bytes, int]], after: dict[str, tuple[bytes, int]]) -> set[str]:
    return {name for name in after if name.endswith(".tar") and before.get(name) != after[name]}


def test_a_folder_is_packed(tmp_path: Path, folder: Path) -> None:
    before = snapshot(folder)
    (folder / "test_allmetadata_json" / "test_label.txt").write_text("1\n")
    root, summary = prepare(folder, options(tmp_path / "raw"))
    assert root == tmp_path / "raw" / "flickr"
    assert summary["posts"] == 60
    (folder / "test_allmetadata_json" / "test_label.txt").unlink()
    assert snapshot(folder) == before
    assert not list(root.rglob("test_label.txt"))
    assert not list(root.rglob("*.partial"))
    manifest = read_json(root / "manifest.json")
    assert manifest["source"] == str(folder)
    assert [entry["shard"] for entry in manifest["shards"]] == sorted(
        (path.name for path in root.glob("*.tar")), key=lambda name: (name.startswith("test"), name)
    )
    assert len(manifest["shards"]) > 3
    for entry in manifest["shards"]:
        content = (root / entry["shard"]).read_bytes()
        assert len(content) == entry["bytes"] <= SHARD_BYTES
        assert hashlib.md5(content).hexdigest() == entry["md5"]
    assert sum(entry["members"] for entry in manifest["shards"]) == 60
    posts = ingest(root).posts
    assert posts.equals(ingest(folder).posts)
    images, _ = index_images(posts, root, IMAGES)
    reader = ImageReader(root)
    for row in images.join(posts, on="pid").iter_rows(named=True):
        assert reader.read(row["shard"], row["offset"], row["bytes"]) == (folder / row["image_path"]).read_bytes()


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path, folder: Path) -> None:
    first, _ = prepare(folder, options(tmp_path / "first"))
    second, _ = prepare(folder, options(tmp_path / "second"))
    assert contents(snapshot(first)) == contents(snapshot(second))


def test_finished_shards_are_kept_and_only_what_changed_is_packed_again(tmp_path: Path, folder: Path) -> None:
    root, _ = prepare(folder, options(tmp_path / "raw"))
    first = snapshot(root)
    prepare(folder, options(tmp_path / "raw"))
    assert rewritten_shards(first, snapshot(root)) == set()
    damaged = root / "train_images_0001.tar"  # same size, other content
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    (root / "test_images_0000.tar").unlink()
    prepare(folder, options(tmp_path / "raw"))
    second = snapshot(root)
    assert rewritten_shards(first, second) == {damaged.name, "test_images_0000.tar"}
    assert contents(first) == contents(second)
    touched = folder / ingest(folder).posts.filter(split="train", source_index=0)["image_path"][0]
    touched.write_bytes(bytes(reversed(touched.read_bytes())))
    prepare(folder, options(tmp_path / "raw"))
    assert rewritten_shards(second, snapshot(root)) == {"train_images_0000.tar"}


def test_shards_of_an_earlier_state_go(tmp_path: Path, folder: Path) -> None:
    root, _ = prepare(folder, options(tmp_path / "raw"))
    many = len(list(root.glob("*.tar")))
    prepare(folder, options(tmp_path / "raw", 10 * SHARD_BYTES))
    assert len(list(root.glob("*.tar"))) == 2 < many
    assert len(read_json(root / "manifest.json")["shards"]) == 2
    _, summary = index_images(ingest(root).posts, root, IMAGES)
    assert summary["ignored_members"]["replaced"]["count"] == 0


def test_an_error_leaves_finished_shards_and_no_broken_one(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = packing._write_shard

    def failing(source: ImageFolder, shard: Path, *rest: object) -> None:
        if shard.name == "train_images_0002.tar":
            raise OSError("no space left on device")
        whole(source, shard, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(packing, "_write_shard", failing)
    with pytest.raises(OSError, match="no space"):
        prepare(folder, options(tmp_path / "raw"))
    monkeypatch.undo()
    root = tmp_path / "raw" / "flickr"
    before = snapshot(root)
    assert {name for name in before if name.endswith(".tar")} == {"train_images_0000.tar", "train_images_0001.tar"}
    prepare(folder, options(tmp_path / "raw"))
    assert not rewritten_shards(before, snapshot(root)) & set(before)


KILLED = """
import os, signal, sys, tarfile
from pathlib import Path
from popularity.dataset.preparation import prepare
add, added = tarfile.TarFile.addfile, []
def add_or_die(*arguments):
    add(*arguments)
    added.append(1)
    if len(added) == 50:
        os.kill(os.getpid(), signal.SIGKILL)
tarfile.TarFile.addfile = add_or_die
from tests.dataset.test_prepare import options
prepare(Path(sys.argv[1]), options(Path(sys.argv[2]), int(sys.argv[3])))
"""


def test_a_killed_run_goes_on(tmp_path: Path, folder: Path) -> None:
    arguments = [str(folder), str(tmp_path / "raw"), str(SHARD_BYTES)]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], stderr=subprocess.DEVNULL, check=False)
    assert killed.returncode == -signal.SIGKILL
    root = tmp_path / "raw" / "flickr"
    before = snapshot(root)
    assert len([name for name in before if name.endswith(".partial")]) == 1
    finished = {name for name in before if name.endswith(".tar")}
    assert finished == {entry["shard"] for entry in read_json(root / "manifest.json")["shards"]}
    assert len(finished) >= 2
    prepare(folder, options(tmp_path / "raw"))
    after = snapshot(root)
    assert not rewritten_shards(before, after) & finished
    uninterrupted, _ = prepare(folder, options(tmp_path / "again"))
    assert contents(after) == contents(snapshot(uninterrupted))


def test_shards_are_used_where_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = build("A")
    root = layout.write(tmp_path / "tars")
    write_tars(layout, root)
    before = snapshot(root)
    params = tmp_path / "params.yaml"
    params.write_text(PARAMS)
    command.main([os.path.relpath(root), "--params", str(params), "--packed", str(tmp_path / "raw")])
    assert not (tmp_path / "raw").exists()
    assert snapshot(root) == before
    assert params.read_text() == PARAMS.replace("data/demo", str(root))
    printed = capsys.readouterr().out
    assert "train: 12 posts of 3 users" in printed
    assert "images of train: 12 of 12 can be used\n" in printed
    assert "images of test: 6 of 6 can be used\nvalues" in printed
    assert f"dataset.root: data/demo -> {root}" in printed


@pytest.mark.parametrize("packed", [False, True])
def test_missing_and_empty_images_are_counted(
    tmp_path: Path, folder: Path, packed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    params = tmp_path / "params.yaml"
    params.write_text(PARAMS)
    paths = sorted(ingest(folder).posts["image_path"])
    for path in (*paths[:2], *paths[-3:]):
        (folder / path).unlink()
    (folder / paths[2]).write_bytes(b"")
    root = prepare(folder, options(tmp_path / "shards"))[0] if packed else folder
    capsys.readouterr()
    command.main([str(root), "--params", str(params), "--packed", str(tmp_path / "raw")])
    printed = capsys.readouterr().out
    assert "images of train: 37 of 40 can be used\n" in printed
    assert "images of test: 17 of 20 can be used\n" in printed
    assert f"  5 missing: {paths[0]}, {paths[1]}, {paths[-3]}, ...\n" in printed
    assert f"  1 unreadable: {paths[2]}\n" in printed
    assert "  of the unreadable, 1 are empty\n" in printed


def test_a_shard_that_was_cut_off_is_named(tmp_path: Path) -> None:
    layout = build("B")
    root = layout.write(tmp_path / "tars")
    write_tars(layout, root)
    shard = root / "test_images.tar"
    os.truncate(shard, 1000)
    _, summary = prepare(root, options(tmp_path / "raw"))
    assert summary["images"]["examples"]["missing"] == sorted(layout.parts[1].image_paths)
    assert f"  {shard.name} is cut off within" in summary_text(summary)


def test_params_keep_every_other_byte(tmp_path: Path, folder: Path) -> None:
    params = write_profile(tmp_path)
    command.main([str(folder), "--params", str(params), "--packed", str(tmp_path / "raw")])
    before, after = profile_text().splitlines(), params.read_text(encoding="utf-8").splitlines()
    assert len(before) == len(after)
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert [new for _, new in changed] == [f"  root: {tmp_path / 'raw' / 'flickr'}"]
    assert read_yaml(params)["dataset"]["root"] == str(tmp_path / "raw" / "flickr")


def test_params_without_the_key(tmp_path: Path, folder: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text(PARAMS.replace("  root: data/demo\n", ""))
    with pytest.raises(ConfigError, match=r"dataset\.root: missing"):
        command.main([str(folder), "--params", str(params), "--packed", str(tmp_path / "raw")])


@pytest.mark.parametrize("tests", [0, 6])
def test_without_images(tmp_path: Path, tests: int) -> None:
    root = build("B", test=tests).write(tmp_path / "bare")
    with pytest.raises(DataError) as caught:
        prepare(root, options(tmp_path / "raw"))
    assert "the train split has no images" in str(caught.value)
    assert f"{root}/train_images*.tar, or a folder {root}/train/<Uid>/<Pid>.jpg" in str(caught.value)


def test_half_packed(tmp_path: Path) -> None:
    layout = build("B")
    root = layout.write(tmp_path / "half")
    write_folder(layout, root)
    write_tars(Layout(layout.train, None), root)
    with pytest.raises(DataError, match="shards for the split train only"):
        prepare(root, options(tmp_path / "raw"))


def test_another_data_set_of_the_same_name(tmp_path: Path, folder: Path) -> None:
    prepare(folder, options(tmp_path / "raw"))
    other = tmp_path / "other" / "flickr"
    layout = build("B")
    write_folder(layout, layout.write(other))
    with pytest.raises(DataError, match="--packed"):
        prepare(other, options(tmp_path / "raw"))


def test_the_copy_may_not_lie_inside_the_data_set(tmp_path: Path, folder: Path) -> None:
    before = snapshot(folder)
    with pytest.raises(DataError, match="inside the data set"):
        prepare(folder, options(folder / "raw"))
    assert snapshot(folder) == before


def test_a_refused_data_set_changes_nothing(tmp_path: Path, folder: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text(PARAMS)
    (folder / "train_allmetadata_json" / "train_label.txt").write_text("1\n")
    with pytest.raises(DataError, match=r"train_label\.txt"):
        command.main([str(folder), "--params", str(params), "--packed", str(tmp_path / "raw")])
    assert params.read_text() == PARAMS
    assert not (tmp_path / "raw").exists()
