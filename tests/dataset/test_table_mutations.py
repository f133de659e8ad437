"""Whatever happens to a table of one's own: posts that say what the file says, or one error that names the file.

What the file says is read here a second time, by Python's csv and json.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from popularity.core.contracts import COLUMNS, POSTS, QUARANTINE, check_table
from popularity.core.errors import DataError
from popularity.dataset.table import OwnTable, ingest_table
from popularity.dataset.table_columns import TableColumns
from popularity.dataset.table_file import TableFile

NAMES = TableColumns(id="id", text="text", tags="tags", date="date", count="count", numbers=("price",))
ROWS = [
    {
        "id": f"p{row}",
        "text": f'a "quoted" text,\nnumber {row}' if row % 3 == 0 else f"text {row}",
        "tags": f"sea sand{row}",
        "date": f"2024-01-{row + 1:02d}T10:00",
        "count": str(row * row),
        "price": str(row / 2),
    }
    for row in range(24)
]
SETTINGS = settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
MISSING = ("", "None")
NO_COUNT = (*MISSING, "nan", "null", "na", "n/a", "-")
WHITE = "\t\n\x0b\x0c\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"


def as_csv(rows: list[dict[str, str]]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(ROWS[0]))
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode("utf-8", "surrogatepass")


def as_jsonl(rows: list[dict[str, str]]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def read_again(content: bytes, suffix: str) -> list[dict[str, Any]]:
    text = content.decode("utf-8-sig")
    if suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text, newline=""), restkey="more"))
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def clean(text: str | None) -> str:
    return re.sub("[\x00\ud800-\udfff]", "\ufffd", text or "")


def number(text: str | None) -> float | None:
    text = (text or "").strip(WHITE)
    value = float(text) if NUMBER.fullmatch(text) else math.nan
    return value if math.isfinite(value) else None


def check(content: bytes, suffix: str) -> bool:
    """Whether the table was taken; what it then says is what the file says, row by row."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"posts{suffix}"
        file.write_bytes(content)
        table = TableFile(file)
        try:
            found = ingest_table(OwnTable(table, table, NAMES, None, pictures=False))
        except DataError as error:
            assert error.file == file, error
            assert error.expected
            assert str(error).encode("utf-8")  # it can be printed
            return False
    for frame, contract in ((found.posts, POSTS), (found.columns, COLUMNS), (found.quarantine, QUARANTINE)):
        check_table(frame, contract)
    noted = set(found.quarantine.select("row", "field").iter_rows())
    rows = read_again(content, suffix)
    posts = {post["pid"]: post for post in found.posts.iter_rows(named=True)}
    prices = dict(found.columns.select("pid", "table_price").iter_rows())
    assert len(posts) == len(rows)
    for index, row in enumerate(rows):
        pid = clean(row["id"]).strip(WHITE)
        post = posts[pid]
        assert post["title"] == clean(row["text"])
        given_count = re.sub(r"(\d)[,\s\u00a0](\d{3})\b", r"\1\2", row["count"] or "")
        if (row["count"] or "").strip(WHITE).lower() in map(str.lower, NO_COUNT):
            assert (post["split"], post["label"]) == ("test", None)
        else:
            count = number(given_count)
            assert count is not None
            assert post["label"] == pytest.approx(math.log2(count + 1))
        if (index, "date") not in noted:
            written = datetime.fromisoformat((row["date"] or "").strip(WHITE))
            assert post["posted_at"] == (written if written.tzinfo else written.replace(tzinfo=UTC)).astimezone(UTC)
        if (index, "price") not in noted:
            assert prices[pid] == number(row["price"])
    return True


TEXTS = st.one_of(
    st.text(max_size=12),
    st.text(st.characters(exclude_categories=()), max_size=6),  # halves of characters too
    st.sampled_from(
        [
            *("", " ", "None", "nan", "-", "=1+1", "1,234", "1 234", '"', '""', "2024-13-01", "0", "1e400", "-5", "٣"),
            *("\x00", "a\nb", "a\r\nb", "é", "a,b", "a;b", "2024-02-01", "2024-02-01T10:00:30+02:00", "1704101400"),
        ]
    ),
)
PLACES = st.integers(0, 2000)
BYTES = st.one_of(
    st.binary(min_size=1, max_size=3),
    st.sampled_from([b'"', b",", b"\n", b"\r", b";", b"\\", b"{", b"}", b"0", b"-", b"\xef\xbb\xbf", b"\xff\xfe"]),
)
FORMS: Mapping[str, Any] = {".csv": as_csv, ".jsonl": as_jsonl}


@pytest.mark.parametrize("suffix", FORMS)
def test_the_plain_table_is_taken(suffix: str) -> None:
    assert check(FORMS[suffix](ROWS), suffix)


@SETTINGS
@given(st.sampled_from(list(FORMS)), st.integers(0, 23), st.sampled_from(list(ROWS[0])), TEXTS)
def test_any_cell(suffix: str, row: int, name: str, text: str) -> None:
    rows = [dict(each) for each in ROWS]
    rows[row][name] = text
    check(FORMS[suffix](rows), suffix)


@SETTINGS
@given(st.sampled_from(list(FORMS)), st.lists(st.integers(0, 23), max_size=12))
def test_rows_that_are_dropped_repeated_and_moved(suffix: str, order: list[int]) -> None:
    taken = check(FORMS[suffix]([ROWS[row] for row in order]), suffix)
    assert taken == (len(order) > 0 and len(set(order)) == len(order))


@SETTINGS
@given(st.sampled_from(list(FORMS)), PLACES, st.integers(0, 40), BYTES)
def test_any_bytes(suffix: str, start: int, removed: int, inserted: bytes) -> None:
    content = FORMS[suffix](ROWS)
    start %= len(content)
    check(content[:start] + inserted + content[start + removed :], suffix)
