"""The two stages: contracts, bad images, kills, resumption, and one or several processes."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML
from torch.utils.data import DataLoader, Dataset

from popularity.core.contracts import (
    FURTHER_PICTURES,
    IMAGE_STATISTICS,
    IMAGE_STATUS,
    IMAGES,
    POSTS,
    read_table,
    write_table,
)
from popularity.core.errors import ConfigError, ContractError, DataError, PopularityError
from popularity.core.vectors import read_block, read_tokens
from popularity.encoders import sharding
from popularity.encoders.image import EmbedImageParams, ImageTransform, load_image_encoder
from popularity.encoders.image_blocks import embed_images
from popularity.encoders.sharding import ShardPlan, as_float16, gather, loader_workers, workers_that_fit
from popularity.encoders.text import EmbedTextParams, TextBatch, load_text_encoder, load_tokenizer
from popularity.encoders.text_blocks import embed_texts
from popularity.images.statistics import image_statistics
from stages import embed_image, embed_text
from tests.encoders.tiny_encoders import Images, encoder_sections, make_images, text_params
from tests.full_disk import full_disk
from tests.processes import wait_for
from tests.repository import PAIR, REPOSITORY, stage_flags
from tests.small_tables import small_posts


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """.state/ lies in the working directory; loaders are off where a test does not ask for them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POPULARITY_WORKERS", "0")


@pytest.fixture
def image_set(tmp_path: Path) -> Images:
    return make_images(tmp_path)


def arguments(stage: str, params: EmbedImageParams | EmbedTextParams, **paths: Path) -> list[str]:
    """The flags of a stage in the working directory, whose params.yaml it writes."""
    given = encoder_sections(image=params) if isinstance(params, EmbedImageParams) else encoder_sections(text=params)
    YAML().dump(given, Path("params.yaml"))
    return stage_flags(stage, Path.cwd(), **paths)


def image_arguments(image_set: Images, out: Path) -> list[str]:
    paths = {"root": image_set.root, "images": image_set.table, "out": out, "resources": out.with_suffix(".json")}
    return arguments("embed_image", image_set.params(), **paths)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def direct(image_set: Images, pid: str) -> np.ndarray:
    """The vector of one image, without tables, shards or loaders."""
    encoder = load_image_encoder(image_set.params())
    image = Image.open(io.BytesIO(image_set.contents[pid])).convert("RGB")
    with torch.inference_mode():
        vector: np.ndarray = encoder(ImageTransform(encoder.preprocessing)(image)[None])[0].numpy()
    return vector


def test_embed_image_stage(image_set: Images, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    embed_image.main(image_arguments(image_set, Path("out")))
    block, table = read_block(Path("out"), "pooled"), read_table(image_set.table, IMAGES)
    without = {image_set.broken, image_set.missing}
    assert list(block.pids) == [pid for pid in table["pid"] if pid not in without]
    for pid in (block.pids[0], block.pids[7], block.pids[-1]):
        np.testing.assert_allclose(block.values[block.rows([pid])[0]], direct(image_set, pid), rtol=2e-3, atol=2e-3)
    statistics = read_table(Path("out/statistics.parquet"), IMAGE_STATISTICS)
    assert statistics["pid"].to_list() == list(block.pids)
    for pid in (block.pids[0], block.pids[7], block.pids[-1]):
        picture = Image.open(io.BytesIO(image_set.contents[pid])).convert("RGB")
        np.testing.assert_array_equal(statistics.filter(pid=pid).drop("pid").row(0), image_statistics(picture))
    status = dict(read_table(Path("out/status.parquet"), IMAGE_STATUS).iter_rows())
    assert set(status) == set(table["pid"])
    assert {pid for pid in status if status[pid] != "ok"} == without
    assert (status[image_set.broken], status[image_set.missing]) == ("unreadable", "missing")
    assert f"1 images have a good header but cannot be decoded, now unreadable: {image_set.broken}" in caplog.text
    assert block.metadata["encoder"] == "test_efficientnet"
    assert block.metadata["weights"].startswith("sha256:")
    assert json.loads(Path("out.json").read_text())["stage"] == f"embed_image@{PAIR['image']}"
    assert not list(Path(".state/embed_image").iterdir())


def test_the_vector_of_several_pictures_is_their_mean(image_set: Images, tmp_path: Path) -> None:
    """Statistics are those of the first; broken further pictures and those of a broken first one do not count."""
    table = read_table(image_set.table, IMAGES)
    one, two, plain = [pid for pid in table.filter(status="ok")["pid"] if pid != image_set.broken][:3]
    rows = {row["pid"]: row for row in table.iter_rows(named=True)}
    further = {one: [two, plain, image_set.broken], image_set.broken: [two]}
    pictures = [
        [{name: value for name, value in rows[other].items() if name != "pid"} for other in further.get(pid, [])]
        for pid in table["pid"]
    ]
    listed = table.with_columns(
        pl.Series(FURTHER_PICTURES, pictures, dtype=pl.List(pl.Struct(dict(list(table.schema.items())[1:]))))
    )
    embed_image.main(image_arguments(image_set, Path("plain")))
    write_table(listed, image_set.table, IMAGES)
    embed_image.main(image_arguments(image_set, Path("out")))
    block, before = read_block(Path("out"), "pooled"), read_block(Path("plain"), "pooled")
    assert block.pids == before.pids
    alone = {pid: np.float32(before.values[before.rows([pid])[0]]) for pid in (one, two, plain)}
    mean = np.mean([alone[one], alone[two], alone[plain]], axis=0)
    np.testing.assert_allclose(block.values[block.rows([one])[0]], mean, rtol=2e-3, atol=2e-3)
    others = [pid for pid in block.pids if pid != one]
    left, right = block.values[block.rows(others)], before.values[before.rows(others)]
    np.testing.assert_allclose(left, right, rtol=2e-3, atol=1e-5)  # other batches: the last bit of float16 may differ
    for name in ("statistics.parquet", "status.parquet"):
        assert (Path("out") / name).read_bytes() == (Path("plain") / name).read_bytes()


def test_same_bytes_again_and_with_loaders(image_set: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, workers in enumerate(("0", "0", "2")):
        monkeypatch.setenv("POPULARITY_WORKERS", workers)
        embed_images(image_set.root, image_set.table, Path(f"out{number}"), image_set.params())
    assert contents(Path("out0")) == contents(Path("out1")) == contents(Path("out2"))


def test_bf16_is_near_fp32(image_set: Images) -> None:
    embed_images(image_set.root, image_set.table, Path("fp32"), image_set.params())
    embed_images(image_set.root, image_set.table, Path("bf16"), image_set.params(precision="bf16"))
    full, half = (read_block(Path(name), "pooled") for name in ("fp32", "bf16"))
    assert full.pids == half.pids
    assert not np.array_equal(full.values, half.values)
    left, right = full.values.astype(float), half.values.astype(float)
    cosine = (left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    assert cosine.min() > 0.98


def test_a_data_set_without_a_readable_image(image_set: Images) -> None:
    table = read_table(image_set.table, IMAGES)
    for keep in (pl.col("pid") == image_set.broken, pl.col("pid") == image_set.missing):
        write_table(table.filter(keep), image_set.table, IMAGES)
        embed_images(image_set.root, image_set.table, Path("out"), image_set.params())
        block = read_block(Path("out"), "pooled")
        assert block.values.shape == (0, load_image_encoder(image_set.params()).out_features)
        assert read_table(Path("out/status.parquet"), IMAGE_STATUS)["status"].to_list() != ["ok"]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_lost_shard_stops_the_run_and_keeps_the_old_output(
    image_set: Images, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_images(image_set.root, image_set.table, Path("out"), image_set.params())
    before = contents(Path("out"))
    (image_set.root / "train_images_1.tar").unlink()
    monkeypatch.setenv("POPULARITY_WORKERS", workers)
    with pytest.raises(DataError, match=r"train_images_1\.tar: cannot be read") as caught:
        embed_images(image_set.root, image_set.table, Path("out"), image_set.params(batch_size=3))
    assert "Traceback" not in str(caught.value)
    assert contents(Path("out")) == before


def shards_of(stage: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(Path(".state").glob(f"{stage}/*/shard-*.npz"))}


def start(module: str, given: Sequence[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", module, *given]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_a_killed_run_resumes_at_its_last_finished_shard(image_set: Images, caplog: pytest.LogCaptureFixture) -> None:
    given = image_arguments(image_set, Path("out"))
    embed_image.main(image_arguments(image_set, Path("whole")))
    # A named pipe instead of the last shard: its reader waits, so the kill comes at a known point.
    last = image_set.root / "zoo/single.jpg"
    content = last.read_bytes()
    last.unlink()
    os.mkfifo(last)
    process = start("stages.embed_image", given)
    wait_for(lambda: len(shards_of("embed_image")) >= 3, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left = shards_of("embed_image")
    assert len(left) == 3  # of four, with six images each
    assert not Path("out").exists()
    last.unlink()
    last.write_bytes(content)
    # Proof that finished shards are taken as they are: one of them is marked.
    marked = next(iter(left))
    with np.load(marked) as stored:
        arrays = dict(stored)
    changed = arrays["vectors"].copy()
    changed[0] = 0.5
    np.savez(marked, **{**arrays, "vectors": changed})
    caplog.set_level(logging.INFO)
    embed_image.main(given)
    assert "3 of 4 shards are there from an earlier run" in caplog.text
    resumed, whole = read_block(Path("out"), "pooled"), read_block(Path("whole"), "pooled")
    differs = (resumed.values != whole.values).any(axis=1)
    assert differs.sum() == 1
    assert (resumed.values[differs] == 0.5).all()
    for name in ("status.parquet", "statistics.parquet"):
        assert contents(Path("out"))[name] == contents(Path("whole"))[name]
    assert not shards_of("embed_image")


def test_an_interrupted_run_ends_in_the_same_bytes(image_set: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    embed_images(image_set.root, image_set.table, Path("whole"), image_set.params())
    lost, kept = image_set.root / "train_images_1.tar", image_set.root / "kept"
    lost.rename(kept)
    with pytest.raises(DataError):
        embed_images(image_set.root, image_set.table, Path("out"), image_set.params())
    left = shards_of("embed_image")
    assert len(left) == 1
    kept.rename(lost)
    # Shards of other parameters are another run's.
    embed_images(image_set.root, image_set.table, Path("other"), image_set.params(batch_size=5))
    assert shards_of("embed_image") == left
    embed_images(image_set.root, image_set.table, Path("out"), image_set.params())
    assert contents(Path("out")) == contents(Path("whole"))


def test_two_processes_equal_one(image_set: Images, posts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher with two CPU processes, through the stages' command lines."""
    Path("configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.setenv("POPULARITY_TOPOLOGY", "two_cpu_processes")
    process = start("popularity.launch", ["stages.embed_image", *image_arguments(image_set, Path("two"))])
    _, messages = process.communicate(timeout=150)
    assert process.returncode == 0, messages
    assert "process 0 of 2 has 2 shards" in messages
    assert "process 1 of 2 has 2 shards" in messages
    embed_image.main(image_arguments(image_set, Path("one")))
    one, two = read_block(Path("one"), "pooled"), read_block(Path("two"), "pooled")
    assert one.pids == two.pids
    # Other thread counts may sum in another order: the last bit of float16 is allowed to differ.
    np.testing.assert_allclose(one.values, two.values, rtol=2e-3, atol=1e-3)
    assert contents(Path("one"))["status.parquet"] == contents(Path("two"))["status.parquet"]


@pytest.fixture
def posts(tmp_path: Path) -> Path:
    """Titles and tags of every kind: both, one, none, white space, shared between posts, very long."""
    titles = ["cat at the sea", "", "   ", "cat at the sea", "sunset", "", "x" * 2_000, "日本 \U0001f600", "dog [SEP]"]
    tags = ["cat sea", "dog beach", "sunset", "", "cat sea", "", "long", "", "dog"]
    table = small_posts(train=24, test=6)
    picked = [number % len(titles) for number in range(table.height)]
    table = table.with_columns(
        title=pl.Series([titles[number] for number in picked]), tags=pl.Series([tags[number] for number in picked])
    )
    write_table(table, tmp_path / "posts.parquet", POSTS)
    return tmp_path / "posts.parquet"


def test_embed_text_stage(posts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPULARITY_WORKERS", "1")
    paths = {"posts": posts, "out": Path("out"), "resources": Path("resources.json")}
    embed_text.main(arguments("embed_text", text_params(), **paths))
    table, params = read_table(posts, POSTS), text_params()
    encoder, tokenize = load_text_encoder(params), load_tokenizer(params)
    blocks = {name: read_block(Path("out"), name) for name in ("title", "tags", "post")}
    tokens = read_tokens(Path("out"), "tokens")
    assert all(list(block.pids) == list(tokens.pids) == table["pid"].to_list() for block in blocks.values())
    for row, (title, tags) in enumerate(table.select("title", "tags").head(9).iter_rows()):
        text = title if title.strip() else tags  # r of method.md; the last case is the empty string
        for name, expected in (("title", title), ("tags", tags), ("post", text)):
            batch = tokenize([expected])
            with torch.inference_mode():
                pooled, hidden = encoder(batch.input_ids, batch.attention_mask)
            np.testing.assert_allclose(blocks[name].values[row], pooled[0], atol=2e-3)
        own = tokens.values[tokens.offsets[row] : tokens.offsets[row + 1]]
        np.testing.assert_allclose(own, hidden[0][batch.token_mask[0]], rtol=2e-3, atol=5e-3)
        assert len(own) == batch.input_ids.shape[1] - 2
    empty = ((table["title"].str.strip_chars() == "") & (table["tags"] == "")).to_numpy()
    assert empty.any()
    assert (np.diff(tokens.offsets)[empty] == 0).all()
    assert (np.diff(tokens.offsets)[~empty] > 0).all()
    np.testing.assert_allclose(np.linalg.norm(blocks["title"].values.astype(float), axis=1), 1, atol=2e-3)


def test_texts_give_the_same_bytes_again_and_after_an_interruption(
    posts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_texts(posts, Path("whole"), text_params())
    monkeypatch.setenv("POPULARITY_WORKERS", "2")
    embed_texts(posts, Path("again"), text_params())
    assert contents(Path("whole")) == contents(Path("again"))
    with full_disk("shard-000001.npz"):
        embed_texts(posts, Path("out"), text_params())
    assert len(shards_of("embed_text")) == 1
    assert not Path("out").exists()
    embed_texts(posts, Path("out"), text_params())
    assert contents(Path("out")) == contents(Path("whole"))


def test_processes_that_do_not_know_of_each_other(
    image_set: Images, posts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="each of them runs alone"):
        embed_texts(posts, Path("out"), text_params())


def test_worker_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loader_workers() == 0
    monkeypatch.setenv("POPULARITY_WORKERS", "many")
    with pytest.raises(ConfigError, match="POPULARITY_WORKERS: expected a whole number"):
        loader_workers()
    monkeypatch.delenv("POPULARITY_WORKERS")
    monkeypatch.setattr(sharding, "allocated_cores", lambda: 12)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert loader_workers() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert loader_workers() == 1
    monkeypatch.setattr(sharding, "allocated_cores", lambda: 128)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert loader_workers() == 8


def test_a_batch_starts_before_the_one_before_it_is_waited_for() -> None:
    """So copies from the device overlap with the encoder; an error comes after the batches before it."""
    events: list[str] = []

    def encode(batch: int) -> Callable[[], sharding.Arrays]:
        events.append(f"start {batch}")

        def arrays() -> sharding.Arrays:
            events.append(f"wait {batch}")
            return {"batch": np.array([batch])}

        return arrays

    batches: list[int | PopularityError] = [0, 1, 2, DataError("broken"), 4]
    found = sharding._in_order(batches, encode, ahead=1)
    assert [int(next(found)["batch"][0]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="broken"):
        next(found)
    assert events == ["start 0", "start 1", "wait 0", "start 2", "wait 1", "wait 2"]
    events.clear()
    assert len(list(sharding._in_order([0, 1], encode, ahead=0))) == 2
    assert events == ["start 0", "wait 0", "start 1", "wait 1"]


def test_a_thread_writes_the_shards(image_set: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    save = sharding._save_shard

    def saved(path: Path, batches: Sequence[sharding.Arrays]) -> None:
        threads.append(threading.current_thread())
        save(path, batches)

    monkeypatch.setattr(sharding, "_save_shard", saved)
    embed_images(image_set.root, image_set.table, Path("out"), image_set.params())
    assert len(threads) == 4
    assert threading.main_thread() not in threads


def test_batches_fit_into_shared_memory(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    batch = TextBatch(torch.zeros(4, 250_000, dtype=torch.int64), torch.zeros(1), torch.zeros(1))  # 8 MB
    monkeypatch.setattr(sharding, "free_shared_memory", lambda: 10**9)
    assert workers_that_fit(batch, 8) == 8
    assert not caplog.records
    monkeypatch.setattr(sharding, "free_shared_memory", lambda: 64 * 2**20)  # of a container
    assert workers_that_fit(batch, 8) == 2
    assert workers_that_fit({"a": [batch, batch]}, 8) == 1
    assert workers_that_fit([batch] * 9, 8) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert workers_that_fit(batch, 8) == 1
    assert "2 loader processes instead of 8: /dev/shm has 67 MB free" in caplog.records[0].getMessage()
    assert "docker run --shm-size" in caplog.records[0].getMessage()
    assert "batch_size" in caplog.records[0].getMessage()
    monkeypatch.setattr(sharding, "free_shared_memory", lambda: None)
    assert workers_that_fit(batch, 8) == 8


def test_a_container_with_little_shared_memory_gets_the_same_bytes(
    posts: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    embed_texts(posts, Path("whole"), text_params())
    monkeypatch.setenv("POPULARITY_WORKERS", "2")
    monkeypatch.setattr(sharding, "free_shared_memory", lambda: 10)
    workers = []

    def loader(*given: Any, **options: Any) -> DataLoader[Any]:
        workers.append(options["num_workers"])
        return DataLoader(*given, **options)

    monkeypatch.setattr(sharding, "DataLoader", loader)
    embed_texts(posts, Path("small"), text_params())
    assert workers == [0]
    assert "0 loader processes instead of 2" in caplog.text
    assert contents(Path("small")) == contents(Path("whole"))


class Lost(Dataset[torch.Tensor]):
    """Batches whose loader process finds shared memory full."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.zeros(4)


def without_room(worker: int) -> None:
    """As `end_where_memory_is_full`, in a process in which no tensor can be shared."""
    sharding.end_where_memory_is_full(worker)

    def full(*_: object) -> NoReturn:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    torch.multiprocessing.reductions.reduce_storage = full
    ForkingPickler.register(torch.UntypedStorage, full)


def test_a_loader_that_finds_shared_memory_full_is_an_error_and_no_sleep() -> None:
    loader = DataLoader(Lost(), batch_size=None, num_workers=1, worker_init_fn=without_room)
    with pytest.raises(ConfigError, match=r"loader process has ended(?s:.*)--shm-size(?s:.*)POPULARITY_WORKERS=0"):
        list(sharding.from_loader(loader))


def test_small_tensors_take_whole_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 kB, as some containers have: also one number would fill a page, and queues need semaphores."""
    monkeypatch.setattr(sharding, "free_shared_memory", lambda: 64 * 2**10)
    assert workers_that_fit(torch.zeros(1), 2) == 0
    monkeypatch.setattr(sharding, "free_shared_memory", lambda: 256 * 2**10)
    assert workers_that_fit([torch.zeros(1)] * 4, 2) == 2
    assert workers_that_fit([torch.zeros(1)] * 40, 2) == 0


def test_values_that_float16_cannot_hold() -> None:
    assert as_float16(torch.tensor([65_504.0]), "tiny").dtype == np.float16
    for bad in (float("nan"), float("inf"), 70_000.0):
        with pytest.raises(ContractError, match="tiny: output is NaN"):
            as_float16(torch.tensor([[1.0, bad]]), "tiny")


def test_batches_do_not_cross_shards() -> None:
    plan = ShardPlan(rows=14, shard_rows=6, batch_size=4)
    shards = [[list(batch) for batch in plan.batches(shard)] for shard in plan.shards()]
    assert shards == [[[0, 1, 2, 3], [4, 5]], [[6, 7, 8, 9], [10, 11]], [[12, 13]]]


def test_gather_is_plain_indexing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(50, 3)).astype(np.float16)
    index = rng.integers(50, size=200)
    result = gather(iter(np.split(values, [7, 7, 30])), index, tmp_path / "result.npy", 3)
    np.testing.assert_array_equal(result, values[index])
    assert gather(iter([values]), index[:0], tmp_path / "none.npy", 3).shape == (0, 3)


def test_gather_has_room_for_all_before_it_writes(tmp_path: Path) -> None:
    path = tmp_path / "result.npy"

    def vectors() -> Iterator[npt.NDArray[Any]]:
        status = path.stat()
        assert status.st_blocks * 512 >= status.st_size  # else a full disk would be a signal, not an error
        yield np.ones((100_000, 3), dtype=np.float16)

    assert gather(vectors(), np.arange(100_000), path, 3).all()
