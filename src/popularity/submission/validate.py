"""Checks a submission of either official form against the published test files.

The official evaluators stop at the first fault or pair rows by position without a check. This module names the row
that is wrong and the expected content.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from popularity.core.errors import DataError

ID_PREFIX = "post"
CSV_HEADER = ("post_id", "popularity_score")
MIN_DECIMALS = 4
_NUMBER = re.compile(r"[+-]?[0-9]+\.([0-9]+)([eE][+-]?[0-9]+)?")
_JSON_KEYS = ("version", "result", "external_data")
_EXTERNAL_KEYS = ("used", "details")


@dataclass(frozen=True)
class Checked:
    """Number of posts and mean score of a valid submission."""

    posts: int
    mean: float

    def __str__(self) -> str:
        return f"valid: {self.posts} posts, mean {self.mean:.4f}"


@dataclass(frozen=True)
class _Number:
    """A JSON number as it was written, so that its decimals can be counted."""

    text: str


@dataclass(frozen=True)
class _Row:
    index: int | str  # for error messages
    post: Any
    score: str  # as written


def validate(file: Path, ids: Sequence[str]) -> Checked:
    """Number of posts and mean score of a valid submission.

    Args:
        file: JSON or CSV by its suffix.
        ids: "post" + Pid of the test posts in the order of the test files.

    Raises:
        DataError: the first fault, with file, row (from 0, without the header) and the expected content.
    """
    scores = read_scores(file, ids, in_order=True)
    return Checked(len(scores), math.fsum(scores.values()) / len(scores))


def read_scores(file: Path, ids: Sequence[str], *, in_order: bool) -> dict[str, float]:
    """The scores of a file in either official form, by id in the order of `ids`.

    Args:
        file: JSON or CSV by its suffix.
        ids: "post" + Pid; the file must hold each once and no others.
        in_order: True if the rows must be in the order of `ids`.

    Raises:
        DataError: as `validate`.
    """
    readers = {".json": _read_json, ".csv": _read_csv}
    if not file.is_file():
        raise DataError("no such file", file=file, expected="a submission, .json or .csv")
    if file.suffix.lower() not in readers:
        raise DataError(f"unknown suffix '{file.suffix}'", file=file, expected=" or ".join(readers))
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}", file=file, expected="UTF-8 text") from error
    rows = readers[file.suffix.lower()](file, text)
    for row in rows:
        if not isinstance(row.post, str) or not row.post.startswith(ID_PREFIX):
            raise DataError(
                f"post_id {_shown(row.post)}", file=file, row=row.index, expected=f'"{ID_PREFIX}" + Pid, as text'
            )
    scores = [_score(file, row) for row in rows]
    _check_ids(file, rows, ids, in_order=in_order)
    by_id = dict(zip((row.post for row in rows), scores, strict=True))
    return {post: by_id[post] for post in ids}


def _read_json(file: Path, text: str) -> list[_Row]:
    try:
        content = json.loads(
            text, parse_float=_Number, parse_int=_Number, parse_constant=_Number, object_pairs_hook=_object
        )
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"not valid JSON: {error}", file=file, expected=f"an object with {_listed(_JSON_KEYS)}"
        ) from error
    _check_keys(file, content, _JSON_KEYS, "the submission")
    if not isinstance(content["version"], str) or not content["version"]:
        raise DataError(f"version {_shown(content['version'])}", file=file, expected='text such as "VERSION 1.2"')
    external = content["external_data"]
    _check_keys(file, external, _EXTERNAL_KEYS, "external_data")
    if external["used"] not in ("true", "false"):
        raise DataError(f"external_data.used is {_shown(external['used'])}", file=file, expected='"true" or "false"')
    if not isinstance(external["details"], str):
        raise DataError(f"external_data.details is {_shown(external['details'])}", file=file, expected="text")
    if not isinstance(content["result"], list):
        raise DataError(f"result is {type(content['result']).__name__}", file=file, expected="a list of posts")
    for index, row in enumerate(content["result"]):
        _check_keys(file, row, CSV_HEADER, "a post", index)
        if not isinstance(row["popularity_score"], _Number):
            raise DataError(
                f"popularity_score {_shown(row['popularity_score'])}",
                file=file,
                row=index,
                expected="a number, not text",
            )
    return [_Row(index, row["post_id"], row["popularity_score"].text) for index, row in enumerate(content["result"])]


def _read_csv(file: Path, text: str) -> list[_Row]:
    expected = ",".join(CSV_HEADER)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        numbered = [(cells, reader.line_num) for cells in reader]
    except csv.Error as error:
        raise DataError(f"not valid CSV: {error}", file=file, expected=f"lines of {expected}") from error
    if not numbered or tuple(numbered[0][0]) != CSV_HEADER:
        raise DataError(f"header {','.join(numbered[0][0]) if numbered else ''!r}", file=file, expected=expected)
    for index, (cells, line) in enumerate(numbered[1:]):
        if len(cells) != len(CSV_HEADER):
            raise DataError(f"{len(cells)} cells", file=file, row=f"{index} (line {line})", expected=expected)
    return [_Row(f"{index} (line {line})", *cells) for index, (cells, line) in enumerate(numbered[1:])]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that occurs twice is an error, because parsers keep different ones."""
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError(f"a key occurs twice in {_listed(key for key, _ in pairs)}")
    return result


def _check_keys(file: Path, value: Any, keys: Sequence[str], what: str, row: int | None = None) -> None:
    if not isinstance(value, dict) or set(value) != set(keys):
        found = _listed(value) if isinstance(value, dict) else type(value).__name__
        raise DataError(f"{what} has {found or 'no key'}", file=file, row=row, expected=f"exactly {_listed(keys)}")


def _score(file: Path, row: _Row) -> float:
    """The finite score of a row, written with enough decimals."""
    try:
        score = float(row.score)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise DataError(f"popularity_score {row.score}", file=file, row=row.index, expected="a finite number")
    written = _NUMBER.fullmatch(row.score)
    if not written or len(written[1]) < MIN_DECIMALS:
        raise DataError(
            f"popularity_score {row.score}", file=file, row=row.index, expected=f"at least {MIN_DECIMALS} decimals"
        )
    return score


def _check_ids(file: Path, rows: Sequence[_Row], ids: Sequence[str], *, in_order: bool) -> None:
    """Raises DataError unless the rows' ids are exactly `ids`, in that order if it counts."""
    first: dict[str, int | str] = {}
    wanted = set(ids)
    for row in rows:
        if row.post in first:
            raise DataError(
                f"{row.post} again, first in row {first[row.post]}", file=file, row=row.index, expected="each post once"
            )
        if row.post not in wanted:
            raise DataError(
                f"{row.post} is not one of the posts that are scored",
                file=file,
                row=row.index,
                expected=f"only the {len(ids)} expected posts",
            )
        first[row.post] = row.index
    if len(rows) < len(ids):
        index, missing = next((index, post) for index, post in enumerate(ids) if post not in first)
        raise DataError(
            f"{len(ids) - len(rows)} expected posts are missing, the first is {missing}",
            file=file,
            row=index,
            expected=f"{len(ids)} rows, one for each expected post",
        )
    for row, post in zip(rows, ids, strict=True):
        if in_order and row.post != post:
            raise DataError(
                f"{row.post} is out of order", file=file, row=row.index, expected=f"{post}, as in the test files"
            )


def _listed(keys: Any) -> str:
    return ", ".join(str(key) for key in keys)


def _shown(value: Any) -> str:
    return value.text if isinstance(value, _Number) else json.dumps(value, default=str)
