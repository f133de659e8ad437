"""Images to vectors: a frozen image encoder, by its name in params.yaml, over every readable image.

Reads: the data set's image shards, data/interim/images.parquet.
Writes: data/embeddings/image/NAME/ with the block `pooled`, statistics.parquet (quality and layout) and status.parquet
(contract IMAGE_STATUS: an image that cannot be decoded in full is unreadable). Posts without an image have no row in
the other two.

    python -m popularity.launch stages.embed_image --encoder efficientnet_lite0 --root data/demo \
        --images data/interim/images.parquet --out data/embeddings/image/efficientnet_lite0 \
        --resources reports/resources/embed_image_efficientnet_lite0.json

A killed run resumes at its last finished shard. POPULARITY_TOPOLOGY picks a file of configs/accelerate,
POPULARITY_WORKERS sets the number of loader processes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.stage import record_resources, run
from popularity.encoders.image import EmbedImageParams
from popularity.encoders.image_blocks import embed_images


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    parser.add_argument("--encoder", required=True, help="name in section embed_image")
    parser.add_argument("--root", type=Path, required=True, help="data set in the official layout")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resources", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load_params(f"embed_image.{args.encoder}", EmbedImageParams, args.params)
    with record_resources(f"embed_image@{args.encoder}", args.resources):
        embed_images(args.root, args.images, args.out, params)


if __name__ == "__main__":
    run(main)
