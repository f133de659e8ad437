"""The parts of `benchmarks.full_scale` that encode, train and predict, each beside what it cannot be faster than."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm as lgb
import polars as pl
import torch

from benchmarks import embed_speed
from benchmarks import network_speed as speed
from benchmarks.measuring import REPOSITORY, Clock, Part, run_part
from benchmarks.scale import scaled
from popularity.config import PARAMS_FILE, load_params
from popularity.dataset import ingest
from popularity.demo import generate
from popularity.encoders.image import EmbedImageParams
from popularity.encoders.prompting import load_prompt_tower
from popularity.encoders.sharding import autocast, loader_workers, start_processes
from popularity.encoders.text import EmbedTextParams, load_text_encoder, load_tokenizer
from popularity.encoders.text_blocks import distinct_texts, embed_texts, post_text
from popularity.schema import POSTS, read_table, write_table
from popularity.stack import Blocks, StackParams
from popularity.stack import lightgbm_learner as learner
from popularity.stack.fit import Fold, fit_model
from popularity.stack.inner import Sample, inner_cuts, recency_weights
from popularity.stack.matrix import MatrixEncoder
from popularity.training.loop import make_accelerator
from popularity.training.params import TrainParams

STEPS = 6  # of the network
ROUNDS = 30  # of the stack
CLASSES = 77


def part_images(folder: Path, count: str) -> dict[str, Any]:
    """The stage's function over `count` pictures; the second cost of one batch is taken off as start-up."""
    params = load_params("embed_image", EmbedImageParams, REPOSITORY / PARAMS_FILE)
    with tempfile.TemporaryDirectory(dir=folder) as name, chdir(name):
        root = Path(name)
        pictures = embed_speed.make_pictures(root, int(count) + params.batch_size, 500)
        costs = []
        first = pictures.head(params.batch_size)
        for part in (first, first, pictures):
            clock = Clock()
            embed_speed.seconds_of_stage(root, part, params)
            costs.append(clock.read())
    found: dict[str, Any] = {key: costs[2][key] - costs[1][key] for key in costs[0]}
    decoded = "2 cores share decoding and encoding" if os.cpu_count() == 2 else f"{os.cpu_count()} cores"
    return found | {"note": f"{decoded}, {loader_workers()} loaders"}


def part_bare_images(folder: Path, count: str) -> dict[str, float]:
    del folder
    params = load_params("embed_image", EmbedImageParams, REPOSITORY / PARAMS_FILE)
    embed_speed.encoder_rate(params, params.batch_size)
    costs = []
    for pictures in (params.batch_size, int(count) + params.batch_size):
        clock = Clock()
        embed_speed.encoder_rate(params, pictures)
        costs.append(clock.read())
    return {key: costs[1][key] - costs[0][key] for key in costs[0]}


def part_text(folder: Path, count: str) -> dict[str, float]:
    params = load_params("embed_text", EmbedTextParams, REPOSITORY / PARAMS_FILE)
    with tempfile.TemporaryDirectory(dir=folder) as name, chdir(name):
        root = Path(name)
        posts = texts_of(root, int(count))
        costs = []
        first = posts.head(params.batch_size)
        for part in (first, first, posts):
            write_table(part, root / "posts.parquet", POSTS)
            clock = Clock()
            embed_texts(root / "posts.parquet", root / f"out{part.height}", params)
            costs.append(clock.read())
    return {key: costs[2][key] - costs[1][key] for key in costs[0]}


def part_bare_text(folder: Path, count: str) -> dict[str, float]:
    """The encoder over the batches that the stage makes, tokenised before the clock runs."""
    params = load_params("embed_text", EmbedTextParams, REPOSITORY / PARAMS_FILE)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        posts = texts_of(Path(name), int(count))
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


def texts_of(root: Path, count: int) -> Any:
    """Contract POSTS of `count` posts of a data set made for this."""
    generate(scaled(count, "B"), root / "data", root / "truth", 0)
    return ingest(root / "data").posts


def beyond_one(work: Callable[[int], object]) -> dict[str, float]:
    """What STEPS repeats more than one cost: start-up and warming up cost nothing."""
    costs = []
    for repeats in (1, 1 + STEPS):
        clock = Clock()
        work(repeats)
        costs.append(clock.read())
    return {key: costs[1][key] - costs[0][key] for key in costs[0]}


def part_network(folder: Path, posts: str) -> dict[str, Any]:
    params = load_params("train", TrainParams, REPOSITORY / PARAMS_FILE)
    params = replace(params, epochs=1, min_steps=0, precision="bf16", unfreeze_blocks=0)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        tower = load_prompt_tower(speed.minilm())
        width = speed.IMAGE_WIDTHS["minilm"]
        folds = params.network.prototypes.folds
        content = speed.random_content(Path(name), int(posts), CLASSES, width, tower.spec.width, folds)
        shapes = speed.products(content.network(tower, params), params, tower, width)
        accelerator = make_accelerator(params.precision)

        def train(steps: int) -> None:
            speed.train(content, tower, params, steps, Path(name))

        step = beyond_one(train)
        products = beyond_one(lambda repeats: speed.time_products(shapes, accelerator, repeats))
    return {"step": step, "products": products | {"mib": None}}


def part_stack(root: Path, which: str) -> dict[str, Any]:
    """Fit and prediction of the metadata stack on `final`, or LightGBM's cv and train on its matrix."""
    params = load_params("stack", StackParams, REPOSITORY / PARAMS_FILE)
    columns = replace(params.columns, blocks=("metadata",), heads=(), signals=())
    params = replace(params, columns=columns, max_rounds=ROUNDS, threads=os.cpu_count() or 1, learners=("lightgbm",))
    posts = read_table(root / "posts.parquet", POSTS)
    table = pl.read_parquet(root / "row.parquet")
    for name in ("context", "label"):
        table = table.join(pl.read_parquet(root / f"{name}.parquet"), on="pid", how="left", maintain_order="left")
    is_fit = posts["split"] == "train"
    dates = posts["posted_at"].to_physical()
    data = Fold(
        *("final", 0, 0, table.filter(is_fit), table.filter(~is_fit)),
        posts["label"].filter(is_fit).to_numpy(),
        dates.filter(is_fit).to_numpy(),
        dates.filter(~is_fit).to_numpy(),
    )
    blocks = Blocks({}, pl.DataFrame(schema={"pid": pl.String}))
    clock = Clock()
    if which == "ours":
        model = fit_model(data, blocks, columns, params, "stack")
        fit, clock = clock.read(), Clock()
        model.predict(data.score, blocks, data.scored_at)
        return {"fit": fit, "predict": clock.read()}
    encoder, matrix = MatrixEncoder.fit(data.fit, data.label, blocks, columns)
    scored = encoder.apply(data.score, blocks)
    sample = Sample(matrix, data.label, recency_weights(data.posted_at, params.half_life_days))
    cuts = inner_cuts(data.posted_at, params.inner_cuts, params.inner_share)
    clock = Clock()
    options = learner.lightgbm_params(params, params.seed)
    lgb.cv(options, learner.dataset(sample, options), num_boost_round=ROUNDS, folds=cuts)
    boosters = [
        lgb.train(own, learner.dataset(sample, own), num_boost_round=ROUNDS)
        for own in (learner.lightgbm_params(params, seed) for seed in params.each_seed)
    ]
    fit, clock = clock.read(), Clock()
    for booster in boosters:
        booster.predict(scored.values)
    return {"fit": fit, "predict": clock.read()}


# DVC


PARTS: dict[str, Part] = {
    "images": part_images,
    "bare_images": part_bare_images,
    "text": part_text,
    "bare_text": part_bare_text,
    "network": part_network,
    "stack": part_stack,
}

if __name__ == "__main__":
    run_part(PARTS, sys.argv[1:])
