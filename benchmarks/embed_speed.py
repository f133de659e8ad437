"""How much of the bare encoder's speed does the stage embed_image keep? Pictures/s of both, in one run.

Random pictures of the data sets' size are written as JPEGs into a tar shard. The stage's own function embeds them,
reading and decoding beside the encoder; the encoder alone is fed batches that lie in memory. The stage's start-up is
taken out by embedding two numbers of pictures.

    python -m benchmarks.embed_speed
    python -m benchmarks.embed_speed --params params.yaml --pictures 256 --side 500
"""

from __future__ import annotations

import argparse
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path

import numpy as np
import polars as pl
import torch
from PIL import Image

from popularity.config import PARAMS_FILE, load_params
from popularity.encoders.image import EmbedImageParams, load_image_encoder, picture_transform
from popularity.encoders.image_blocks import PictureBatches, embed_images
from popularity.encoders.sharding import autocast, loader_workers, start_processes
from popularity.schema import IMAGES, write_table
from popularity.stage import run

SHARD = "train_images.tar"
JPEG_QUALITY = 90


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE, help="its section embed_image is measured")
    parser.add_argument("--pictures", type=int, default=2048)
    parser.add_argument("--side", type=int, default=500, help="pixels of the longer side; the shorter has 3/4")
    args = parser.parse_args(argv)
    params = load_params("embed_image", EmbedImageParams, args.params)
    fewer = min(params.batch_size, args.pictures // 2)
    with tempfile.TemporaryDirectory() as name, chdir(name):
        root = Path(name)
        pictures = make_pictures(root, args.pictures, args.side)
        whole = seconds_of_stage(root, pictures, params)
        rate = (args.pictures - fewer) / (whole - seconds_of_stage(root, pictures.head(fewer), params))
        decoded = decoding_rate(root, pictures.head(min(args.pictures, 256)), params)
    bare = encoder_rate(params, args.pictures)
    device = start_processes().device
    named = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    rows = {
        "device": f"{named}; {os.cpu_count()} cores, {loader_workers()} loader processes",
        "encoder": f"{params.model}, {params.image_size} pixels, batch {params.batch_size}, {params.precision}",
        "stage": f"{rate:,.1f} pictures/s",
        "bare encoder fed from memory": f"{bare:,.1f} pictures/s",
        "stage / bare encoder": f"{rate / bare:.2f}",
        "reading and decoding on one core": f"{decoded:,.1f} pictures/s",
    }
    width = max(map(len, rows))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows.items()))


def make_pictures(root: Path, count: int, side: int) -> pl.DataFrame:
    """A table of contract IMAGES for `count` JPEGs in one shard: coarse random colours, as smooth as photographs."""
    rng = np.random.default_rng(0)
    width, height = side, side * 3 // 4
    with tarfile.open(root / SHARD, "w") as tar:
        for number in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            stream = io.BytesIO()
            coarse.resize((width, height), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=JPEG_QUALITY)
            member = tarfile.TarInfo(f"train/{number:07d}.jpg")
            member.size = stream.tell()
            stream.seek(0)
            tar.addfile(member, stream)
    with tarfile.open(root / SHARD) as tar:
        rows = [(Path(each.name).stem, SHARD, each.offset_data, each.size, width, height, "RGB", "ok") for each in tar]
    return pl.DataFrame(rows, schema={name: column.dtype for name, column in IMAGES.columns.items()}, orient="row")


def seconds_of_stage(root: Path, pictures: pl.DataFrame, params: EmbedImageParams) -> float:
    write_table(pictures, root / "images.parquet", IMAGES)
    started = time.perf_counter()
    embed_images(root, root / "images.parquet", root / f"out{pictures.height}", params)
    return time.perf_counter() - started


def decoding_rate(root: Path, pictures: pl.DataFrame, params: EmbedImageParams) -> float:
    """Pictures/s of one loader process alone."""
    transform = picture_transform(load_image_encoder(params).preprocessing)
    read = PictureBatches(root, pictures, params.image_size, transform)
    started = time.perf_counter()
    read(range(pictures.height))
    return pictures.height / (time.perf_counter() - started)


def encoder_rate(params: EmbedImageParams, count: int) -> float:
    """Pictures/s of the encoder over batches in memory, each brought to the device and its vectors back."""
    device = start_processes().device
    encoder = load_image_encoder(params).to(device)
    shape = (params.batch_size, 3, params.image_size, params.image_size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    if device.type == "cuda":
        pixels = pixels.pin_memory()
    batches = max(count // params.batch_size, 1)
    with torch.inference_mode(), autocast(device, params.precision):
        encoder(pixels.to(device)).cpu()
        started = time.perf_counter()
        for _ in range(batches):
            encoder(pixels.to(device, non_blocking=True)).cpu()
    return batches * params.batch_size / (time.perf_counter() - started)


if __name__ == "__main__":
    run(main)
