"""Checks a data set and points the graph at it; `make dataset ROOT=<folder>` calls this command.

    python -m popularity.dataset ROOT [--params params.yaml] [--packed data/raw] [--shard-mb 1000] [--follow-links]

The command `popularity.dataset_profile`, which `make dataset` calls next, chooses the profile.

ROOT is in the official layout and is never written to. A folder of images is packed into tar shards below
--packed, once; then the absolute path of the prepared data set goes into params.yaml as dataset.root.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.stage import run
from popularity.dataset.ingestion import DatasetParams
from popularity.dataset.preparation import Options, prepare, set_root, summary_text
from popularity.images import IndexImagesParams


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m popularity.dataset",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("root", type=Path, help="data set in the official layout")
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    parser.add_argument("--packed", type=Path, default=Path("data/raw"), help="folder for packed copies")
    parser.add_argument("--shard-mb", type=int, default=1000, help="largest size of a tar shard, in 10^6 bytes")
    parser.add_argument(
        "--follow-links", action="store_true", help="take images that are links to files outside of ROOT"
    )
    args = parser.parse_args(argv)
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
