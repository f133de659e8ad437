"""A user's own table: columns found by name and type, posts that keep their contracts, and faults that are named."""

from __future__ import annotations

import gzip
import json
import shutil
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from popularity.core.config import load_params
from popularity.core.contracts import (
    COLUMNS,
    FURTHER_PICTURES,
    IMAGES,
    POSTS,
    UNCLASSIFIED,
    is_unclassified,
    read_table,
)
from popularity.core.errors import DataError
from popularity.dataset import DatasetParams
from popularity.dataset.__main__ import main
from popularity.dataset.table import IngestedTable, OwnTable, date_of_test_part, ingest_table
from popularity.dataset.table_columns import TableColumns, find_columns, parse_map
from popularity.dataset.table_dates import date_format, refuse_unknown_dates, to_unix
from popularity.dataset.table_file import TableFile
from stages import index_images
from stages import ingest as stage
from tests.dataset.tables import channel, forum, shop, write_csv, write_pictures
from tests.repository import write_profile

COLUMNS_OF_ROWS = TableColumns(id="id", text="text", date="date", count="count")
ROWS = [
    {"id": f"p{row}", "text": f"text {row}", "date": f"2024-01-{row + 1:02d}T10:00", "count": str(row), "size": row}
    for row in range(12)
]


def ingested(file: Path, columns: TableColumns = COLUMNS_OF_ROWS, **changed: Any) -> IngestedTable:
    table = TableFile(file)
    own = {"test": table, "test_from": None, "pictures": False, **changed}
    return ingest_table(OwnTable(table, columns=columns, **own))


def prepared(tmp_path: Path, *argv: str) -> DatasetParams:
    """Section dataset after `make dataset`."""
    params = tmp_path / "params.yaml"
    if not params.exists():
        write_profile(tmp_path)
    main([*argv, "--params", str(params), "--packed", str(tmp_path / "raw")])
    return load_params("dataset", DatasetParams, params)


def run_stage(tmp_path: Path, dataset: DatasetParams) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, Any]]:
    """posts.parquet, columns.parquet and ingest.json of stage `ingest`, after which `index_images` runs too."""
    out = {name: str(tmp_path / f"{name}.parquet") for name in ("posts", "users", "columns", "quarantine")}
    records = ["--summary", str(tmp_path / "ingest.json"), "--resources", str(tmp_path / "resources.json")]
    shared = ["--root", dataset.root, "--params", str(tmp_path / "params.yaml")]
    stage.main([*shared, *records, *(word for name, path in out.items() for word in (f"--{name}", path))])
    images = ["--images", str(tmp_path / "images.parquet"), "--summary", str(tmp_path / "images.json")]
    index_images.main([*shared, *images, "--posts", out["posts"], "--resources", str(tmp_path / "resources.json")])
    posts, columns = read_table(Path(out["posts"]), POSTS), read_table(Path(out["columns"]), COLUMNS)
    return posts, columns, json.loads((tmp_path / "ingest.json").read_text())


def test_a_shops_listings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/data.md, first example."""
    table, photos = shop(tmp_path)
    dataset = prepared(tmp_path, "--table", str(table), "--images", str(photos))
    printed = capsys.readouterr().out
    assert dataset.columns == TableColumns(
        id="listing_id",
        picture="photo",
        text="title",
        tags="tags",
        date="listed_at",
        count="views",
        numbers=("Price (EUR)",),
        categories=("condition",),
    )
    assert (dataset.root, dataset.table, dataset.test_table) == (str(photos), "../listings.csv", "../listings.csv")
    assert 'chair "oak"' in printed  # the third row is shown
    assert "views (50 values)" in printed
    assert "numbers      Price (EUR) (60 values)" in printed  # as MAP calls them
    assert "user         none: each post is its own user" in printed
    assert "favorites: counts what comes after the post" in printed
    posts, columns, summary = run_stage(tmp_path, dataset)
    assert posts.group_by("split").len().sort("split").rows() == [("test", 10), ("train", 50)]
    row = posts.row(by_predicate=pl.col("pid") == "L7", named=True)
    assert (row["label"], row["tags"], row["image_path"]) == (pytest.approx(4.459, abs=1e-3), "rug home", "7.JPG")
    assert (row["uid"], row["title"]) == ("L7", "wool rug, red")
    assert row["posted_at"] == datetime(2024, 1, 7, 5, 30, tzinfo=UTC)
    assert is_unclassified(posts)
    assert columns.filter(pid="L7").rows() == [("L7", 8.0, "used")]
    assert columns.columns == ["pid", "table_price_eur", "table_condition"]
    assert any("features by class are left out" in note for note in summary["table"]["notes"])
    images = json.loads((tmp_path / "images.json").read_text())
    assert images["statuses"]["train"]["ok"] == 50


def test_a_channels_videos(tmp_path: Path) -> None:
    """docs/data.md, second example: test posts by date, thumbnails named by id with another suffix."""
    table, thumbnails = channel(tmp_path)
    dataset = prepared(tmp_path, "--table", str(table), "--images", str(thumbnails), "--test-from", "2024-02-20")
    assert dataset.columns.roles() == {
        "id": "videoId",
        "text": "videoTitle",
        "tags": "hashtags",
        "date": "publishedAt",
        "count": "viewCount",
        "user": "channelId",
        "category": "category",
    }
    assert dataset.columns.numbers == ("seconds",)
    posts, _, summary = run_stage(tmp_path, dataset)
    test = posts.filter(split="test")
    assert len(test) == 10
    assert test["posted_at"].min() == datetime(2024, 2, 20, 9, 30, tzinfo=UTC)
    assert test["label"].is_null().all()
    assert posts.filter(pid="v1")["tags"].item() == "baking cake"
    assert posts.filter(pid="v1")["concept"].item() == "travel/travel/travel"
    assert "the counts of 10 test posts are not used" in summary["table"]["notes"]
    images = json.loads((tmp_path / "images.json").read_text())
    assert images["statuses"]["test"]["ok"] == 10


def test_a_forums_posts(tmp_path: Path) -> None:
    """docs/data.md, third example: no pictures, a second file of test posts, a column that MAP names."""
    table, later = forum(tmp_path)
    given = ["--table", str(table), "--test", str(later), "--map", "id=thread,text=subject,user=author,date=day"]
    dataset = prepared(tmp_path, *given)
    assert dataset.root == str(tmp_path / "raw" / "posts")
    assert dataset.columns.count == "upvotes"
    assert dataset.columns.category == "board"
    posts, _, summary = run_stage(tmp_path, dataset)
    assert posts.filter(split="test").sort("source_index")["pid"].to_list() == [f"t{row}" for row in range(50, 60)]
    assert (posts["image_path"] == "").all()
    assert any("no time of day" in note for note in summary["table"]["notes"])
    assert {"posts.parquet", "later.csv"} <= summary["files"].keys() | {Path(name).name for name in summary["files"]}


def test_a_table_goes_where_it_was_before(tmp_path: Path) -> None:
    """A changed row is read by the stage alone, and an official data set takes the table out of params.yaml."""
    table, photos = shop(tmp_path)
    dataset = prepared(tmp_path, "--table", str(table), "--images", str(photos))
    text = table.read_text(encoding="utf-8").replace("L0,0.JPG,brass lamp", "L0,0.JPG,iron lamp")
    table.write_text(text, encoding="utf-8")
    posts, _, _ = run_stage(tmp_path, dataset)
    assert posts.filter(pid="L0")["title"].item() == "iron lamp"


@pytest.mark.parametrize("form", ["semicolon", "sep", "utf-16", "gzip", "json", "jsonl", "parquet"])
def test_every_form_of_a_file_gives_the_same_posts(form: str, tmp_path: Path) -> None:
    expected = ingested(write_csv(tmp_path / "plain.csv", ROWS)).posts
    file = tmp_path / f"posts.{ {'gzip': 'csv.gz', 'semicolon': 'csv', 'sep': 'csv', 'utf-16': 'csv'}.get(form, form) }"
    if form == "semicolon":
        write_csv(file, ROWS, ";")
    elif form == "sep":
        file.write_text("sep=|\n" + write_csv(tmp_path / "bars.csv", ROWS, "|").read_text(), encoding="utf-8")
    elif form == "utf-16":
        write_csv(file, ROWS, encoding="utf-16")
    elif form == "gzip":
        file.write_bytes(gzip.compress((tmp_path / "plain.csv").read_bytes()))
    elif form == "json":
        file.write_text(json.dumps(ROWS), encoding="utf-8")
    elif form == "jsonl":
        file.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    else:
        dates = pl.col("date").str.to_datetime("%Y-%m-%dT%H:%M"), pl.col("count").cast(pl.Int32)
        pl.DataFrame(ROWS).with_columns(dates).write_parquet(file)
    assert ingested(file).posts.equals(expected)


@pytest.mark.parametrize(
    ("texts", "seconds"),
    [
        (["2016-05-01"] * 3, 1462060800),
        (["2016-05-01T14:00+02:00"], 1462104000),
        (["2016-05-01T12:00:00Z", "2016-05-01T12:00:00.123Z"], 1462104000),
        (["1.5.2016 12:00"], 1462104000),
        (["May 1, 2016"], 1462060800),
        (["01/05/2016", "13/05/2016"], 1462060800),
        (["05/01/2016", "05/13/2016"], 1462060800),
        (["1462104000"], 1462104000),
    ],
)
def test_dates_by_the_column(texts: list[str], seconds: int) -> None:
    column = pl.Series(texts)
    assert to_unix(column, refuse_unknown_dates(column))[0] == seconds


def test_the_first_date_in_another_format_is_named(tmp_path: Path) -> None:
    rows = [{**row, "date": "last spring" if index in (4, 7) else row["date"]} for index, row in enumerate(ROWS)]
    table = write_csv(tmp_path / "posts.csv", rows)
    with pytest.raises(DataError, match=r"'last spring', 'last spring' of date .* such as '2024-01-01T10:00'") as found:
        ingested(table)
    assert (found.value.file, found.value.row) == (table, 4)


def test_dates_that_may_be_two_are_refused() -> None:
    column = pl.Series(["01/02/2016", "03/04/2016"])
    assert date_format(column) is None
    with pytest.raises(DataError, match="may begin with the day or with the month"):
        refuse_unknown_dates(column)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"count": "many"}, r"row 3: count is 'many'(?s:.*)a count, 0 or more"),
        ({"count": "-1"}, "row 3: count is '-1'"),
        ({"id": "p1"}, r"row 3: id 'p1' again, first in row 1"),
        ({"id": ""}, r"row 3: id is ''"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(changed: dict[str, str], message: str, tmp_path: Path) -> None:
    rows = [dict(row) for row in ROWS]
    rows[3] |= changed
    with pytest.raises(DataError, match=message):
        ingested(write_csv(tmp_path / "posts.csv", rows))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,text,date,count\n1,a,2024-01-01,2\n2,b,2024-01-02\n", r"row 1: line 3 has 3 cells(?s:.*)4, one for each"),
        ('id,text,date,count\n1,"Sea,2024-01-01,2\n2,b,2024-01-02,3\n3,c",2024-01-03,4\n', "quote opened in line 2"),
        ("id,id,date\n1,2,3\n", "id twice"),
        ("", "the first line is ''"),
        ("id,text,date,count\n", "holds no rows"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "posts.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        ingested(tmp_path / "posts.csv")


def test_texts_of_several_lines_stay_one_post(tmp_path: Path) -> None:
    rows = [{**row, "text": f"a, b\n{row['id']}, c\n\nd"} for row in ROWS]
    assert ingested(write_csv(tmp_path / "posts.csv", rows)).posts["title"].to_list() == [
        row["text"] for row in sorted(rows, key=lambda row: str(row["id"]))
    ]


def test_rows_before_the_test_part_without_a_count_are_left_out(tmp_path: Path) -> None:
    rows = [dict(row) for row in ROWS]
    rows[2]["count"] = ""
    found = ingested(write_csv(tmp_path / "posts.csv", rows), test_from=date_of_test_part("2024-01-10"))
    assert "p2" not in found.posts["pid"]
    assert len(found.posts) == 11
    assert found.quarantine.select("row", "field", "action").rows() == [(2, "count", "post left out")]


def test_pictures_of_a_table(tmp_path: Path) -> None:
    columns = TableColumns(id="id", picture="picture", date="date", count="count")
    rows = [{**row, "picture": ""} for row in ROWS]
    rows[0]["picture"], rows[1]["picture"], rows[2]["picture"] = "a.jpg;b.jpg", r".\sub\c.png", "d.jpg, e.jpg"
    found = ingested(write_csv(tmp_path / "posts.csv", rows), columns, pictures=True)
    paths = found.posts.sort("posted_at")["image_path"].head(4).to_list()
    assert paths == ["a.jpg\nb.jpg", "sub/c.png", "d.jpg\ne.jpg", ""]
    assert any("2 posts have several pictures" in note for note in found.summary["table"]["notes"])
    rows[5]["picture"] = "https://example.org/a.jpg"
    with pytest.raises(DataError, match=r"row 5: picture is 'https(?s:.*)download the pictures"):
        ingested(write_csv(tmp_path / "posts.csv", rows), columns, pictures=True)


@pytest.mark.parametrize(("several", "usable"), [("first", ["b.jpg"]), ("mean", ["a.jpg", "b.jpg", "c.jpg"])])
def test_the_first_of_several_pictures_or_all(several: str, usable: list[str], tmp_path: Path) -> None:
    """A JSON list of pictures; the second post's first one is missing."""
    write_pictures(tmp_path / "photos", usable)
    rows = [{**row, "picture": ["b.jpg"]} for row in ROWS] + [
        {**ROWS[0], "id": "q", "picture": ["./b.jpg", "a.jpg", "gone.jpg", "c.jpg"]},
        {**ROWS[0], "id": "r", "picture": "b.jpg" if several == "first" else "gone.jpg;c.jpg"},
    ]
    table = tmp_path / "posts.jsonl"
    table.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    params = write_profile(tmp_path)
    params.write_text(params.read_text("utf-8").replace("several_pictures: first", f"several_pictures: {several}"))
    dataset = prepared(tmp_path, "--table", str(table), "--images", str(tmp_path / "photos"))
    assert dataset.several_pictures == several
    run_stage(tmp_path, dataset)
    images = read_table(tmp_path / "images.parquet", IMAGES)
    shards = dict(images.select("pid", "shard").iter_rows())
    assert set(images["status"]) == {"ok"}
    assert (shards["q"], shards["r"]) == ("b.jpg", "b.jpg" if several == "first" else "c.jpg")
    summary = json.loads((tmp_path / "images.json").read_text())["further_pictures"]
    if several == "first":
        assert FURTHER_PICTURES not in images.columns
        assert summary == {}
    else:
        further = dict(images.select("pid", FURTHER_PICTURES).iter_rows())
        assert [picture["shard"] for picture in further["q"]] == ["a.jpg", "c.jpg"]
        assert further["r"] == further["p0"] == []
        assert summary == {"used": 2, "unusable": 2}


def test_pictures_outside_of_their_folder_are_not_read(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["secret.jpg", "photos/a.jpg"])
    rows = [
        {**row, "picture": ["a.jpg", "../secret.jpg", str(tmp_path / "secret.jpg")][index % 3]}
        for index, row in enumerate(ROWS)
    ]
    table = write_csv(tmp_path / "posts.csv", rows)
    with pytest.raises(DataError, match="8 of 12 images of the train part cannot be used"):
        prepared(tmp_path, "--table", str(table), "--images", str(tmp_path / "photos"))


def test_links_out_of_the_folder_are_taken_only_on_demand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path, ["elsewhere/a.jpg", "photos/b.jpg"])
    (tmp_path / "photos/a.jpg").symlink_to(tmp_path / "elsewhere/a.jpg")
    rows = [{**row, "picture": f"{'ab'[index % 2]}.jpg"} for index, row in enumerate(ROWS)]
    given = ("--table", str(write_csv(tmp_path / "posts.csv", rows)), "--images", str(tmp_path / "photos"))
    with pytest.raises(DataError, match=r"6 of 12 images(?s:.*)FOLLOW_LINKS=1 takes them"):
        prepared(tmp_path, *given)
    dataset = prepared(tmp_path, *given, "--follow-links")
    assert "a.jpg" in capsys.readouterr().out
    run_stage(tmp_path, dataset)
    assert set(read_table(tmp_path / "images.parquet", IMAGES)["status"]) == {"ok"}
    params = tmp_path / "params.yaml"
    params.write_text(params.read_text("utf-8").replace("follow_links: true", "follow_links: false"), encoding="utf-8")
    with pytest.raises(DataError, match="links lead out of the folder"):
        run_stage(tmp_path, dataset)


def test_what_only_training_posts_have_is_no_feature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {**row, "reach": row["size"] if index < 9 else "", "count": row["count"] if index < 9 else ""}
        for index, row in enumerate(ROWS)
    ]
    dataset = prepared(tmp_path, "--table", str(write_csv(tmp_path / "posts.csv", rows)))
    assert dataset.columns.numbers == ("size",)
    assert "reach: only training posts have it" in capsys.readouterr().out


def test_what_map_says() -> None:
    assert parse_map("text=caption,user=,numbers=a+b") == {"text": "caption", "user": "", "numbers": ["a", "b"]}
    with pytest.raises(DataError, match="'likes' is nothing that a column can hold"):
        parse_map("likes=count")


def test_map_corrects_what_was_found(tmp_path: Path) -> None:
    table = TableFile(write_csv(tmp_path / "posts.csv", ROWS))
    assert find_columns(table, {}, with_pictures=False).columns.numbers == ("size",)
    (tmp_path / "map.yaml").write_text("count: size\nid: ''\nnumbers: [count]\n", encoding="utf-8")
    found = find_columns(table, parse_map(str(tmp_path / "map.yaml")), with_pictures=False).columns
    assert (found.count, found.id, found.numbers) == ("size", "", ("count",))
    with pytest.raises(DataError, match="no column 'caption'"):
        find_columns(table, {"text": "caption"}, with_pictures=False)
    with pytest.raises(DataError, match="no column holds a count"):
        find_columns(
            TableFile(write_csv(tmp_path / "none.csv", [{"title": "a", "date": "2024-01-01"}])), {}, with_pictures=False
        )


def test_three_levels_of_classes_and_ids_of_the_rows(tmp_path: Path) -> None:
    rows = [
        {"text": f"text {row}", "day": f"2024-01-{row + 1:02d}", "likes": row, "Section": "ab"[row % 2]}
        | {"Sub Category": f"s{row % 3}", "Concept": f"c{row % 4}" if row else ""}
        for row in range(12)
    ]
    table = TableFile(write_csv(tmp_path / "posts.csv", rows))
    columns = find_columns(table, {"date": "day"}, with_pictures=False).columns
    assert (columns.id, columns.category, columns.subcategory, columns.concept) == (
        *("", "Section", "Sub Category", "Concept"),
    )
    posts = ingested(table.path, columns).posts
    assert sorted(posts["pid"]) == sorted(f"posts-{row}" for row in range(12))
    keys = posts.row(by_predicate=pl.col("pid") == "posts-7", named=True)
    assert (keys["category"], keys["subcategory"], keys["concept"]) == ("b", "b/s1", "b/s1/c3")
    assert posts.filter(pid="posts-0")["concept"].item() == "a/s0/"


def test_columns_that_are_not_used_stay_out_of_memory(tmp_path: Path) -> None:
    """Of a table of 60 MB 4,000 ids are read."""
    file = tmp_path / "posts.csv"
    with file.open("w", encoding="utf-8") as stream:
        stream.write("id,body\n")
        stream.writelines(f"p{row},{'x' * 15_000}\n" for row in range(4_000))
    tracemalloc.start()
    try:
        assert TableFile(file).read(["id"])["id"].to_list() == [f"p{row}" for row in range(4_000)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6


def test_one_class_is_none(tmp_path: Path) -> None:
    rows = [{**row, "category": "all"} for row in ROWS]
    columns = TableColumns(id="id", text="text", date="date", count="count", category="category")
    found = ingested(write_csv(tmp_path / "posts.csv", rows), columns)
    assert set(found.posts["subcategory"]) == {UNCLASSIFIED["subcategory"]}
    assert any("the training posts have one class" in note for note in found.summary["table"]["notes"])


def test_a_table_beside_its_pictures(tmp_path: Path) -> None:
    """IMAGES may be the folder of the table, and the folder may be a link."""
    table, photos = shop(tmp_path)
    shutil.move(table, photos / "listings.csv")
    (tmp_path / "link").symlink_to(photos)
    dataset = prepared(tmp_path, "--table", str(tmp_path / "link" / "listings.csv"), "--images", str(tmp_path / "link"))
    assert (dataset.root, dataset.table) == (str(photos), "listings.csv")
    assert len(run_stage(tmp_path, dataset)[0]) == 60
