r"""Finds the image of every post, reads its header and takes its checksum, without decoding a pixel.

Reads posts.parquet and the tar shards (or the image folder) under --root.
Writes images.parquet (shard, offset, bytes, width, height, mode, status, checksum) and the summary images.json.

    python -m stages.index_images --root data/demo --posts data/interim/posts.parquet \
        --images data/interim/images.parquet --summary reports/images.json \
        --resources reports/resources/index_images.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import StrictBool

from popularity.core.atomic import write_json
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.contracts import IMAGES, POSTS, read_table, write_table
from popularity.core.stage import record_resources, run
from popularity.images import IndexImagesParams, index_images


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="data set in the official layout")
    parser.add_argument("--posts", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--summary", type=Path, required=True)
    parser.add_argument("--resources", type=Path, required=True)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    args = parser.parse_args(argv)
    params = load_params("index_images", IndexImagesParams, args.params)
    follow_links = load_params("dataset.follow_links", StrictBool, args.params)
    several: Literal["first", "mean"] = load_params("dataset.several_pictures", Literal["first", "mean"], args.params)
    with record_resources("index_images", args.resources):
        posts = read_table(args.posts, POSTS)
        images, summary = index_images(posts, args.root, params, follow_links=follow_links, several=several)
        write_table(images, args.images, IMAGES)
        write_json(args.summary, summary)


if __name__ == "__main__":
    run(main)
