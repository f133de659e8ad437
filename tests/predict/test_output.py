"""What is printed and written of predictions."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from popularity.core.errors import DataError
from popularity.predict import Prediction, Request
from popularity.predict.output import LINE_WIDTH, record, summary, text_of, views, write_file

PREDICTION = Prediction(
    pid="a",
    popularity=6.0,
    views=63.0,
    error_scale=1.25,
    intervals={"0.5": (5.0, 7.0), "0.9": (None, None)},
    views_intervals={"0.5": (31.0, 127.0), "0.9": (None, None)},
    nearest={"visual": [{"class": "A/Beach", "name": "beach", "cosine": 0.81234}], "text": []},
    attention_mass={"image": 0.01, "visual": 0.5, "text": 0.49, "other_levels": 0.0},
    attention_weights={"visual": [{"class": "A/Beach", "name": "beach", "weight": 0.25}], "text": []},
    expected_value=5.5,
    shap_by_block={"metadata": 0.75, "image": -0.25},
    shap_by_feature=[{"block": "metadata", "feature": "concept", "value": "A/Beach/" + "x" * 200, "shap_value": 0.5}],
    notes=["no image: predicted from the rest", "unknown user: none given; user fields are empty"],
)
ASIDE = Request(0, {"pid": "bad"}, problem="no date; " + "expected one " * 20)
GOOD = Request(1, {"title": "Sea\nof " + "words " * 40}, pid="a")


def test_text_fits_the_width_and_says_all() -> None:
    text = text_of(GOOD, PREDICTION)
    assert max(map(len, text.splitlines())) <= LINE_WIDTH
    for part in ("6.00", "63", "5.00 to   7.00", "31 to", "too few posts", "beach 0.81", "beach 25%", "+0.75  metadata",
                 "-0.25  image", "concept", "note: no image", "50% on images of classes"):  # fmt: skip
        assert part in text, part
    counted = text_of(GOOD, PREDICTION, "Likes of " + "followers " * 9)
    assert max(map(len, counted.splitlines())) <= LINE_WIDTH
    assert "Likes of followers" in counted
    assert "views" not in counted
    aside = text_of(ASIDE, None)
    assert "set aside: no date" in aside
    assert max(map(len, aside.splitlines())) <= LINE_WIDTH


def test_json_holds_all_of_a_prediction() -> None:
    content = json.loads(json.dumps(record(GOOD, PREDICTION)))
    assert content["row"] == 1
    assert content["intervals"] == {"0.5": [5.0, 7.0], "0.9": [None, None]}
    assert set(content) == {"row", *vars(PREDICTION)}
    assert record(ASIDE, None) == {"row": 0, "pid": "bad", "problem": ASIDE.problem}


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_files_have_a_row_a_post_in_order(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"out.{suffix}"
    write_file(file, [ASIDE, GOOD], {"a": PREDICTION})
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream)) if suffix == "csv" else [json.loads(line) for line in stream]
    assert [str(row["row"]) for row in rows] == ["0", "1"]
    assert [row["pid"] for row in rows] == ["bad", "a"]
    assert rows[0]["problem"] == ASIDE.problem
    assert float(rows[1]["popularity"]) == 6.0
    if suffix == "csv":
        assert (rows[1]["low_50"], rows[1]["views_high_50"], rows[1]["low_90"]) == ("5.0", "127.0", "")
        assert (rows[1]["shap_metadata"], rows[1]["nearest_visual"], rows[0]["popularity"]) == ("0.75", "A/Beach", "")
        assert rows[1]["notes"] == "; ".join(PREDICTION.notes)


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither \.csv nor \.jsonl"):
        write_file(tmp_path / "out.xlsx", [GOOD], {"a": PREDICTION})


def test_summary_counts_what_was_predicted_how() -> None:
    other = replace(PREDICTION, pid="b", popularity=4.0, notes=["no image: gone.jpg is unreadable"])
    aside = [Request(row, {}, problem="no date") for row in range(2, 15)]
    text = summary([GOOD, Request(1, {}, pid="b"), *aside], {"a": PREDICTION, "b": other}, Path("out.csv"))
    assert "2 of 15 posts predicted, 13 set aside; all in out.csv" in text
    assert "mean 5.00, from 4.00 to 6.00" in text
    assert "no image: 2" in text
    assert "unknown user: 1" in text
    assert "row 2 set aside: no date" in text
    assert "... and 3 more" in text


def test_views_are_never_negative() -> None:
    assert [views(popularity) for popularity in (6.0, 0.0, -3.0)] == [63.0, 0.0, 0.0]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-x", "@SUM(A1)", "\t=1"])
def test_no_cell_is_a_formula(tmp_path: Path, text: str) -> None:
    file = tmp_path / "out.csv"
    shap = {"metadata": -0.25}
    changed = replace(PREDICTION, pid=text, notes=[text], shap_by_block=shap, nearest={"visual": [{"class": text}]})
    write_file(file, [Request(0, {"pid": text}, problem=text), Request(1, {}, pid=text)], {text: changed})
    with file.open(encoding="utf-8", newline="") as stream:
        aside, good = csv.DictReader(stream)
    assert (aside["pid"], aside["problem"]) == (f"'{text.strip()}", f"'{text}")
    assert (good["pid"], good["notes"], good["nearest_visual"]) == (f"'{text}",) * 3
    assert good["shap_metadata"] == "-0.25"  # a number is none
