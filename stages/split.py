"""Makes the validation schemes, once, as an artifact.

Reads posts.parquet; writes splits.parquet (scheme, fold, pid, role) and a summary.

    python -m stages.split --posts data/interim/posts.parquet --splits data/interim/splits.parquet \
        --summary reports/split.json --resources reports/resources/split.json
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from popularity.core.atomic import write_json
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.contracts import FOLDS, POSTS, read_table, write_table
from popularity.core.stage import record_resources, run
from popularity.validation import SplitParams, make_splits


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    parser.add_argument("--posts", type=Path, required=True)
    parser.add_argument("--splits", type=Path, required=True)
    parser.add_argument("--summary", type=Path, required=True)
    parser.add_argument("--resources", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load_params("split", SplitParams, args.params)
    with record_resources("split", args.resources):
        splits, summary = make_splits(read_table(args.posts, POSTS), params)
        write_table(splits, args.splits, FOLDS)
        write_json(args.summary, summary)


if __name__ == "__main__":
    run(main)
