r"""Checks a data set and writes it as tables with one row a post.

Reads the metadata folders of the official layout under --root, or the user's own table that section `dataset` names
(stage index_images reads the images). Writes posts.parquet, users.parquet, columns.parquet (further columns of a
table), quarantine.parquet and the summary ingest.json.

    python -m stages.ingest --root data/demo --posts data/interim/posts.parquet \
        --users data/interim/users.parquet --columns data/interim/columns.parquet \
        --quarantine data/interim/quarantine.parquet --summary reports/ingest.json \
        --resources reports/resources/ingest.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from popularity.core.atomic import write_json
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.contracts import COLUMNS, POSTS, QUARANTINE, USERS, write_table
from popularity.core.stage import record_resources, run
from popularity.dataset import DatasetParams, ingest
from popularity.dataset.ingestion import collection_date
from popularity.dataset.table import ingest_table, own_table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the data set")
    for name in ("posts", "users", "columns", "quarantine", "summary", "resources"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="output")
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    args = parser.parse_args(argv)
    params = load_params("dataset", DatasetParams, args.params)
    collected_at = collection_date(params.collected_at)
    with record_resources("ingest", args.resources):
        if params.table:
            own = own_table(args.root, params.table, params.test_table, params.columns, params.test_from)
            found = ingest_table(own, collected_at)
            tables, summary = (found.posts, found.users, found.columns, found.quarantine), found.summary
        else:
            official = ingest(
                args.root, params.labels, without_user_file=params.without_user_file, collected_at=collected_at
            )
            further = official.posts.select("pid")
            tables = (official.posts, official.users, further, official.quarantine)
            summary = official.summary
        files = (args.posts, args.users, args.columns, args.quarantine)
        for frame, file, contract in zip(tables, files, (POSTS, USERS, COLUMNS, QUARANTINE), strict=True):
            write_table(frame, file, contract)
        write_json(args.summary, summary)


if __name__ == "__main__":
    run(main)
