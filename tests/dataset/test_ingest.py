"""Good data sets in every accepted form become the same tables; what is implausible is set aside, not lost."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import orjson
import polars as pl
import pytest

from popularity.core.atomic import read_json
from popularity.core.contracts import POSTS, QUARANTINE, USERS, check_table
from popularity.core.errors import DataError
from popularity.dataset import Ingested, ingest
from popularity.dataset import reading as reading_module
from popularity.dataset.ingestion import collection_date
from popularity.dataset.parsing import strip_html
from stages import ingest as stage
from tests.dataset.layout import OLD_NAMES, Layout, build, vector
from tests.repository import stage_flags, write_profile


def read(layout: Layout, root: Path) -> Ingested:
    return ingest(layout.write(root))


def post(ingested: Ingested, source_index: int, split: str = "train") -> dict[str, Any]:
    return ingested.posts.row(
        by_predicate=(pl.col("source_index") == source_index) & (pl.col("split") == split), named=True
    )


def quarantined(ingested: Ingested) -> set[tuple[str, int, str, str]]:
    return set(ingested.quarantine.select("file", "row", "field", "action").iter_rows())


def test_form_b_becomes_posts(tmp_path: Path) -> None:
    ingested = read(build("B"), tmp_path)
    check_table(ingested.posts, POSTS)
    assert post(ingested, 3) == {
        "pid": "5021",
        "split": "train",
        "source_index": 3,
        "uid": "70@N00",
        "label": 2.75,
        "category": "Animal",
        "subcategory": "Animal/kind 0",
        "concept": "Animal/kind 0/thing 3",
        "title": "Title 3",
        "tags": "red green",
        "media_type": "photo",
        "posted_at": datetime.fromtimestamp(1_430_000_000 + 3 * 86_400, UTC),
        "collected_at": None,
        "latitude": 48.137,
        "longitude": 11.575,
        "geo_accuracy": 16,
        "has_path_alias": False,
        "is_public": True,
        "media_status": "ready",
        "image_path": "train/70@N00/5021.jpg",
        "photo_count": 10,
        "is_pro": True,
        "can_buy_pro": False,
        "first_photo_at": datetime.fromtimestamp(1_400_000_000, UTC),
        "first_taken_at": datetime(2011, 3, 13, 7, 6, 40, tzinfo=UTC),
        "timezone_offset": None,
        "timezone_id": "Europe/Berlin",
        "user_description": "I love tea & cake see here",
        "location_description": None,
    }
    assert ingested.posts.filter(split="test")["label"].null_count() == 6
    assert ingested.users["uid"].to_list() == ["70@N00", "71@N01", "72@N02", "73@N03", "74@N04"]
    assert ingested.users["description_vector"].null_count() == 5
    assert ingested.quarantine.is_empty()


def test_the_day_of_collection_is_that_of_every_post(tmp_path: Path) -> None:
    posts = ingest(build("B").write(tmp_path), collected_at=collection_date("2016-05-01")).posts
    check_table(posts, POSTS)
    assert posts["collected_at"].unique().to_list() == [datetime(2016, 5, 1, tzinfo=UTC)]


def test_a_day_of_collection_is_a_date_or_that_of_the_last_post() -> None:
    assert collection_date("last_post") is None
    assert collection_date("2016-05-01T14:00+02:00") == datetime(2016, 5, 1, 12, tzinfo=UTC)
    with pytest.raises(DataError, match=r"dataset\.collected_at is 'yesterday'[\s\S]*last_post, or a date such as"):
        collection_date("yesterday")


def test_form_a_becomes_posts_and_one_pair_of_vectors_a_user(tmp_path: Path) -> None:
    layout = build("A")
    layout.train.records["user"][6]["user_description"] = vector(77, 399)  # the third row of user 0
    ingested = read(layout, tmp_path)
    check_table(ingested.users, USERS)
    row = post(ingested, 3)
    assert (row["timezone_offset"], row["timezone_id"]) == (-480, "PST8PDT")
    assert row["first_taken_at"] == datetime.fromtimestamp(1_300_000_000, UTC)
    assert row["user_description"] is None
    users = {row["uid"]: row for row in ingested.users.iter_rows(named=True)}
    expected = [float(number) for number in vector(1, 399).split(",")]
    assert users["71@N01"]["description_vector"] == pytest.approx(expected, abs=1e-6)
    assert len(users["71@N01"]["location_vector"]) == 400
    assert users["70@N00"]["location_vector"] is None
    assert users["70@N00"]["description_vector"][0] == pytest.approx(float(vector(0, 399).split(",")[0]), abs=1e-6)
    assert ingested.summary["users_with_differing_vectors"] == 1
    assert "form A" in ingested.summary["files"]["train_allmetadata_json/train_user_data.json"]["layout"]
    assert ingested.quarantine.is_empty()


def test_the_form_of_the_user_file_changes_no_shared_column(tmp_path: Path) -> None:
    special = ["first_taken_at", "timezone_offset", "timezone_id", "user_description"]
    first, second = (read(build(form), tmp_path / form).posts.drop(special) for form in ("A", "B"))
    assert first.equals(second)


@pytest.mark.parametrize("form", ["A", "B"])
def test_old_names_byte_order_marks_and_crlf(tmp_path: Path, form: Literal["A", "B"]) -> None:
    plain = read(build(form), tmp_path / "plain")
    old = build(form, names=OLD_NAMES, bom=True).write(tmp_path / "old")
    for path in old.rglob("*.txt"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    ingested = ingest(old)
    assert ingested.posts.equals(plain.posts)
    assert ingested.users.equals(plain.users)
    assert "train_allmetadata_json/train_userdata.json" in ingested.summary["files"]


def test_numbers_and_strings_are_the_same(tmp_path: Path) -> None:
    def as_number(value: Any) -> Any:
        try:
            number = float(value)
        except (TypeError, ValueError):
            return value
        return int(number) if number.is_integer() and "." not in value else number

    layout = build("B")
    layout.train.records["text"][0]["Title"] = layout.train.records["text"][1]["Title"] = "2015"
    texts = read(layout, tmp_path / "texts")
    for part in layout.parts:
        for role, rows in part.records.items():
            part.records[role] = [{key: as_number(value) for key, value in row.items()} for row in rows]
    layout.train.records["text"][1]["Title"] = "2015"  # numbers and texts in one column
    layout.train.records["user"][2]["photo_count"] = 12.0  # as pandas writes a column with gaps
    numbers = read(layout, tmp_path / "numbers")
    assert isinstance(layout.train.records["category"][0]["Pid"], int)
    assert numbers.posts.equals(texts.posts)


def test_one_and_a_half_stays_after_many_integers(tmp_path: Path) -> None:
    layout = build("B", train=240, test=0)
    for row, record in enumerate(layout.train.records["temporalspatial"]):
        record["Latitude"] = 1 if row < 220 else 1.5
    assert post(read(layout, tmp_path), 239)["latitude"] == 1.5
    assert post(read(layout, tmp_path), 0)["latitude"] == 1.0


def test_shuffled_files_give_the_same_posts(tmp_path: Path) -> None:
    layout = build("A", train=30, test=12)
    before = read(layout, tmp_path / "before")
    for seed, part in enumerate(layout.parts):
        part.reorder(random.Random(seed).sample(range(len(part.image_paths)), len(part.image_paths)))
    after = read(layout, tmp_path / "after")
    assert after.posts.drop("source_index").equals(before.posts.drop("source_index"))
    assert not after.posts.equals(before.posts)
    assert after.users.equals(before.users)


@pytest.mark.parametrize("form", ["A", "B"])
def test_reading_in_chunks_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Literal["A", "B"]
) -> None:
    layout = build(form, train=40)
    layout.train.records["text"][7]["Title"] = 'braces }, { in "quotes" }, \\" {'
    layout.train.records["text"][8]["Extra"] = [{"a": 1}, {"a": 2}]
    layout.train.records["user"][33]["photo_count"] = "many"
    root = layout.write(tmp_path)
    whole = ingest(root)
    assert whole.quarantine["row"].to_list() == [33]
    for size in (512, 700, 4096, 5000):
        monkeypatch.setattr(reading_module, "CHUNK_BYTES", size)
        monkeypatch.setattr(reading_module, "FRAME_ROWS", size // 200)
        chunked = ingest(root)
        assert chunked.posts.equals(whole.posts)
        assert chunked.users.equals(whole.users)
        assert chunked.quarantine.equals(whole.quarantine)
        assert chunked.summary == whole.summary


def test_without_a_test_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        ingested = read(build("B", test=0), tmp_path)
    assert set(ingested.posts["split"]) == {"train"}
    assert ingested.summary["test_part"] == "absent: no submission can be made"
    assert "unseen_in_training" not in ingested.summary
    assert "has no test split" in caplog.text


def test_test_labels_are_never_opened(tmp_path: Path) -> None:
    root = build("B").write(tmp_path)
    label = root / "test_allmetadata_json" / "test_label.txt"
    label.symlink_to(tmp_path / "nowhere")  # opening it would fail
    ingested = ingest(root)
    assert ingested.posts.filter(split="test")["label"].null_count() == 6
    assert ingested.summary["files_not_read"]["test_allmetadata_json"] == ["test_label.txt"]


def test_unknown_fields_are_reported_and_absent_user_columns_are_null(tmp_path: Path) -> None:
    layout = build("B")
    for record in layout.train.records["text"]:
        record["Views"] = "9"
    for part in layout.parts:
        for record in part.records["user"]:
            del record["timezone_timezone_id"], record["canbuypro"]
    ingested = read(layout, tmp_path)
    files = ingested.summary["files"]
    assert files["train_allmetadata_json/train_text.json"]["ignored_fields"] == ["Views"]
    assert files["train_allmetadata_json/train_user_data.json"]["absent_fields"] == ["canbuypro", "timezone_id"]
    assert ingested.posts["timezone_id"].null_count() == ingested.posts["can_buy_pro"].null_count() == 18


def test_columnar_rows_may_be_listed_in_any_order(tmp_path: Path) -> None:
    layout = build("B")
    plain = read(layout, tmp_path)
    path = layout.path(tmp_path, "train", "user")
    content = read_json(path)
    content["photo_count"] = dict(reversed(content["photo_count"].items()))
    path.write_text(json.dumps(content))
    assert ingest(tmp_path).posts.equals(plain.posts)


IMPLAUSIBLE: list[tuple[str, str, Any, str, Any, str]] = [
    # role, field, published value, column of posts, its value then, action
    ("temporalspatial", "Latitude", "91.5", "latitude", None, "set to null"),
    ("temporalspatial", "Longitude", "-180.001", "longitude", None, "set to null"),
    ("temporalspatial", "Longitude", "east", "longitude", None, "set to null"),
    ("temporalspatial", "Latitude", "nan", "latitude", None, "set to null"),
    ("temporalspatial", "Latitude", "1e999", "latitude", None, "set to null"),
    ("temporalspatial", "Geoaccuracy", "99", "geo_accuracy", 0, "set to 0"),
    ("temporalspatial", "Geoaccuracy", "fine", "geo_accuracy", 0, "set to 0"),
    ("additional", "Ispublic", "yes", "is_public", None, "set to null"),
    ("user", "photo_count", "-3", "photo_count", None, "set to null"),
    ("user", "photo_count", "2.5", "photo_count", None, "set to null"),
    ("user", "photo_count", "many", "photo_count", None, "set to null"),
    ("user", "ispro", 2, "is_pro", None, "set to null"),
    ("user", "photo_firstdate", "-5", "first_photo_at", None, "set to null"),
    ("user", "photo_firstdate", 99999999999, "first_photo_at", None, "set to null"),
    ("user", "photo_firstdatetaken", "0000-00-00 00:00:00", "first_taken_at", None, "set to null"),
    ("user", "timezone_offset", "+25:00", "timezone_offset", None, "set to null"),
    ("user", "timezone_offset", "west", "timezone_offset", None, "set to null"),
    ("user", "timezone_offset", "1234", "timezone_offset", None, "set to null"),
    ("text", "Title", "a\x00b", "title", "a\ufffdb", "replaced by U+FFFD"),
    ("text", "Alltags", "a\ud800b \U0001f600", "tags", "a\ufffdb \U0001f600", "replaced by U+FFFD"),
    ("category", "Concept", "c\x00", "concept", "Animal/kind 2/c\ufffd", "replaced by U+FFFD"),
]


@pytest.fixture(scope="module")
def plausible(tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    return read(build("B"), tmp_path_factory.mktemp("plausible"))


@pytest.mark.parametrize("case", IMPLAUSIBLE, ids=lambda case: f"{case[1]}-{case[2]}")
def test_implausible_values_are_set_aside(
    tmp_path: Path, plausible: Ingested, case: tuple[str, str, Any, str, Any, str]
) -> None:
    role, name, value, column, then, action = case
    layout = build("B")
    layout.train.records[role][5][name] = value
    ingested = read(layout, tmp_path)
    check_table(ingested.quarantine, QUARANTINE)
    assert quarantined(ingested) == {(layout.path(tmp_path, "train", role).name, 5, name, action)}
    assert ingested.quarantine["pid"].to_list() == ["5035"]
    assert post(ingested, 5) == {**post(plausible, 5), column: then}
    rest = pl.col("pid") != "5035"
    assert ingested.posts.filter(rest).equals(plausible.posts.filter(rest))
    assert ingested.summary["quarantine"]["values"] == 1


@pytest.mark.parametrize("value", ["-86400", "4102444801", 10**15])
def test_an_implausible_date_becomes_the_median_of_its_split(tmp_path: Path, value: Any) -> None:
    layout = build("B", train=12)
    layout.train.records["temporalspatial"][0]["Postdate"] = value
    ingested = read(layout, tmp_path)
    assert post(ingested, 0)["posted_at"] == datetime.fromtimestamp(1_430_000_000 + 6 * 86_400, UTC)
    assert quarantined(ingested) == {
        ("train_temporalspatial_information.json", 0, "Postdate", "set to the median date of the train split")
    }


@pytest.mark.parametrize(
    "text", ["1,2,3", vector(3, 398), vector(3, 398) + ",nan", vector(3, 398) + ",x", vector(3, 398) + ",1e60"]
)
def test_an_unusable_vector_is_set_aside_once_a_user(tmp_path: Path, text: str) -> None:
    layout = build("A")
    for record in layout.train.records["user"][1::3]:
        record["user_description"] = text
    ingested = read(layout, tmp_path)
    users = {row["uid"]: row for row in ingested.users.iter_rows(named=True)}
    assert users["71@N01"]["description_vector"] is None
    assert len(users["72@N02"]["description_vector"]) == 399
    assert quarantined(ingested) == {("train_user_data.json", 1, "user_description", "set to null")}


def test_one_odd_description_does_not_change_the_form(tmp_path: Path) -> None:
    for form, text in (("A", "1,2,3"), ("B", vector(5, 399))):
        layout = build("A" if form == "A" else "B")
        layout.train.records["user"][0]["user_description"] = text
        ingested = read(layout, tmp_path / form)
        assert f"form {form}" in ingested.summary["files"]["train_allmetadata_json/train_user_data.json"]["layout"]
        assert post(ingested, 0)["user_description"] == (None if form == "A" else text)
        assert len(ingested.quarantine) == (1 if form == "A" else 0)


@pytest.mark.parametrize(
    ("value", "minutes"),
    [
        *[("-08:00", -480), ("+05:30", 330), ("00:00", 0), ("-00:30", -30), ("-480", -480), (-28800, -480)],
        *[("19800", 330), (0, 0), ("", None), (None, None), ("None", None), ("840", 840), ("60.0", 60)],
    ],
)
def test_timezone_offsets(tmp_path: Path, value: Any, minutes: int | None) -> None:
    layout = build("B")
    layout.train.records["user"][0]["timezone_offset"] = value
    ingested = read(layout, tmp_path)
    assert post(ingested, 0)["timezone_offset"] == minutes
    assert ingested.quarantine.is_empty()


def test_missing_values_are_null_or_empty_and_not_quarantined(tmp_path: Path) -> None:
    layout = build("B")
    records = layout.train.records
    records["temporalspatial"][0] |= {"Latitude": "", "Longitude": None, "Geoaccuracy": ""}
    records["text"][0] |= {"Title": None, "Alltags": ""}
    records["additional"][0] |= {"Pathalias": "someone", "Ispublic": None}
    records["user"][0] |= {"photo_count": None, "ispro": "", "photo_firstdate": None, "photo_firstdatetaken": "None"}
    records["category"][0] |= {"Category": "", "Subcategory": None}
    ingested = read(layout, tmp_path)
    row = post(ingested, 0)
    assert [row[name] for name in ("latitude", "longitude", "geo_accuracy")] == [None, None, 0]
    assert [row[name] for name in ("title", "tags", "has_path_alias", "is_public")] == ["", "", True, None]
    assert [row[name] for name in ("photo_count", "is_pro", "first_photo_at", "first_taken_at")] == [None] * 4
    assert [row[name] for name in ("category", "subcategory", "concept")] == ["", "/", "//thing 0"]
    assert ingested.summary["empty_class_names"] == {"category": 1, "subcategory": 1, "concept": 0}
    assert ingested.summary["parts"]["train"]["missing_share"]["title"] == pytest.approx(1 / 12, abs=1e-6)
    assert ingested.quarantine.is_empty()


def test_control_characters_and_quotes_stay(tmp_path: Path) -> None:
    layout = build("B")
    text = 'bell \x07 tab \t line \n quote " slash \\ \U0001f1e9\U0001f1ea \u200d \ufeff'
    layout.train.records["text"][2]["Title"] = text
    ingested = read(layout, tmp_path)
    assert post(ingested, 2)["title"] == text
    assert ingested.quarantine.is_empty()


@pytest.mark.parametrize(
    ("published", "text"),
    [
        ("mo<b>re</b>", "more"),
        ("one<br/>two<p>three</p>", "one two three"),
        ("a &lt;b&gt; &amp;amp; c", "a <b> &amp; c"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("<script>bad()</script>ok<!-- hidden -->", "ok"),
        ("  \n ", None),
        ("<br>", None),
        ("<A HREF='http://x/?a=1&amp;b'>link</A>", "link"),
    ],
)
def test_html_becomes_text(published: str, text: str | None) -> None:
    assert strip_html(pl.Series([published, None], dtype=pl.String)).to_list() == [text, None]


def test_summary_counts(tmp_path: Path) -> None:
    layout = build("B", train=12, test=6)
    layout.test.records["category"][0]["Concept"] = "new"  # type: ignore[union-attr]
    summary = read(layout, tmp_path).summary
    assert summary["parts"]["train"]["posts"] == 12
    assert summary["parts"]["test"]["users"] == 3
    assert summary["parts"]["train"]["classes"]["category"] == 2
    assert summary["unseen_in_training"]["share_of_test_posts_by_unseen_users"] == pytest.approx(4 / 6, abs=1e-6)
    assert summary["unseen_in_training"]["classes"] == {"category": 0, "subcategory": 0, "concept": 1}
    assert (summary["label"]["min"], summary["label"]["max"]) == (1.25, 6.75)
    assert summary["label"]["mean"] == pytest.approx(4.0)
    assert summary["label"]["clipped"] == 0
    assert summary["parts"]["train"]["from"] == "2015-04-25T22:13:20+00:00"


def test_tiny_demo(tiny_dataset: Any) -> None:
    ingested = ingest(tiny_dataset.root)
    assert len(ingested.posts) == 300
    assert ingested.quarantine.is_empty()
    assert ingested.posts.filter(split="train")["label"].null_count() == 0
    assert ingested.posts.filter(split="test")["label"].null_count() == ingested.summary["parts"]["test"]["posts"]


def test_stage_writes_equal_bytes_twice(tmp_path: Path) -> None:
    root = build("A").write(tmp_path / "root")
    contents = []
    for attempt in ("first", "second"):
        folder = tmp_path / attempt
        folder.mkdir()
        names = {name: folder / f"{name}.parquet" for name in ("posts", "users", "quarantine")}
        write_profile(folder)
        stage.main(stage_flags("ingest", folder, root=root, **names, summary="r.json", resources="c.json"))
        contents.append([path.read_bytes() for path in (*names.values(), folder / "r.json")])
        assert orjson.loads((folder / "c.json").read_bytes())["stage"] == "ingest"
    assert contents[0] == contents[1]
