r"""Computes the metadata and user-behaviour features of every scheme.

Reads posts.parquet, images.parquet (image headers), splits.parquet, users.parquet (vectors of form A) and
columns.parquet (further columns of a user's own table); writes a folder with row.parquet and, below context and label,
the tables of every fold, and a comparison of the target statistics of train and valid rows.

    python -m stages.featurize --posts data/interim/posts.parquet --images data/interim/images.parquet \
        --splits data/interim/splits.parquet --users data/interim/users.parquet \
        --columns data/interim/columns.parquet --out data/features --summary reports/target_statistics.json \
        --resources reports/resources/featurize.json
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from popularity.core.atomic import atomic_directory, write_json
from popularity.core.config import PARAMS_FILE, load_params
from popularity.core.contracts import COLUMNS, FOLDS, IMAGES, POSTS, USERS, read_table
from popularity.core.stage import record_resources, run
from popularity.features import FeaturizeParams, add_columns, compare_target_statistics, featurize


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    parser.add_argument("--posts", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--splits", type=Path, required=True)
    parser.add_argument("--users", type=Path, help="if not given, the group user_text is made from the posts' texts")
    parser.add_argument("--columns", type=Path, help="further columns of a user's own table")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--summary", type=Path, required=True)
    parser.add_argument("--resources", type=Path, required=True)
    args = parser.parse_args(argv)
    params = load_params("featurize", FeaturizeParams, args.params)
    with record_resources("featurize", args.resources), atomic_directory(args.out) as out:
        splits = read_table(args.splits, FOLDS)
        users = read_table(args.users, USERS) if args.users else None
        featurize(read_table(args.posts, POSTS), read_table(args.images, IMAGES), splits, params, out, users)
        if args.columns:
            add_columns(read_table(args.columns, COLUMNS), out)
        write_json(args.summary, compare_target_statistics(splits, out, params.target_statistics))


if __name__ == "__main__":
    run(main)
