"""Posts from flags and files: what becomes of each field, and that no row is lost or shifted."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from popularity.core.errors import DataError
from popularity.dataset.table_columns import TableColumns
from popularity.predict import FurtherColumns, NewPosts, Request, make_posts, read_requests
from popularity.predict.__main__ import given_columns, joined_values
from popularity.predict.predict import with_further_columns
from popularity.predict.requests import FIELDS, USER_FIELDS
from tests.random_posts import random_posts
from tests.small_images import image_bytes

KNOWN = random_posts(0)
DATE = "2016-05-01T12:00"


def made(*fields: dict[str, str], root: Path = Path()) -> NewPosts:
    return make_posts([Request(row, {"date": DATE, **each}) for row, each in enumerate(fields)], KNOWN, root)


def only(**fields: str) -> tuple[dict[str, Any], list[str]]:
    """The one post, and its notes."""
    new = made(fields)
    assert not new.requests[0].problem
    return new.table.row(0, named=True), new.requests[0].notes


def problem(**fields: str) -> str:
    new = made(fields)
    assert new.table.is_empty()
    return new.requests[0].problem


def test_every_field(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(image_bytes())
    fields = {"pid": "x", "image": "a.jpg", "title": "sea", "tags": "a b", "category": "C0", "subcategory": "S/0"}
    new = made({**fields, "concept": "k", "latitude": "-1.5", "longitude": "170"}, root=tmp_path)
    post = new.table.row(0, named=True)
    assert (post["pid"], post["split"], post["label"]) == ("x", "test", None)
    assert (post["title"], post["tags"], post["image_path"]) == ("sea", "a b", "a.jpg")
    assert (post["category"], post["subcategory"], post["concept"]) == ("C0", "C0/S\\/0", "C0/S\\/0/k")
    assert (post["latitude"], post["longitude"], post["geo_accuracy"]) == (-1.5, 170.0, 16)
    assert post["posted_at"] == datetime(2016, 5, 1, 12, tzinfo=UTC)
    assert (post["media_type"], post["media_status"]) == ("photo", "ready")
    assert new.requests[0].notes == ["unknown user: none given; user fields are empty"]


def test_the_count_is_read_so_many_days_after_the_post() -> None:
    assert only(days_after="1.5")[0]["collected_at"] == datetime(2016, 5, 3, tzinfo=UTC)
    assert only(days_after="0")[0]["collected_at"] == datetime(2016, 5, 1, 12, tzinfo=UTC)
    assert only()[0]["collected_at"] is None


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", "1e9"])
def test_days_that_are_none_get_a_note(text: str) -> None:
    post, notes = only(days_after=text)
    assert post["collected_at"] is None
    assert f"unusable value: days_after {text} is no number of days from 0 to 36500; left out" in notes


def test_a_known_user_brings_the_fields_of_the_latest_stored_post() -> None:
    uid = KNOWN["uid"].mode().sort()[0]
    latest = KNOWN.filter(uid=uid).sort("posted_at", "pid").row(-1, named=True)
    post, notes = only(user=uid)
    assert {name: post[name] for name in ("uid", *USER_FIELDS)} == {
        name: latest[name] for name in ("uid", *USER_FIELDS)
    }
    assert notes == ["no image: predicted from the rest"]


def test_an_unknown_user_has_empty_fields_and_a_note() -> None:
    post, notes = only(user="nobody@N9")
    assert post["uid"] == "nobody@N9"
    assert [name for name in USER_FIELDS if post[name] is not None] == ["has_path_alias"]
    assert "unknown user: nobody@N9 has no stored post; user fields are empty" in notes


def test_posts_without_a_user_are_of_no_common_user() -> None:
    uids = made({}, {}).table["uid"]
    assert uids.n_unique() == 2
    assert not uids.is_in(KNOWN["uid"].implode()).any()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2016-05-01", datetime(2016, 5, 1, tzinfo=UTC)),
        ("2016-05-01T14:00+02:00", datetime(2016, 5, 1, 12, tzinfo=UTC)),
        ("2016-05-01 12:00:00Z", datetime(2016, 5, 1, 12, tzinfo=UTC)),
        ("1462104000", datetime(2016, 5, 1, 12, tzinfo=UTC)),
        ("20160501", datetime(2016, 5, 1, tzinfo=UTC)),
    ],
)
def test_dates(text: str, expected: datetime) -> None:
    assert only(date=text)[0]["posted_at"] == expected


@pytest.mark.parametrize(
    "text", ["31/12/2016", "tomorrow", "", "2016-13-01", "2016", "1462104000000", "0001-01-01T00:00+05:00"]
)
def test_what_is_no_date_is_refused(text: str) -> None:
    assert "date" in problem(date=text)


def test_a_stored_pid_is_refused_and_a_repeated_one_too() -> None:
    assert "is that of a stored post" in problem(pid=KNOWN["pid"][0])
    new = made({"pid": "a"}, {"pid": "a"}, {"pid": "b"})
    assert [each.problem for each in new.requests] == ["", "pid a occurs again: it is that of row 0", ""]
    assert new.table["pid"].to_list() == ["a", "b"]


def test_a_pid_made_up_is_no_other_posts() -> None:
    new = made({"pid": "new-1"}, {}, {})
    assert len({each.pid for each in new.requests}) == 3


@pytest.mark.parametrize(
    "given",
    [
        {"latitude": "91", "longitude": "5"},
        {"latitude": "x", "longitude": "5"},
        {"latitude": "5"},
        {"longitude": "nan"},
    ],
)
def test_a_position_that_is_none_is_left_out_and_noted(given: dict[str, str]) -> None:
    post, notes = only(**given)
    assert (post["latitude"], post["longitude"], post["geo_accuracy"]) == (None, None, 0)
    assert any(note.startswith("unusable value: ") for note in notes)


@pytest.mark.parametrize("name", ["gone.jpg", ".", "x" * 400 + ".jpg", "a\x00.jpg"])
def test_an_image_that_cannot_be_opened_is_noted_and_predicted_without(name: str, tmp_path: Path) -> None:
    new = made({"image": name}, root=tmp_path)
    assert new.table["image_path"].to_list() == [""]
    assert any("cannot be read" in note for note in new.requests[0].notes)


def test_unprintable_characters_are_replaced_as_in_a_data_set() -> None:
    post, _ = only(title="a\x00b\ud800c", user="u\udcff")
    assert (post["title"], post["uid"]) == ("a\ufffdb\ufffdc", "u\ufffd")


def test_csv(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "posts.csv"
    file.write_text(
        '\ufeffdate,title,mood\n2016-05-01,"a, ""b""\nc",good\n\nonly one\n2016-05-02,d,\n', encoding="utf-8"
    )
    rows = read_requests(file)
    assert [each.row for each in rows] == [0, 1, 2]
    assert rows[0].fields == {"date": "2016-05-01", "title": 'a, "b"\nc'}
    assert rows[1].problem == "1 fields where the file has 3 columns"
    assert rows[2].get("title") == "d"
    assert "left out mood; known are pid" in caplog.text


def test_jsonl(tmp_path: Path) -> None:
    file = tmp_path / "posts.jsonl"
    good = {"date": 1462104000, "tags": ["a", "b"], "latitude": 1.5, "title": None, "mood": {}}
    lines = [json.dumps(good), "{broken", "[1]", "", json.dumps({"date": DATE, "title": {"a": 1}, "tags": True})]
    file.write_text("\n".join(lines), encoding="utf-8")
    rows = read_requests(file)
    assert [each.row for each in rows] == [0, 1, 2, 3]
    assert (rows[0].get("date"), rows[0].get("tags"), rows[0].get("latitude"), rows[0].get("title")) == (
        *("1462104000", "a b", "1.5", ""),
    )
    assert rows[1].problem.startswith("not JSON")
    assert rows[2].problem == "expected an object, found list"
    assert rows[3].problem == "title, tags: expected a text or a number"


def test_rows_that_cannot_be_used_shift_no_other(tmp_path: Path) -> None:
    file = tmp_path / "posts.csv"
    rows = [f"p{index},{'never' if index % 3 == 0 else DATE},t{index}" for index in range(12)]
    file.write_text("\n".join(["pid,date,title", *rows]), encoding="utf-8")
    new = make_posts(read_requests(file), KNOWN, tmp_path)
    assert [each.get("pid") for each in new.requests] == [f"p{index}" for index in range(12)]
    assert [bool(each.problem) for each in new.requests] == [index % 3 == 0 for index in range(12)]
    titles = dict(new.table.select("pid", "title").iter_rows())
    assert titles == {f"p{index}": f"t{index}" for index in range(12) if index % 3}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("posts.txt", b"", "neither .csv nor .jsonl"),
        ("posts.csv", b"", "columns (none)"),
        ("posts.csv", b"title\nx\n", "`date` among them"),
        ("posts.csv", b"date,date\n1,2\n", "each name once"),
        ("posts.csv", b"date,title\n", "no posts"),
        ("posts.csv", b"date,titel\n2016-05-01,x\n", "expected: title; known are pid"),
        ("posts.jsonl", b'{"date": "2016-05-01", "Tags": "x"}\n', "expected: tags; known are pid"),
        ("posts.csv", b"date\n\xff\xfe\n", "not UTF-8"),
        ("posts.jsonl", b"\n", "no posts"),
    ],
)
def test_files_that_cannot_be_used(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        read_requests(tmp_path / name)
    assert said in str(error.value)
    assert name in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv: cannot be read: No such file"):
        read_requests(tmp_path / "gone.csv")


def test_posts_keep_the_contract_and_leave_the_stored_ones_alone() -> None:
    before = KNOWN.clone()
    new = made(*({"title": str(index)} for index in range(5)))
    assert new.table["pid"].is_sorted()
    assert KNOWN.equals(before)
    assert set(FIELDS) >= set(new.requests[0].fields)
    assert new.table.select(pl.col("label").is_null().all()).item()


STRAY = """pid,title,date
a,"Best" sunset,2016-05-01
b,"Sea,2016-05-02
c,Sky,2016-05-03
d,Good night",2016-05-04
e,Sand,2016-05-05
"""


def test_a_quote_that_nobody_closed_takes_no_other_post_with_it(tmp_path: Path) -> None:
    (tmp_path / "posts.csv").write_text(STRAY, encoding="utf-8")
    rows = read_requests(tmp_path / "posts.csv")
    assert [row.get("pid") for row in rows] == ["a", "b", "c", "d", "e"]
    assert [row.row for row in rows] == list(range(5))
    assert [bool(row.problem) for row in rows] == [False, True, True, True, False]
    assert all("quote opened in line 3" in row.problem for row in rows[1:4])
    new = make_posts(rows, KNOWN, tmp_path)
    assert new.table.select("pid", "title").rows() == [("a", "Best sunset"), ("e", "Sand")]


@pytest.mark.parametrize(
    "closed", ['x,"Sea,2016-05-01\ny,Night",2016-05-02\n', 'x,"Sea,2016-05-01\ny,Night,2016-05-02\n']
)
def test_two_posts_that_a_quote_joins_and_one_that_nothing_closes(tmp_path: Path, closed: str) -> None:
    (tmp_path / "posts.csv").write_text("pid,title,date\n" + closed, encoding="utf-8")
    rows = read_requests(tmp_path / "posts.csv")
    assert [(row.get("pid"), bool(row.problem)) for row in rows] == [("x", True), ("y", True)]


def test_texts_of_several_lines_stay(tmp_path: Path) -> None:
    (tmp_path / "posts.csv").write_text('pid,title,date\na,"one\ntwo, three\n\nfour",2016-05-01\n', encoding="utf-8")
    (row,) = read_requests(tmp_path / "posts.csv")
    assert (row.problem, row.get("title")) == ("", "one\ntwo, three\n\nfour")


@pytest.mark.parametrize("first", ["", "sep={}\n"])
@pytest.mark.parametrize("separator", [";", "\t", "|", ","])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_other_separators_and_encodings(tmp_path: Path, separator: str, encoding: str, first: str) -> None:
    text = first.format(separator) + "pid,title,date\na,S\u00e9a,2016-05-01\nb,Sky,2016-05-02\n".replace(",", separator)
    (tmp_path / "posts.csv").write_text(text, encoding=encoding)
    rows = read_requests(tmp_path / "posts.csv")
    assert [(row.get("pid"), row.get("title"), row.get("date")) for row in rows] == [
        ("a", "S\u00e9a", "2016-05-01"),
        ("b", "Sky", "2016-05-02"),
    ]


def test_the_point_zero_is_no_place() -> None:
    post, notes = only(latitude="0", longitude="0.0")
    assert (post["latitude"], post["longitude"], post["geo_accuracy"]) == (None, None, 0)
    assert any(note.startswith("no place") for note in notes)


def test_values_may_begin_with_a_dash() -> None:
    given = ["--tags", "-sea", "--latitude", "-1e1", "--title", "--what", "--json", "--user=-x", "--date", "2016-05-01"]
    assert joined_values(given) == [
        *("--tags=-sea", "--latitude=-1e1", "--title=--what", "--json", "--user=-x", "--date=2016-05-01"),
    ]
    assert joined_values(["--title", "--tags", "x"]) == ["--title", "--tags=x"]


FURTHER = FurtherColumns.of(TableColumns(numbers=("Price (EUR)", "title"), categories=("condition",)))


def test_a_further_column_that_is_named_like_a_field_goes_by_its_name_in_the_features() -> None:
    assert FURTHER.numbers == {"Price (EUR)": "table_price_eur", "table_title": "table_title"}
    assert FURTHER.names == ("Price (EUR)", "table_title", "condition")


@pytest.mark.parametrize("name", ["posts.csv", "posts.jsonl"])
def test_further_columns_of_a_file_come_as_numbers_and_categories(name: str, tmp_path: Path) -> None:
    rows = [
        {"pid": "b", "date": DATE, "Price (EUR)": "9.5", "condition": "new"},
        {"pid": "a", "date": DATE, "Price (EUR)": "cheap", "condition": ""},
    ]
    file = tmp_path / name
    if name == "posts.csv":
        pl.DataFrame(rows).write_csv(file)
    else:
        file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    requests = read_requests(file, FURTHER.names)
    new = make_posts(requests, KNOWN, tmp_path, FURTHER)
    assert new.columns.select("pid", "table_price_eur", "table_condition").rows() == [
        ("a", None, None),
        ("b", 9.5, "new"),
    ]
    assert "unusable value: Price (EUR) cheap is no number; left out" in requests[1].notes
    assert "missing columns: table_title; predicted from the rest" in requests[0].notes
    assert "missing columns: table_title, condition; predicted from the rest" in requests[1].notes
    assert not any("missing columns" in note for note in made({}).requests[0].notes)


def test_a_further_column_is_known_by_its_name_alone(tmp_path: Path) -> None:
    file = tmp_path / "posts.csv"
    file.write_text("date,Conditions\n2016-05-01,new\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"column Conditions(?s:.*)expected: condition"):
        read_requests(file, FURTHER.names)
    assert given_columns(["Price (EUR)=-9=5"], FURTHER) == {"Price (EUR)": "-9=5"}
    for flag in ("price=9", "condition"):
        with pytest.raises(DataError, match=f"column {flag.partition('=')[0]}(?s:.*)--column NAME=VALUE"):
            given_columns([flag], FURTHER)


def test_levels_of_classes_that_a_table_lacks_repeat_the_one_above() -> None:
    """As `ingest` reads such a table."""
    one = FurtherColumns.of(TableColumns(category="a"))
    two = FurtherColumns.of(TableColumns(category="a", subcategory="b"))
    for further, given, concept in (
        (one, {"category": "Pets"}, "Pets/Pets/Pets"),
        (two, {"category": "Pets", "subcategory": "cat"}, "Pets/cat/cat"),
        (two, {"category": "Pets"}, "Pets//"),
    ):
        table = make_posts([Request(0, {"date": DATE, **given})], KNOWN, Path(), further).table
        assert table["concept"].item() == concept


def test_features_take_the_further_columns_that_the_run_knew() -> None:
    features = pl.DataFrame(
        {"pid": ["a", "b"], "x": [1.0, 2.0], "table_price_eur": [None, None], "table_condition": [None, None]},
        schema_overrides={"table_price_eur": pl.Float64, "table_condition": pl.String},
    )
    columns = pl.DataFrame({"pid": ["b"], "table_price_eur": [9.5], "table_condition": ["new"], "table_later": [1.0]})
    assert with_further_columns(features, columns).rows() == [("a", 1.0, None, None), ("b", 2.0, 9.5, "new")]
