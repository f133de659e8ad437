"""Whatever happens to the files of a data set: a table that says what they say, or one error that names the file.

What the files say is read here a second time, row by row in plain Python.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from popularity.core.contracts import POSTS, QUARANTINE, USERS, check_table
from popularity.core.errors import DataError
from popularity.dataset import ingest
from popularity.dataset import reading as reading_module
from tests.dataset.layout import NEW_NAMES, ROLES, build

pytestmark = pytest.mark.slow

Files = dict[str, bytes]
SETTINGS = settings(
    deadline=None,
    derandomize=True,  # the same examples everywhere; to look for others: derandomize=False
    max_examples=120,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def written(form: Literal["A", "B"]) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        root = build(form, train=7, test=4).write(Path(folder))
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


VALID = {form: written(form) for form in ("A", "B")}


def name_of(split: str, role: str) -> str:
    return f"{split}_allmetadata_json/{split}{'_label.txt' if role == 'label' else NEW_NAMES[role]}"


# What the files say, row by row.

WHITE = "\t\n\x0b\x0c\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
MISSING = ("", "None")
INTEGER = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


def rows_of(content: bytes) -> list[dict[str, Any]]:
    """The records of a metadata file in either of its layouts."""
    read = json.loads(content.removeprefix(b"\xef\xbb\xbf"))
    if isinstance(read, list):
        return read
    count = len(next(iter(read.values())))
    return [{name: values[str(row)] for name, values in read.items()} for row in range(count)]


def as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    if isinstance(value, list) and not refused(value):
        return (" " if all(isinstance(each, str) for each in value) else ",").join(str(as_text(each)) for each in value)
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def refused(value: Any) -> bool:
    """True of a nested value that is neither a list of texts nor a list of numbers."""
    if not isinstance(value, list):
        return isinstance(value, dict)
    texts = all(isinstance(each, str) for each in value)
    return not (texts or all(isinstance(each, int | float) and not isinstance(each, bool) for each in value))


def clean(value: Any) -> str:
    """Text as published; NUL and halves of characters replaced."""
    return re.sub("[\x00\ud800-\udfff]", "\ufffd", as_text(value) or "")


def present(value: Any) -> str | None:
    text = as_text(value)
    text = None if text is None else text.strip(WHITE)
    return None if text in MISSING else text


def number(value: Any, low: float, high: float) -> float | None:
    text = present(value)
    if text is None or not NUMBER.fullmatch(text):
        return None
    found = float(text)
    return found if math.isfinite(found) and low <= found <= high else None


def integer(value: Any, low: int, high: int) -> int | None:
    text = present(value)
    if text is None or not NUMBER.fullmatch(text):
        return None
    if INTEGER.fullmatch(text) and -(2**63) <= int(text) < 2**63:
        found = int(text)
    elif math.isfinite(float(text)) and float(text).is_integer() and abs(float(text)) < 2**53:
        found = int(float(text))
    else:
        return None
    return found if low <= found <= high else None


def flag(value: Any) -> bool | None:
    return {"0": False, "1": True, "false": False, "true": True}.get((present(value) or "").lower())


def class_name_format(*names: str) -> str:
    return "/".join(name.replace("\\", "\\\\").replace("/", "\\/") for name in names)


def expected(files: Files, split: str) -> list[dict[str, Any]]:
    """The posts of a split by the columns that are compared."""
    records = {role: rows_of(files[name_of(split, role)]) for role in ROLES}
    labels = files[name_of(split, "label")].decode("utf-8-sig").split("\n") if split == "train" else []
    if len(labels) > len(records["category"]) and not NUMBER.fullmatch(labels[0].strip(WHITE)):
        del labels[0]
    found = []
    for row, category in enumerate(records["category"]):
        text, where = records["text"][row], records["temporalspatial"][row]
        more, user = records["additional"][row], records["user"][row]
        names = [clean(category.get(name)) for name in ("Category", "Subcategory", "Concept")]
        seconds = integer(where.get("Postdate"), 1, int(datetime(2100, 1, 1, tzinfo=UTC).timestamp()))
        latitude, longitude = number(where.get("Latitude"), -90, 90), number(where.get("Longitude"), -180, 180)
        nowhere = latitude == 0 == longitude
        found.append(
            {
                "pid": as_text(category["Pid"]),
                "uid": as_text(category["Uid"]),
                "source_index": row,
                "label": float(labels[row].strip(WHITE)) if labels else None,
                "category": class_name_format(*names[:1]),
                "subcategory": class_name_format(*names[:2]),
                "concept": class_name_format(*names),
                "title": clean(text.get("Title")),
                "tags": clean(text.get("Alltags")),
                "media_type": clean(text.get("Mediatype")),
                "posted_at": None if seconds is None else datetime.fromtimestamp(seconds, UTC),
                "latitude": None if nowhere else latitude,
                "longitude": None if nowhere else longitude,
                "geo_accuracy": 0 if nowhere else integer(where.get("Geoaccuracy"), 0, 16) or 0,
                "has_path_alias": present(more.get("Pathalias")) is not None,
                "is_public": flag(more.get("Ispublic")),
                "media_status": clean(more.get("Mediastatus")),
                "photo_count": integer(user.get("photo_count"), 0, 10**9),
                "is_pro": flag(user.get("ispro")),
                "can_buy_pro": flag(user.get("canbuypro")),
            }
        )
    return found


def check(files: Files, *, may_refuse: bool) -> None:
    """The property: the table is right, or a DataError names a file or folder of the data set."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, content in files.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(content)
        try:
            found = ingest(root)
        except DataError as error:
            assert may_refuse, error
            assert Path(str(error.file)).is_relative_to(root)
            assert error.expected
            assert str(error).encode("utf-8")  # it can be printed
            return
    for table, contract in ((found.posts, POSTS), (found.users, USERS), (found.quarantine, QUARANTINE)):
        check_table(table, contract)
    json.dumps(found.summary, allow_nan=False).encode("utf-8")
    noted = set(found.quarantine.select("file", "row", "field").iter_rows())
    for split in ("train", "test"):
        rows = found.posts.filter(split=split).sort("source_index").to_dicts()
        wanted = expected(files, split)
        assert len(rows) == len(wanted)
        for row, want in zip(rows, wanted, strict=True):
            where = (name_of(split, "temporalspatial").rpartition("/")[2], want["source_index"], "Postdate")
            assert want["posted_at"] is not None or where in noted
            if where in noted:  # also a date far from all others, and milliseconds
                del want["posted_at"]
            assert {name: row[name] for name in want} == want
    assert set(found.users["uid"]) == set(found.posts["uid"])


# What happens to them.

TEXTS = st.one_of(
    st.text(max_size=12),
    st.text(st.characters(exclude_categories=()), max_size=6),  # halves of characters too
    st.sampled_from(
        ["", " ", "None", "nan", "-inf", "Infinity", "1e999", "-0", "+7", "1_0", "٣", "\u202eabc\u0000", "é😀"]
    ),
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(repr),
    st.sampled_from(["-08:00", "2011-02-29 00:00:00", "9999-12-31 23:59:59", "1,2,3", "<b>", "&#0;", "&amp", "a/b\\c"]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**25), 10**25), st.floats(allow_nan=False), TEXTS),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)
FREE = [  # fields in which any value is read somehow
    *(("category", name) for name in ("Category", "Subcategory", "Concept")),
    *(("text", name) for name in ("Title", "Mediatype", "Alltags", "Views")),
    *(("temporalspatial", name) for name in ("Latitude", "Longitude", "Geoaccuracy")),
    *(("additional", name) for name in ("Pathalias", "Ispublic", "Mediastatus")),
    *(("user", name) for name in ("photo_count", "ispro", "canbuypro", "photo_firstdate", "photo_firstdatetaken")),
    *(("user", name) for name in ("timezone_offset", "timezone_id", "user_description", "location_description")),
]
FIXED = [(role, name) for role in ROLES for name in ("Uid", "Pid")] + [("temporalspatial", "Postdate")]


@dataclass(frozen=True)
class Change:
    """Something that happens to one file; its repr is what Hypothesis shows."""

    file: str
    what: str
    arguments: tuple[Any, ...]

    def apply(self, files: Files) -> Files:
        if self.file not in files:
            return files
        content = CHANGES[self.what](files[self.file], *self.arguments)
        rest = {name: old for name, old in files.items() if name != self.file}
        return rest if content is None else {**rest, self.file: content}


def edited(change: Callable[..., None]) -> Callable[..., bytes]:
    """A change of a file's records; bytes that hold none stay."""

    def apply(content: bytes, *arguments: Any) -> bytes:
        try:
            columnar = isinstance(json.loads(content), dict)
            rows = rows_of(content)
            change(rows, *arguments)
            if columnar:
                names = {name: None for row in rows for name in row}
                read: Any = {name: {str(at): row.get(name) for at, row in enumerate(rows)} for name in names}
            else:
                read = rows
            return json.dumps(read).encode()
        except (ValueError, KeyError, AttributeError, TypeError, IndexError, StopIteration):
            return content

    return apply


def set_value(rows: list[dict[str, Any]], at: int, name: str, value: Any) -> None:
    rows[at % len(rows)][name] = value


def drop_field(rows: list[dict[str, Any]], at: int, name: str) -> None:
    rows[at % len(rows)].pop(name, None)


def drop_row(rows: list[dict[str, Any]], at: int) -> None:
    del rows[at % len(rows)]


def repeat_row(rows: list[dict[str, Any]], at: int, to: int) -> None:
    rows.insert(to % len(rows), rows[at % len(rows)])


def swap_rows(rows: list[dict[str, Any]], at: int, to: int) -> None:
    one, other = at % len(rows), to % len(rows)
    rows[one], rows[other] = rows[other], rows[one]


CHANGES: Mapping[str, Callable[..., bytes | None]] = {
    "set": edited(set_value),
    "drop field": edited(drop_field),
    "drop row": edited(drop_row),
    "repeat row": edited(repeat_row),
    "swap rows": edited(swap_rows),
    "cut": lambda content, at: content[: at % (len(content) + 1)],
    "overwrite": lambda content, at, new: (
        content[: at % (len(content) + 1)] + new + content[at % (len(content) + 1) + len(new) :]
    ),
    "insert": lambda content, at, new: content[: at % (len(content) + 1)] + new + content[at % (len(content) + 1) :],
    "remove": lambda content, at, count: (
        content[: at % (len(content) + 1)] + content[at % (len(content) + 1) + count :]
    ),
    "copy": lambda content, at, count, to: (
        content[: to % (len(content) + 1)]
        + content[at % (len(content) + 1) :][:count]
        + content[to % (len(content) + 1) :]
    ),
    "mark": lambda content: b"\xef\xbb\xbf" + content,
    "delete": lambda _: None,
}
PLACES = st.integers(0, 5000)
ROWS = st.integers(0, 6)
BYTES = st.one_of(
    st.binary(min_size=1, max_size=3),
    st.sampled_from([b'"', b"{", b"}", b"},", b"[", b",", b"\n", b"\\", b"0", b"-", b"null", b"NaN"]),
)


@st.composite
def changes(draw: st.DrawFn) -> Change:
    split = draw(st.sampled_from(["train", "test"]))
    role, field = draw(st.sampled_from(FREE + FIXED))
    drawn: dict[str, Callable[[], tuple[Any, ...]]] = {
        "set": lambda: (draw(ROWS), field, draw(VALUES)),
        "drop field": lambda: (draw(ROWS), field),
        "drop row": lambda: (draw(ROWS),),
        "repeat row": lambda: (draw(ROWS), draw(ROWS)),
        "swap rows": lambda: (draw(ROWS), draw(ROWS)),
        "cut": lambda: (draw(PLACES),),
        "overwrite": lambda: (draw(PLACES), draw(BYTES)),
        "insert": lambda: (draw(PLACES), draw(BYTES)),
        "remove": lambda: (draw(PLACES), draw(st.integers(1, 400))),
        "copy": lambda: (draw(PLACES), draw(st.integers(1, 400)), draw(PLACES)),
        "mark": tuple,
        "delete": tuple,
    }
    what = draw(st.sampled_from(list(CHANGES)))
    if what not in ("set", "drop field", "drop row", "repeat row", "swap rows"):
        role = draw(st.sampled_from([*ROLES, "images", "label"] if split == "train" else [*ROLES, "images"]))
    return Change(name_of(split, role), what, tuple(drawn[what]()))


@SETTINGS
@given(form=st.sampled_from(["A", "B"]), happened=st.lists(changes(), min_size=1, max_size=3))
def test_any_change_gives_a_right_table_or_a_named_error(form: str, happened: list[Change]) -> None:
    files = VALID[form]
    for change in happened:
        files = change.apply(files)
    check(files, may_refuse=True)


@SETTINGS
@given(form=st.sampled_from(["A", "B"]), target=st.sampled_from(FREE), row=ROWS, value=VALUES)
def test_any_value_of_a_field_that_no_row_depends_on_is_read(
    form: str, target: tuple[str, str], row: int, value: Any
) -> None:
    role, field = target
    files = Change(name_of("train", role), "set", (row, field, value)).apply(VALID[form])
    check(files, may_refuse=field != "Views" and refused(value))


@SETTINGS
@given(
    form=st.sampled_from(["A", "B"]),
    happened=st.lists(changes(), max_size=2),
    chunk=st.integers(16, 4000),
    rows=st.integers(1, 8),
)
def test_no_change_is_read_otherwise_in_small_pieces(form: str, happened: list[Change], chunk: int, rows: int) -> None:
    files = VALID[form]
    for change in happened:
        files = change.apply(files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading_module, "CHUNK_BYTES", chunk)
        patch.setattr(reading_module, "FRAME_ROWS", rows)
        check(files, may_refuse=bool(happened))
