"""Checks a submission file: python -m popularity.submission FILE TEST_METADATA_FOLDER.

    python -m popularity.submission submissions/submission.json data/demo/test_allmetadata_json
    python -m popularity.submission          # both files of the last run, against dataset.root of params.yaml

Prints "valid: N posts, mean M" and exits 0, or names file, row and what was expected and exits 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from popularity.core import paths
from popularity.core.config import PARAMS_FILE
from popularity.core.run_chain import refuse_mixed_run
from popularity.core.stage import run
from popularity.submission.ids import expected_ids, ids_of_run
from popularity.submission.validate import validate
from popularity.submission.write import NO_SUBMISSION

OUT = Path(paths.SUBMISSIONS)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m popularity.submission",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, nargs="?", help="submission, .json or .csv")
    parser.add_argument("folder", type=Path, nargs="?", help="test metadata in the official layout")
    args = parser.parse_args(argv)
    if args.file is not None and args.folder is None:
        parser.error("the folder of the test metadata is missing")
    if args.file is None:
        refuse_mixed_run(Path(), (paths.SUBMISSIONS,))
    if args.file is None and (OUT / NO_SUBMISSION).exists():
        print((OUT / NO_SUBMISSION).read_text(encoding="utf-8").strip())
        return
    ids = expected_ids(args.folder) if args.folder else ids_of_run(PARAMS_FILE, Path(paths.POSTS))
    for file in [args.file] if args.file else [OUT / "submission.json", OUT / "submission.csv"]:
        print(validate(file, ids))


if __name__ == "__main__":
    run(main)
