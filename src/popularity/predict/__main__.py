r"""Predicts the popularity of new posts, with intervals and reasons, in a folder where `dvc repro` has finished.

    python -m popularity.predict --image photo.jpg --title "Sunset at the beach" --tags "sea sand" \
        --user 12@N34 --date 2016-05-01T12:00 --category Travel --subcategory Beach
    python -m popularity.predict --posts posts.csv --out predictions.csv

A file of posts, .csv or .jsonl, has the same fields as columns (pid too, if you like); paths of images start at its
folder. Dates without a zone are UTC. A missing field gets a note, and the prediction does without it. A row that cannot
be used is set aside: it keeps its row in the output, with the reason. --json prints everything as JSON, for a file of
posts one line a post. Further columns of a table of your own go by their names there: as columns of the file, or as
--column price=9.5.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path

from popularity.core.errors import DataError
from popularity.core.stage import run
from popularity.predict.output import record, refuse_other_suffix, summary, text_of, write_file
from popularity.predict.predict import N_FEATURES, Predictor, Project
from popularity.predict.requests import (
    FIELDS,
    FurtherColumns,
    Request,
    counted,
    make_posts,
    read_requests,
    refuse_unknown_columns,
    table_columns,
    why_unreadable,
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m popularity.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in FIELDS:
        parser.add_argument(f"--{name.replace('_', '-')}", help=_HELP.get(name))
    parser.add_argument("--column", action="append", default=[], metavar="NAME=VALUE", help="a further column")
    parser.add_argument("--posts", type=Path, help="file of posts, .csv or .jsonl")
    parser.add_argument("--out", type=Path, help="file of predictions to write, .csv or .jsonl")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(joined_values(sys.argv[1:] if argv is None else argv))
    given = {name: value for name in FIELDS if (value := vars(args)[name]) is not None}
    project = Project.at(Path())
    columns = table_columns(project.params)
    further = FurtherColumns.of(columns)
    given |= given_columns(args.column, further)
    if (args.posts is None) == (not given):
        parser.error("give either the fields of one post or a file of --posts")
    if args.out is not None:
        refuse_other_suffix(args.out)
    requests = [Request(0, given)] if args.posts is None else read_requests(args.posts, further.names)
    if given.get("image") and (reason := why_unreadable(Path(given["image"]))):
        raise DataError(f"cannot be read: {reason}", file=given["image"], expected="an image, or no --image")
    predictor = Predictor(project)
    new = make_posts(requests, predictor.known, Path() if args.posts is None else args.posts.parent, further)
    if new.table.is_empty():
        if args.posts is None:
            raise DataError(requests[0].problem)
        raise DataError(
            f"none of {len(requests)} posts can be predicted; the first: {requests[0].problem}",
            file=args.posts,
            row=0,
        )
    # Progress is for files of posts: for one post its bars would outnumber the lines of the answer.
    with redirect_stderr(StringIO()) if args.posts is None else nullcontext():
        predictions = {found.pid: found for found in predictor.predict(new, N_FEATURES)}
    if args.out is not None:
        write_file(args.out, requests, predictions)
    if args.json:
        for request in requests:
            content = record(request, predictions.get(request.pid))
            print(json.dumps(content, ensure_ascii=False, indent=2 if args.posts is None else None))
    elif args.out is None:
        texts = (text_of(request, predictions.get(request.pid), counted(columns)) for request in requests)
        print("\n\n".join(texts))
    if args.posts is not None and not args.json:
        print(("" if args.out else "\n") + summary(requests, predictions, args.out))


def given_columns(flags: Sequence[str], further: FurtherColumns) -> dict[str, str]:
    """The values of --column, by name.

    Args:
        flags: each NAME=VALUE.
        further: the columns that the models know.

    Raises:
        DataError: no such column, or no value.
    """
    given = {name: value for name, equals, value in (flag.partition("=") for flag in flags) if equals}
    without = [flag for flag in flags if "=" not in flag]
    refuse_unknown_columns([*without, *given], further, "--column NAME=VALUE")
    if without:
        raise DataError(f"--column {without[0]}", expected="--column NAME=VALUE")
    return given


def joined_values(argv: Sequence[str]) -> list[str]:
    """The arguments with the value of each field joined to its flag, so that it may begin with a dash."""
    words, result = list(argv), []
    while words:
        word = words.pop(0)
        if word.startswith("--") and word[2:] in FIELDS and words and not _is_flag(words[0]):
            word = f"{word}={words.pop(0)}"
        result.append(word)
    return result


def _is_flag(word: str) -> bool:
    return word.startswith("--") and word[2:].partition("=")[0] in (*FIELDS, "column", "posts", "out", "json", "help")


_HELP = {
    "image": "file of the image",
    "user": "Uid of the data set; the user fields of a known user are those of the latest stored post",
    "date": "2016-05-01T12:00 (UTC), 2016-05-01T14:00+02:00 or unix seconds",
    "tags": "separated by spaces",
    "category": "first-level class, as the data set names it",
    "subcategory": "second-level class",
    "concept": "third-level class",
    "days_after": "days from the post until its count is read; without it, those of the median training post",
}


if __name__ == "__main__":
    run(main)
