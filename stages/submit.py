r"""Writes the submission in both official forms, validates it and prints its path.

Reads data/interim/posts.parquet and data/stack/predictions.parquet; writes submissions/ (submission.json and
submission.csv, or NO_SUBMISSION.txt for a data set without a test part).

    python -m stages.submit --posts data/interim/posts.parquet --predictions data/stack/predictions.parquet \
        --out submissions --resources reports/resources/submit.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from popularity.config import PARAMS_FILE, load_params
from popularity.schema import POSTS, PREDICTIONS, read_table
from popularity.stage import measured, run
from popularity.submission.write import SubmitConfig, submit


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--posts", type=Path, required=True, help="input")
    parser.add_argument("--predictions", type=Path, required=True, help="input")
    parser.add_argument("--out", type=Path, required=True, help="folder, replaced as a whole")
    parser.add_argument("--resources", type=Path, required=True, help="output")
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    args = parser.parse_args(argv)
    config = load_params("submit", SubmitConfig, args.params)
    with measured("submit", args.resources):
        files = submit(read_table(args.posts, POSTS), read_table(args.predictions, PREDICTIONS), config, args.out)
    print(
        "\n".join(f"valid submission: {file}" for file in files) or f"no submission: see {args.out}/NO_SUBMISSION.txt"
    )


if __name__ == "__main__":
    run(main)
