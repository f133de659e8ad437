"""Encoders and the stack: the tasks of `python -m benchmarks.speed images`, `text` and `stack`.

Each task has another that is its lower bound. Start-up is excluded: the cost of one batch is subtracted.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import lightgbm as lgb
import numpy as np
import polars as pl
import torch
from PIL import Image

from benchmarks.measuring import REPOSITORY, Clock, Task, run_task
from benchmarks.speed.boosters import Trained
from benchmarks.speed.features import scaled
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.contracts import FOLDS, IMAGES, POSTS, read_table, write_table
from popularity.dataset import ingest
from popularity.demo import generate
from popularity.encoders.image import EmbedImageParams, load_image_encoder, network_image_params
from popularity.encoders.image_blocks import embed_images
from popularity.encoders.sharding import autocast, loader_workers, start_processes
from popularity.encoders.text import load_text_encoder, load_tokenizer, network_text_params
from popularity.encoders.text_blocks import distinct_texts, embed_texts, post_text
from popularity.features import FeaturizeParams, featurize
from popularity.stack import Blocks, StackParams
from popularity.stack import lightgbm as learner
from popularity.stack.effort import Effort
from popularity.stack.fit import encode_fold, fit_fold
from popularity.stack.matrix import MatrixEncoder
from popularity.stack.sample import Sample, recency_sample_weight
from popularity.validation import rows_of
from popularity.validation.folds import Fold, load_fold
from popularity.validation.inner_cv import inner_splits

SHARD = "train_images.tar"
SIDE, JPEG_QUALITY, GRAIN = 500, 90, 8  # pixels of the longer side (the shorter has 3/4); deviation of grey values
IMAGE_SIZE = 224  # that encoders are published for
ROUNDS = 30  # of the stack
PARAMS = REPOSITORY / PARAMS_FILE


def beyond_one_batch(embed: Callable[[pl.DataFrame], object], rows: pl.DataFrame, batch: int) -> dict[str, Any]:
    """The cost of `embed` over the rows after the first batch."""
    costs = []
    for part in (rows.head(batch), rows.head(batch), rows):
        clock = Clock()
        embed(part)
        costs.append(clock.read())
    return {name: costs[2][name] - costs[1][name] for name in costs[0]}


def image_params(batch_size: str) -> EmbedImageParams:
    """The network's image encoder at the size that encoders are published for; an empty batch_size keeps its own."""
    params = replace(network_image_params(PARAMS), image_size=IMAGE_SIZE)
    return replace(params, batch_size=int(batch_size)) if batch_size else params


def task_images(folder: Path, count: str, batch_size: str) -> dict[str, Any]:
    """The stage's function over `count` images of the data sets' size, in a tar shard."""
    params = image_params(batch_size)
    with tempfile.TemporaryDirectory(dir=folder) as name, chdir(name):
        root = Path(name)
        images = make_images(root, int(count) + params.batch_size, SIDE)
        cost = beyond_one_batch(lambda part: embed(root, part, params), images, params.batch_size)
    return cost | {"note": f"{int(count) / cost['seconds']:,.1f} images/s, {loader_workers()} loader processes"}


def embed(root: Path, images: pl.DataFrame, params: EmbedImageParams) -> None:
    write_table(images, root / "images.parquet", IMAGES)
    embed_images(root, root / "images.parquet", root / f"out{images.height}", params)


def make_images(root: Path, count: int, side: int) -> pl.DataFrame:
    """A table of contract IMAGES for `count` JPEGs in one shard: coarse colours with grain, 80 kB at 500 pixels."""
    rng = np.random.default_rng(0)
    width, height = side, side * 3 // 4
    with tarfile.open(root / SHARD, "w") as tar:
        for index in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            stream = io.BytesIO()
            smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
            grainy = smooth + rng.normal(0, GRAIN, (height, width, 1))
            Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=JPEG_QUALITY)
            member = tarfile.TarInfo(f"train/{index:07d}.jpg")
            member.size = stream.tell()
            stream.seek(0)
            tar.addfile(member, stream)
    with tarfile.open(root / SHARD) as tar:
        rows = [
            (Path(each.name).stem, SHARD, each.offset_data, each.size, width, height, "RGB", "ok", "") for each in tar
        ]
    return pl.DataFrame(rows, schema={name: column.dtype for name, column in IMAGES.columns.items()}, orient="row")


def task_bare_images(folder: Path, count: str, batch_size: str) -> dict[str, float]:
    """The encoder over batches in memory, each copied to the device, its vectors copied back."""
    del folder
    params = image_params(batch_size)
    device = start_processes().device
    encoder = load_image_encoder(params).to(device)
    pixels = torch.randint(0, 256, (params.batch_size, 3, params.image_size, params.image_size), dtype=torch.uint8)
    if device.type == "cuda":
        pixels = pixels.pin_memory()
    with torch.inference_mode(), autocast(device, params.precision):
        encoder(pixels.to(device)).cpu()
        clock = Clock()
        for _ in range(max(int(count) // params.batch_size, 1)):
            encoder(pixels.to(device, non_blocking=True)).cpu()
    return clock.read()


def task_text(folder: Path, count: str) -> dict[str, Any]:
    """The stage's function over the texts of `count` posts."""
    params = network_text_params(PARAMS)

    def embed_posts(posts: pl.DataFrame) -> None:
        write_table(posts, Path("posts.parquet"), POSTS)
        embed_texts(Path("posts.parquet"), Path(f"out{posts.height}"), params)

    with tempfile.TemporaryDirectory(dir=folder) as name, chdir(name):
        return beyond_one_batch(embed_posts, posts_of(Path(name), int(count)), params.batch_size)


def task_bare_text(folder: Path, count: str) -> dict[str, float]:
    """The encoder over the batches of the stage, tokenised before the clock starts."""
    params = network_text_params(PARAMS)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        posts = posts_of(Path(name), int(count))
    texts = distinct_texts(posts.select("pid", "title", "tags", post=post_text()))["text"].to_list()
    tokenize, device = load_tokenizer(params), start_processes().device
    batches = [tokenize(texts[at : at + params.batch_size]) for at in range(0, len(texts), params.batch_size)]
    encoder = load_text_encoder(params).to(device)
    with torch.inference_mode(), autocast(device, params.precision):
        encoder(batches[0].input_ids.to(device), batches[0].attention_mask.to(device))
        clock = Clock()
        for batch in batches:
            encoder(batch.input_ids.to(device), batch.attention_mask.to(device))[0].cpu()
    return clock.read()


def posts_of(root: Path, count: int) -> pl.DataFrame:
    """Contract POSTS of `count` posts of a new data set."""
    generate(scaled(count, "B"), root / "data", root / "truth", 0)
    return ingest(root / "data").posts


def task_stack_features(root: Path) -> None:
    """The features of the refit and of the last forward split, which dates the target statistics."""
    posts, splits = read_table(root / "posts.parquet", POSTS), read_table(root / "splits.parquet", FOLDS)
    fixed = {
        "shard": "",
        "offset": 0,
        "bytes": 0,
        "width": None,
        "height": None,
        "mode": None,
        "status": "missing",
        "checksum": "",
    }
    images = posts.select("pid", **{name: pl.lit(fixed[name], IMAGES.columns[name].dtype) for name in fixed})
    last = splits.filter(scheme="forward").filter(pl.col("fold") == pl.col("fold").max())
    params = replace(load_params("featurize", FeaturizeParams, PARAMS), n_text_components=0)
    (root / "features").mkdir()
    featurize(posts, images, pl.concat([last, splits.filter(scheme="refit")]), params, root / "features")


def refit(root: Path) -> tuple[Fold, Blocks, StackParams]:
    """The fold of the refit, no vectors, and section stack without the parts that read vectors."""
    params = load_params("stack", StackParams, PARAMS)
    columns = replace(params.columns, feature_blocks=("metadata",), oof_ridge=(), feature_groups=())
    threads = os.cpu_count() or 1
    params = replace(params, columns=columns, num_boost_round=ROUNDS, num_threads=threads, learners=("lightgbm",))
    posts, splits = read_table(root / "posts.parquet", POSTS), read_table(root / "splits.parquet", FOLDS)
    ((key, rows),) = rows_of(splits, ["refit"])
    return load_fold(key, rows, posts, root / "features"), Blocks({}, pl.DataFrame(schema={"pid": pl.String})), params


def task_stack(root: Path) -> dict[str, Any]:
    """Fit and prediction of the metadata stack on the refit."""
    data, blocks, params = refit(root)
    clock = Clock()
    train = replace(data, valid=data.valid.head(0), valid_at=data.valid_at[:0])
    encoded = encode_fold(train, blocks, params)
    model = fit_fold(encoded, params, Effort.full(params))
    fit, clock = clock.read(), Clock()
    model.predict(data.valid, blocks, data.valid_at)
    return {"fit": fit, "predict": clock.read()}


def task_lightgbm(root: Path) -> dict[str, Any]:
    """LightGBM's cv, train and predict on the same matrix, which is built before the clock starts."""
    data, blocks, params = refit(root)
    encoder, matrix = MatrixEncoder.fit(data.train, data.label, blocks, params.columns)
    scored = encoder.apply(data.valid, blocks)
    sample = Sample(matrix, data.label, recency_sample_weight(data.posted_at, params.sample_weight_half_life_days))
    splits = inner_splits(data.posted_at, params.inner_cv)
    clock = Clock()
    options = learner.lightgbm_params(params, params.seed)
    lgb.cv(options, learner.dataset(sample, options), num_boost_round=ROUNDS, folds=splits)
    boosters = [
        lgb.train(own, learner.dataset(sample, own), num_boost_round=ROUNDS)
        for own in (learner.lightgbm_params(params, seed) for seed in params.each_seed)
    ]
    fit, clock = clock.read(), Clock()
    for booster in boosters:
        booster.predict(scored.values)
    return {"fit": fit, "predict": clock.read()}


def task_boosters(root: Path) -> dict[str, Any]:
    """A booster as `fit_fold` fits it, and LightGBM's train with the same parameters, rounds, threads and matrix."""
    data, blocks, params = refit(root)
    train = replace(data, valid=data.valid.head(0), valid_at=data.valid_at[:0])
    encoded = encode_fold(train, blocks, params)
    given: list[tuple[Sample, int, StackParams, int]] = []
    ours, baseline, fitted = list[dict[str, float]](), list[dict[str, float]](), learner.fit
    trained = Trained()

    def timed(sample: Sample, rounds: int, own: StackParams, seed: int) -> lgb.Booster:
        given.append((sample, rounds, own, seed))
        clock = Clock()
        booster = fitted(sample, rounds, own, seed)
        ours.append(clock.read())
        return booster

    with mock.patch.object(learner, "fit", timed), mock.patch.object(lgb.engine, "Booster", trained.counting()):
        fit_fold(encoded, params, Effort.full(params))
    for sample, rounds, own, seed in given:
        clock = Clock()
        options = learner.lightgbm_params(own, seed)
        values = lgb.Dataset(
            sample.matrix.values,
            sample.target,
            weight=sample.weight,
            categorical_feature=list(sample.matrix.categorical),
            params=options,
        )
        lgb.train(options, values, num_boost_round=rounds)
        baseline.append(clock.read())
    return {"one": mean_of(ours), "plain": mean_of(baseline), "boosters": trained.boosters}


def mean_of(costs: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each number."""
    return {name: sum(cost[name] for cost in costs) / len(costs) for name in costs[0]}


TASKS: dict[str, Task] = {
    "images": task_images,
    "bare_images": task_bare_images,
    "text": task_text,
    "bare_text": task_bare_text,
    "stack_features": task_stack_features,
    "stack": task_stack,
    "lightgbm": task_lightgbm,
    "boosters": task_boosters,
}

if __name__ == "__main__":
    run_task(TASKS, sys.argv[1:])
