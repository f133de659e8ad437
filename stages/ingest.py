r"""Checks a data set in the official layout and writes it as tables with one row a post.

Reads the metadata folders under --root (stage index_images reads the images).
Writes posts.parquet, users.parquet, quarantine.parquet and the summary ingest.json.

    python -m stages.ingest --root data/demo --posts data/interim/posts.parquet \
        --users data/interim/users.parquet --quarantine data/interim/quarantine.parquet \
        --summary reports/ingest.json --resources reports/resources/ingest.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from popularity.core.atomic import write_json
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.contracts import POSTS, QUARANTINE, USERS, write_table
from popularity.core.stage import record_resources, run
from popularity.dataset import DatasetParams, ingest
from popularity.dataset.ingestion import collection_date


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="data set in the official layout")
    parser.add_argument("--posts", type=Path, required=True)
    parser.add_argument("--users", type=Path, required=True)
    parser.add_argument("--quarantine", type=Path, required=True)
    parser.add_argument("--summary", type=Path, required=True)
    parser.add_argument("--resources", type=Path, required=True)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    args = parser.parse_args(argv)
    params = load_params("dataset", DatasetParams, args.params)
    with record_resources("ingest", args.resources):
        ingested = ingest(
            args.root,
            params.labels,
            without_user_file=params.without_user_file,
            collected_at=collection_date(params.collected_at),
        )
        write_table(ingested.posts, args.posts, POSTS)
        write_table(ingested.users, args.users, USERS)
        write_table(ingested.quarantine, args.quarantine, QUARANTINE)
        write_json(args.summary, ingested.summary)


if __name__ == "__main__":
    run(main)
