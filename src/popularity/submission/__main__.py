"""Checks a submission file: python -m popularity.submission FILE TEST_METADATA_FOLDER.

    python -m popularity.submission submissions/submission.json data/demo/test_allmetadata_json

Prints "valid: N posts, mean M" and exits 0, or names file, row and what was expected and exits 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from popularity.stage import run
from popularity.submission.validate import expected_ids, validate


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m popularity.submission",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="submission, .json or .csv")
    parser.add_argument("folder", type=Path, help="test metadata in the official layout")
    args = parser.parse_args(argv)
    print(validate(args.file, expected_ids(args.folder)))


if __name__ == "__main__":
    run(main)
