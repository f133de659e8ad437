"""Checks a data set and points the graph at it; `make dataset` calls this command.

    python -m popularity.dataset ROOT [--params params.yaml] [--packed data/raw] [--shard-mb 1000] [--follow-links]
    python -m popularity.dataset --table posts.csv [--images FOLDER] [--map "text=caption,count=likes"]
        [--test later.csv | --test-from 2024-06-01]

The command `popularity.dataset_profile`, which `make dataset` calls next, chooses the profile.

ROOT is in the official layout and is never written to. A folder of images is packed into tar shards below
--packed, once; then the absolute path of the prepared data set goes into params.yaml as dataset.root.

A table of your own is CSV, JSON lines or Parquet. Its columns are found by name and type and shown; --map, or a YAML
file of the same, says what others are. It stays where it is: stage `ingest` reads it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.stage import run
from popularity.dataset.ingestion import DatasetParams
from popularity.dataset.preparation import Options, prepare, set_root, summary_text
from popularity.dataset.table_preparation import TableRequest, prepare_table, write_section
from popularity.images import IndexImagesParams


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m popularity.dataset",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("root", type=Path, nargs="?", help="data set in the official layout")
    parser.add_argument("--table", type=Path, help="a table of your own, one row a post")
    parser.add_argument("--images", type=Path, help="folder of its pictures")
    parser.add_argument("--map", default="", help="role=column,role=column, or a YAML file of the same")
    parser.add_argument("--test", type=Path, help="table of the test posts, with the same columns")
    parser.add_argument("--test-from", default="", help="posts from this date on are the test part")
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    parser.add_argument("--packed", type=Path, default=Path("data/raw"), help="folder for packed copies")
    parser.add_argument("--shard-mb", type=int, default=1000, help="largest size of a tar shard, in 10^6 bytes")
    parser.add_argument(
        "--follow-links", action="store_true", help="take images that are links to files outside of ROOT or --images"
    )
    args = parser.parse_args(argv)
    if (args.root is None) == (args.table is None):
        parser.error("give either ROOT, a data set in the official layout, or --table")
    if args.table is not None:
        several = load_params("dataset", DatasetParams, args.params).several_pictures
        request = TableRequest(args.table, args.images, args.map, args.test, args.test_from, args.follow_links, several)
        images = load_params("index_images", IndexImagesParams, args.params)
        prepared = prepare_table(request, images, args.packed)
        write_section(args.params, prepared)
        print(f"{prepared.text}\n{args.params}: section dataset is that of {args.table}")
        return
    options = Options(
        load_params("dataset", DatasetParams, args.params),
        load_params("index_images", IndexImagesParams, args.params),
        args.packed,
        args.shard_mb * 1_000_000,
        args.follow_links,
    )
    root, summary = prepare(args.root, options)
    before = set_root(args.params, root)
    print(summary_text(summary))
    print(f"{args.params}: dataset.root: {before} -> {root}")


if __name__ == "__main__":
    run(main)
