from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from popularity.core.errors import DataError
from popularity.submission.__main__ import main
from popularity.submission.ids import expected_ids
from popularity.submission.validate import read_scores, validate
from popularity.submission.write import SubmitConfig, write_files

PIDS = ["775", "007", "31", "4"]
IDS = [f"post{pid}" for pid in PIDS]
SCORES = ["6.1234", "5.0000", "-0.2500", "7.123456"]
CSV = "post_id,popularity_score\n" + "".join(f"{post},{score}\n" for post, score in zip(IDS, SCORES, strict=True))
JSON = (
    '{"version": "VERSION 1.2", "result": ['
    + ", ".join(
        f'{{"post_id": "{post}", "popularity_score": {score}}}' for post, score in zip(IDS, SCORES, strict=True)
    )
    + '], "external_data": {"used": "false", "details": ""}}'
)


def _folder(root: Path, name: str = "test_category.json", content: Any = None) -> Path:
    folder = root / "test_allmetadata_json"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(
        json.dumps([{"Uid": "1@N1", "Pid": pid} for pid in PIDS] if content is None else content)
    )
    return folder


def _file(root: Path, text: str, suffix: str) -> Path:
    file = root / f"submission{suffix}"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(("text", "suffix"), [(CSV, ".csv"), (JSON, ".json"), (CSV.replace("\n", "\r\n"), ".csv")])
def test_a_valid_file(tmp_path: Path, text: str, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(_file(tmp_path, text, suffix)), str(_folder(tmp_path))])
    assert capsys.readouterr().out == "valid: 4 posts, mean 4.4992\n"


CSV_FAULTS: dict[str, tuple[Callable[[str], str], str]] = {
    "header": (
        lambda t: t.replace("post_id,", "id,"),
        r"submission\.csv: header 'id,popularity_score'\n  expected: post_id,popularity_score",
    ),
    "byte order mark": (lambda t: "\ufeff" + t, r"\.csv: header '.ufeffpost_id,"),
    "empty": (lambda t: "", r"\.csv: header ''"),
    "no rows": (lambda t: t.splitlines()[0], "row 0: 4 expected posts are missing, the first is post775"),
    "cells": (lambda t: t.replace(",5.0000", ""), r"row 1 \(line 3\): 1 cells"),
    "blank line": (lambda t: t.replace("post31", "\npost31"), r"row 2 \(line 4\): 0 cells"),
    "prefix": (lambda t: t.replace("post31", "31"), r'row 2 \(line 4\): post_id "31"\n  expected: "post" \+ Pid'),
    "nan": (lambda t: t.replace("5.0000", "nan"), r"row 1 \(line 3\): popularity_score nan\n  expected: a finite"),
    "infinity": (lambda t: t.replace("5.0000", "-inf"), "a finite number"),
    "overflow": (lambda t: t.replace("5.0000", "1.0000e999"), "a finite number"),
    "word": (lambda t: t.replace("5.0000", "five"), "a finite number"),
    "no score": (lambda t: t.replace("5.0000", ""), "a finite number"),
    "decimals": (lambda t: t.replace("5.0000", "5.125"), r"popularity_score 5.125\n  expected: at least 4 decimals"),
    "integer": (lambda t: t.replace("5.0000", "5"), "at least 4 decimals"),
    "duplicate": (lambda t: t.replace("post31", "post775"), r"row 2 \(line 4\): post775 again, first in row 0"),
    "unknown": (lambda t: t.replace("post31", "post32"), r"row 2 \(line 4\): post32 is not one of the posts"),
    "leading zero": (lambda t: t.replace("post007", "post7"), "post7 is not one of the posts"),
    "missing": (
        lambda t: t.replace("post007,5.0000\n", ""),
        "row 1: 1 expected posts are missing, the first is post007",
    ),
    "extra": (lambda t: t + "post99,1.0000\n", r"row 4 \(line 6\): post99 is not one of the posts"),
    "order": (
        lambda t: t.replace("post31", "x").replace("post007", "post31").replace("x", "post007"),
        r"row 1 \(line 3\): post31 is out of order\n  expected: post007",
    ),
    "quote": (lambda t: t + '"post', "not valid CSV"),
}
JSON_FAULTS: dict[str, tuple[Callable[[str], str], str]] = {
    "broken": (lambda t: t[:-1], "not valid JSON"),
    "deep": (lambda t: "[" * 100_000, "not valid JSON"),
    "list": (lambda t: "[]", "the submission has list"),
    "no version": (lambda t: t.replace('"version": "VERSION 1.2", ', ""), "expected: exactly version, result"),
    "version": (lambda t: t.replace('"VERSION 1.2"', "[]"), "version"),
    "version number": (lambda t: t.replace('"VERSION 1.2"', "1.2"), "version 1.2"),
    "no external_data": (
        lambda t: t.replace(', "external_data": {"used": "false", "details": ""}', ""),
        "exactly version",
    ),
    "external_data": (lambda t: t.replace(', "details": ""', ""), "external_data has used\n.*exactly used, details"),
    "used": (lambda t: t.replace('"used": "false"', '"used": false'), "external_data.used is false"),
    "result": (lambda t: t.replace('"result": [', '"result": {"a": [').replace("], ", "]}, "), "result is dict"),
    "twice": (lambda t: t.replace('"version"', '"version": "VERSION 1.1", "version"'), "a key occurs twice"),
    "text": (lambda t: t.replace("5.0000", '"5.0000"'), r'row 1: popularity_score "5.0000"\n  expected: a number'),
    "null": (lambda t: t.replace("5.0000", "null"), "row 1: popularity_score null"),
    "nan": (lambda t: t.replace("5.0000", "NaN"), "row 1: popularity_score NaN\n  expected: a finite number"),
    "decimals": (lambda t: t.replace("5.0000", "5.0"), "row 1: popularity_score 5.0\n  expected: at least 4 decimals"),
    "key": (lambda t: t.replace('"post_id": "post31"', '"pid": "post31"'), "row 2: a post has pid, popularity_score"),
    "id": (lambda t: t.replace('"post31"', "31"), "row 2: post_id 31"),
    "prefix": (lambda t: t.replace('"post31"', '"Post31"'), 'row 2: post_id "Post31"'),
    "duplicate": (lambda t: t.replace("post31", "post775"), "row 2: post775 again, first in row 0"),
    "empty result": (lambda t: t[: t.index("[") + 1] + t[t.index("]") :], "4 expected posts are missing"),
}


@pytest.mark.parametrize("fault", CSV_FAULTS)
def test_csv_faults(tmp_path: Path, fault: str) -> None:
    spoil, message = CSV_FAULTS[fault]
    assert spoil(CSV) != CSV
    with pytest.raises(DataError, match=message) as caught:
        validate(_file(tmp_path, spoil(CSV), ".csv"), IDS)
    assert str(tmp_path / "submission.csv") in str(caught.value)


@pytest.mark.parametrize("fault", JSON_FAULTS)
def test_json_faults(tmp_path: Path, fault: str) -> None:
    spoil, message = JSON_FAULTS[fault]
    assert spoil(JSON) != JSON
    with pytest.raises(DataError, match=message) as caught:
        validate(_file(tmp_path, spoil(JSON), ".json"), IDS)
    assert str(tmp_path / "submission.json") in str(caught.value)


def test_faults_of_the_file_itself(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown suffix"):
        validate(_file(tmp_path, CSV, ".txt"), IDS)
    with pytest.raises(DataError, match="no such file"):
        validate(tmp_path / "absent.csv", IDS)
    (tmp_path / "latin.csv").write_bytes(CSV.encode() + b"\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        validate(tmp_path / "latin.csv", IDS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("test_tags.json", [{"Pid": "775"}, {"Pid": "007"}, {"Pid": "31"}, {"Pid": "4"}]),
        ("test_category.json", [{"Pid": "775"}, {"Pid": "007"}, {"Pid": 31}, {"Pid": 4}]),
        (
            "test_user_data.json",
            {"Pid": {"0": "775", "1": "007", "2": "31", "3": 4}, "Uid": dict.fromkeys("0123", "1@N1")},
        ),
    ],
)
def test_ids_from_any_file_with_pids(tmp_path: Path, name: str, content: Any) -> None:
    folder = _folder(tmp_path, name, content)
    (folder / "test_additional_information.json").write_text('[{"ispro": "1"}]')  # no Pid: passed over
    assert expected_ids(folder) == IDS


def test_faults_of_the_metadata_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder\n  expected: .*test_allmetadata_json"):
        expected_ids(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no file with Pids"):
        expected_ids(tmp_path / "empty")
    with pytest.raises(DataError, match=r"test_category.json, row 1: Pid None\n  expected: text or an integer"):
        expected_ids(_folder(tmp_path, content=[{"Pid": "4"}, {"Pid": None}]))
    with pytest.raises(DataError, match="row 2: Pid 4 again, first in row 0"):
        expected_ids(_folder(tmp_path, content=[{"Pid": "4"}, {"Pid": "5"}, {"Pid": 4}]))
    (tmp_path / "test_allmetadata_json/test_category.json").write_text("[{")
    with pytest.raises(DataError, match="broken JSON"):
        expected_ids(tmp_path / "test_allmetadata_json")


def test_the_command_exits_with_one_message(tmp_path: Path) -> None:
    folder = _folder(tmp_path)

    def command(text: str) -> subprocess.CompletedProcess[str]:
        file = _file(tmp_path, text, ".csv")
        return subprocess.run(
            [sys.executable, "-m", "popularity.submission", str(file), str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )

    good = command(CSV)
    assert (good.returncode, good.stdout) == (0, "valid: 4 posts, mean 4.4992\n")
    bad = command(CSV.replace("5.0000", "nan"))
    assert bad.returncode == 1
    assert bad.stderr.startswith("error: ")
    assert "Traceback" not in bad.stderr


def test_the_order_is_that_of_ingest(tmp_path: Path) -> None:
    """Columns whose keys are sorted as texts, beside what a Mac leaves behind."""
    pids = [f"p{row:02}" for row in range(12)]
    keys = sorted(range(12), key=str)
    folder = _folder(tmp_path, content={"Pid": {str(row): pids[row] for row in keys}})
    (folder / "._test_category.json").write_bytes(b"\0\5\x16\7")
    assert expected_ids(folder) == [f"post{pid}" for pid in pids]


def test_ids_with_separators_go_through_csv_and_back(tmp_path: Path) -> None:
    ids = [f"post{pid}" for pid in ("a,b", 'a"b', "a;b", " a ", "a\tb", "a\u2028b", "a\x0bb", "'a", "=a", "\u00e9")]
    config = SubmitConfig("VERSION 1.2", 4, "")
    write_files(ids, [float(row) for row in range(len(ids))], config, tmp_path)
    for name in ("submission.csv", "submission.json"):
        assert read_scores(tmp_path / name, ids, in_order=True) == {post: float(row) for row, post in enumerate(ids)}
