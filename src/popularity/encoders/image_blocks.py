"""What the stage embed_image computes: it reads a table of images and writes a block of vectors in canonical order."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from popularity.core.arrays import Float16Array, Float32Array
from popularity.core.atomic import atomic_directory, fingerprint
from popularity.core.contracts import FURTHER_PICTURES, IMAGE_STATISTICS, IMAGE_STATUS, IMAGES, read_table, write_table
from popularity.core.resume import STATE_ROOT, resume_state
from popularity.core.vectors import Block, write_block
from popularity.encoders.image import (
    REDUCING_GAP,
    EmbedImageParams,
    ImageEncoder,
    ImageTransform,
    load_image_encoder,
)
from popularity.encoders.precision import resolve_precision
from popularity.encoders.sharding import (
    Arrays,
    ShardPlan,
    as_float16,
    autocast,
    encode_shards,
    gather,
    read_shards,
    start_copy,
    start_processes,
)
from popularity.encoders.sources import describe, find_weights
from popularity.images import ImageDecodeError, ImageReader, decode_reduced
from popularity.images.statistics import NAMES, SIDE, image_statistics

logger = logging.getLogger(__name__)


def embed_images(
    root: Path,
    images: Path,
    out: Path,
    params: EmbedImageParams,
    state_root: Path = STATE_ROOT,
    encoder: ImageEncoder | None = None,
) -> None:
    """Writes the block `pooled`, `statistics.parquet` and `status.parquet` into the directory `out`.

    Args:
        root: of the data set, which the shards of `images` are relative to.
        images: table of contract IMAGES.
        out: replaced as a whole when all is done.
        params: an entry of embed_image.
        state_root: folder below which finished shards are kept for a run that resumes.
        encoder: that of `params`, where it is loaded already.

    Raises:
        MissingWeightsError, ConfigError: see `load_image_encoder`.
        DataError: a shard cannot be read.
        ContractError: the encoder gives values that float16 cannot hold.
    """
    table = read_table(images, IMAGES)
    stored = _stored(table)
    state, location = start_processes(), find_weights(params)
    params = replace(params, precision=resolve_precision(params.precision, state.device))
    encoder = (encoder or load_image_encoder(params)).to(state.device)
    plan = ShardPlan(stored.height, params.shard_rows, params.batch_size)
    prepare = ImageBatches(root, stored, params.image_size, ImageTransform(encoder.preprocessing))

    def encode(batch: ImageBatch) -> Callable[[], Arrays]:
        decoded = batch.decoded.cpu().numpy()
        rest = {"statistics": batch.statistics.cpu().numpy(), "decoded": decoded}
        if not decoded.any():
            return lambda: {"vectors": np.zeros((0, encoder.out_features), np.float16), **rest}
        with torch.inference_mode(), autocast(state.device, params.precision):
            copy = start_copy(encoder(batch.pixels.to(state.device, non_blocking=True)).to(torch.float16))
        return lambda: {"vectors": as_float16(copy(), params.model), **rest}

    with resume_state("embed_image", fingerprint(asdict(params), location, images), state_root) as directory:
        encode_shards(directory, plan, prepare, encode, state, "embed_image")
        if state.is_main_process:
            decoded = np.concatenate([np.zeros(0, bool), *read_shards(directory, plan, "decoded")])
            stored = stored.with_columns(decoded=pl.Series(decoded, dtype=pl.Boolean))
            usable = (pl.col("decoded") & pl.col("main")).any().over("pid")  # a further picture alone does not count
            encoded = stored.with_columns(usable=usable).filter("decoded").with_row_index("row")
            encoded = encoded.filter("usable").sort("pid", "row")
            vectors = gather(
                read_shards(directory, plan, "vectors"),
                encoded["row"].to_numpy().astype(np.int64),
                directory / "pooled.npy",
                encoder.out_features,
            )
            vectors, pids = _means(vectors, encoded["pid"])
            metadata = describe(params, location, encoder.describe(), "image", encoder.out_features)
            with atomic_directory(out) as partial:
                write_block(Block(vectors, pids, metadata), partial, "pooled")
                statistics = _statistics(stored.filter("decoded"), read_shards(directory, plan, "statistics"))
                write_table(statistics, partial / "statistics.parquet", IMAGE_STATISTICS)
                status = _status(table, stored.filter("main", ~pl.col("decoded")))
                write_table(status, partial / "status.parquet", IMAGE_STATUS)
        state.wait_for_everyone()


def _stored(table: pl.DataFrame) -> pl.DataFrame:
    """The images of `table` that can be read, `main` or further ones of a post, in the order of the shards."""
    usable = table.filter(pl.col("status") == "ok")
    main = usable.select(list(IMAGES.columns)).with_columns(main=pl.lit(value=True))
    if FURTHER_PICTURES not in table.columns:
        return main.sort("shard", "offset", "pid")
    further = usable.select("pid", FURTHER_PICTURES).explode(FURTHER_PICTURES).drop_nulls().unnest(FURTHER_PICTURES)
    further = further.select(list(IMAGES.columns)).with_columns(main=pl.lit(value=False))
    return pl.concat([main, further]).sort("shard", "offset", "pid", "main")


def _means(vectors: Float16Array, pids: pl.Series) -> tuple[Float16Array, list[str]]:
    """One vector a post, the mean of its pictures, and the posts.

    Args:
        vectors: (n, d) of the pictures.
        pids: (n,) of their posts, sorted.
    """
    starts = pids.is_first_distinct().arg_true().to_numpy()
    if len(starts) == len(pids):
        return vectors, pids.to_list()
    counts = np.diff(np.append(starts, len(pids)))
    sums = np.add.reduceat(vectors, starts, axis=0, dtype=np.float32)
    return (sums / counts[:, None]).astype(np.float16), pids.gather(starts).to_list()


def _statistics(decoded: pl.DataFrame, shards: Iterable[Float32Array]) -> pl.DataFrame:
    """Contract IMAGE_STATISTICS of the `decoded` images that are their posts' first, in the order of the shards."""
    values = np.concatenate([np.zeros((0, len(NAMES)), np.float32), *shards])
    named = decoded.select("pid", "main").hstack(pl.DataFrame(values, schema=[f"image_statistics.{n}" for n in NAMES]))
    return named.filter("main").drop("main")


def _status(table: pl.DataFrame, undecodable: pl.DataFrame) -> pl.DataFrame:
    """Contract IMAGE_STATUS: the status of the index, overridden where the full decode failed."""
    if undecodable.height:
        logger.warning(
            "%d images have a good header but cannot be decoded, now unreadable: %s",
            undecodable.height,
            ", ".join(undecodable["pid"].sort().head(5)) + (" ..." if undecodable.height > 5 else ""),
        )
    broken = pl.col("pid").is_in(undecodable["pid"].implode())
    return table.select("pid", status=pl.when(broken).then(pl.lit("unreadable")).otherwise("status"))


class ImageBatch(NamedTuple):
    """Images of n rows; k of them could be decoded.

    Args:
        pixels: (k, 3, size, size) uint8.
        statistics: (k, s) float32, of the images before the crop.
        decoded: (n,) bool.
    """

    pixels: Tensor
    statistics: Tensor
    decoded: Tensor


class ImageBatches:
    """Rows of the stored images -> ImageBatch; each loader process opens its own files.

    Args:
        root: of the data set.
        stored: rows of contract IMAGES.
        size: of the pixels.
        transform: image -> pixels.
        described: whether the statistics are computed; else they are (0, s).
    """

    def __init__(
        self,
        root: Path,
        stored: pl.DataFrame,
        size: int,
        transform: ImageTransform,
        *,
        described: bool = True,
    ) -> None:
        self.reader, self.transform, self.size, self.described = ImageReader(root), transform, size, described
        self.least_side = math.ceil(REDUCING_GAP * max(transform.scaled_side, SIDE))
        self.shards = stored["shard"].to_list()
        self.locations = stored.select("offset", "bytes", pl.col("width").cast(pl.Int64) * pl.col("height")).to_numpy()

    def __call__(self, rows: Sequence[int]) -> ImageBatch:
        pixels, statistics, decoded = [], [], []
        for row in rows:
            offset, length, announced = (int(value) for value in self.locations[row])
            content = self.reader.read(self.shards[row], offset, length)
            try:
                # The accepted header announced this many pixels: the content may not have more.
                image, box = decode_reduced(content, announced, self.least_side)
                pixels.append(self.transform(image, box))
                if self.described:
                    statistics.append(image_statistics(image, box))
                decoded.append(True)
            except ImageDecodeError as error:
                logger.debug("%s at %d: %s", self.shards[row], offset, error)
                decoded.append(False)
        none = torch.zeros((0, 3, self.size, self.size), dtype=torch.uint8)
        described = torch.from_numpy(np.array(statistics, np.float32).reshape(len(statistics), len(NAMES)))
        return ImageBatch(torch.stack(pixels) if pixels else none, described, torch.tensor(decoded))
