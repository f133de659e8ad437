"""What must stop the run: one error that names the file, the row, what was expected, and the way out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from popularity.core.errors import DataError
from popularity.dataset import ingest
from popularity.dataset import reading as reading_module
from tests.dataset.layout import Layout, Part, build

Change = Callable[[Layout], None]


def refused(root: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        ingest(root)
    return caught.value


def part_with_tests(layout: Layout) -> Part:
    assert layout.test is not None
    return layout.test


def duplicate_pid(layout: Layout) -> None:
    for rows in layout.train.records.values():
        rows[7]["Pid"] = rows[2]["Pid"]


def pid_in_both_splits(layout: Layout) -> None:
    for rows, train_rows in zip(part_with_tests(layout).records.values(), layout.train.records.values(), strict=True):
        rows[3]["Pid"] = train_rows[2]["Pid"]
    part_with_tests(layout).image_paths[3] = "test/72@N02/5014.jpg"


def unsafe_uid(layout: Layout) -> None:
    for rows in layout.train.records.values():
        rows[4]["Uid"] = "../../etc"


def swap(role: str) -> Change:
    def change(layout: Layout) -> None:
        rows = layout.train.records[role]
        rows[4], rows[5] = rows[5], rows[4]

    return change


def put(role: str, row: int, name: str, value: object) -> Change:
    def change(layout: Layout) -> None:
        layout.train.records[role][row][name] = value

    return change


def drop(role: str) -> Change:
    def change(layout: Layout) -> None:
        del layout.train.records[role][8]

    return change


def drop_last_text(layout: Layout) -> None:
    del layout.train.records["text"][-1]


def drop_field(role: str, name: str) -> Change:
    def change(layout: Layout) -> None:
        for row in layout.train.records[role]:
            del row[name]

    return change


def drop_label(layout: Layout) -> None:
    layout.train.labels.pop()


def add_path(layout: Layout) -> None:
    layout.train.image_paths.append("train/x/y.jpg")


def label(value: str) -> Change:
    def change(layout: Layout) -> None:
        layout.train.labels[6] = value

    return change


def several(name: str, value: object) -> Change:
    def change(layout: Layout) -> None:
        for row in (3, 8):
            layout.train.records["temporalspatial"][row][name] = value

    return change


def counts(layout: Layout) -> None:
    layout.train.labels = ["12", "90817", *(str(number) for number in range(30, 40))]


REFUSED: list[tuple[str, Change, str, int | None, str]] = [
    # name, change, file, row, part of the message
    ("rows lost", drop("text"), "train_text.json", 8, "11 rows, but train_category.json has 12"),
    ("last row lost", drop_last_text, "train_text.json", 11, "11 rows, but train_category.json has 12"),
    ("row of the user file lost", drop("user"), "train_user_data.json", 8, "Uid is '70@N00'"),
    ("label lost", drop_label, "train_label.txt", 11, "expected: 12 rows"),
    ("path added", add_path, "train_img_filepath.txt", 12, "13 rows, but train_category.json has 12"),
    ("pid twice", duplicate_pid, "train_category.json", 7, "Pid 5014 occurs again; its first row is 2"),
    ("pid in both splits", pid_in_both_splits, "test_category.json", 3, "Pid 5014 is also row 2 of the training split"),
    ("rows swapped", swap("additional"), "train_additional_information.json", 4, "expected: '71@N01'"),
    ("user rows swapped", swap("user"), "train_user_data.json", 4, "as in the same row of train_category.json"),
    ("other uid", put("text", 9, "Uid", "1@N1"), "train_text.json", 9, "Uid is '1@N1'"),
    ("other pid", put("temporalspatial", 9, "Pid", "1"), "train_temporalspatial_information.json", 9, "Pid is '1'"),
    ("pid null", put("category", 9, "Pid", None), "train_category.json", 9, "Pid None cannot be used"),
    ("pid empty", put("category", 9, "Pid", ""), "train_category.json", 9, "Pid '' cannot be used"),
    ("uid that leaves the folder", unsafe_uid, "train_category.json", 4, "without '/'"),
    ("label nan", label("nan"), "train_label.txt", 6, "label 'nan' is no finite number"),
    ("label inf", label("-inf"), "train_label.txt", 6, "no finite number"),
    ("label text", label("4,5"), "train_label.txt", 6, "label '4,5'"),
    ("label empty", label(""), "train_label.txt", 6, "label ''"),
    (
        "dates unusable",
        several("Postdate", "yesterday"),
        "train_temporal",
        3,
        "2 of 12 values of Postdate cannot be used",
    ),
    ("label negative", label("-0.5"), "train_label.txt", 6, "label -0.5 cannot be log2(views + 1)\n"),
    ("labels are counts", counts, "train_label.txt", 1, "label 90817 cannot be log2(views + 1); are these raw counts?"),
    ("nested value", put("text", 4, "Alltags", [["a"]]), "train_text.json", 4, 'Alltags is [["a"]]'),
    ("field missing", drop_field("text", "Alltags"), "train_text.json", None, "no row has the field Alltags"),
    ("not a number token", put("temporalspatial", 3, "Latitude", float("nan")), "train_temporal", 3, "NaN is not JSON"),
    (
        "infinity token",
        put("temporalspatial", 3, "Latitude", float("-inf")),
        "train_temporal",
        3,
        "-Infinity is not JSON",
    ),
]


@pytest.mark.parametrize("case", [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
@pytest.mark.parametrize("chunk", [64, 1 << 25])
def test_one_error_names_file_row_and_expectation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: tuple[Change, str, int | None, str], chunk: int
) -> None:
    change, file, row, message = case
    monkeypatch.setattr(reading_module, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(reading_module, "FRAME_ROWS", 1 if chunk == 64 else 8192)
    layout = build("B")
    change(layout)
    error = refused(layout.write(tmp_path))
    assert message in str(error)
    assert file in str(error.file)
    assert error.row == row
    assert error.expected


def test_row_counts_of_form_a(tmp_path: Path) -> None:
    layout = build("A")
    layout.train.records["user"].append(layout.train.records["user"][0])
    error = refused(layout.write(tmp_path))
    assert "13 rows, but train_category.json has 12" in str(error)
    assert Path(str(error.file)).name == "train_user_data.json"


def test_ids_of_a_list_of_users_are_checked_when_there(tmp_path: Path) -> None:
    layout = build("A")
    root = layout.write(tmp_path)
    rows = layout.train.records["user"]
    rows[2], rows[3] = rows[3], rows[2]
    layout.write_text(root, layout.train, "user", json.dumps(rows))
    assert refused(root).row == 2


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        (lambda text: text[:-30], "line 1, column"),
        (lambda text: text.replace('"Title": "Title 4"', '"Title": Title 4'), "line 1, column"),
        (
            lambda text: text.replace("}, {", "},\n{").replace('"Title": "Title 4"', '"Title" "Title 4"'),
            "line 5, column",
        ),
        (lambda text: text[:-1] + ",]", "trailing comma"),
        (lambda text: text + "]", "line 1, column"),
        (lambda _: "", "line 1, column 1"),
        (lambda _: "[]", "holds no rows"),
        (lambda _: "{}", "holds no rows"),
        (lambda _: "42", "the file holds 42"),
        (lambda _: "[1, 2]", "found 1"),
        (lambda _: '{"Uid": ["a"]}', "column 'Uid' is [\"a\"]"),
        (lambda _: '{"Uid": {"0": "a", "1": "b"}, "Pid": {"0": "1"}}', "row '1' is not in all columns"),
        (lambda _: '{"Uid": {"0": "a", "x": "b"}}', "is not in all columns"),
    ],
)
@pytest.mark.parametrize("chunk", [64, 1 << 25])
def test_broken_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[str], str], where: str, chunk: int
) -> None:
    monkeypatch.setattr(reading_module, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(reading_module, "FRAME_ROWS", 1 if chunk == 64 else 8192)
    layout = build("B")
    path = layout.path(layout.write(tmp_path), "train", "text")
    path.write_text(damage(path.read_text()))
    error = refused(tmp_path)
    assert where in str(error)
    assert error.file == path
    assert error.expected


def test_broken_json_names_the_record(tmp_path: Path) -> None:
    layout = build("B")
    path = layout.path(layout.write(tmp_path), "train", "text")
    path.write_text(path.read_text().replace('"Title": "Title 4"', '"Title": Title 4'))
    assert refused(tmp_path).row == 4


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    layout = build("B")
    path = layout.path(layout.write(tmp_path), "train", "text")
    path.write_bytes(path.read_bytes().replace(b"Title 4", b"Title \xff"))
    assert "not UTF-8 at line 1, byte" in str(refused(tmp_path))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("role", ["category", "text", "temporalspatial", "additional", "user", "images"])
def test_missing_file(tmp_path: Path, split: str, role: str) -> None:
    layout = build("B")
    path = layout.path(layout.write(tmp_path), split, role)
    path.unlink()
    error = refused(tmp_path)
    assert path.name in str(error)
    assert "is missing: found" in error.problem
    if role == "user":
        assert f"{split}_userdata.json" in str(error)


def test_missing_labels(tmp_path: Path) -> None:
    build("B").write(tmp_path)
    (tmp_path / "train_allmetadata_json" / "train_label.txt").unlink()
    assert "train_label.txt is missing" in str(refused(tmp_path))


def test_unknown_layout(tmp_path: Path) -> None:
    assert "no such folder" in str(refused(tmp_path / "nowhere"))
    assert "an empty folder" in str(refused(tmp_path))
    (tmp_path / "train.csv").touch()
    error = refused(tmp_path)
    assert "found train.csv" in str(error)
    assert "train_allmetadata_json" in str(error.expected)
    build("B").write(tmp_path)
    shutil.rmtree(tmp_path / "train_allmetadata_json")
    assert "test_allmetadata_json, train.csv" in str(refused(tmp_path))


def test_user_file_without_any_known_column(tmp_path: Path) -> None:
    layout = build("B")
    layout.train.records["user"] = [{"colour": "red"} for _ in layout.train.records["user"]]
    error = refused(layout.write(tmp_path))
    assert "timezone_id or timezone_timezone_id" in str(error)
