from __future__ import annotations

import csv
import json
from pathlib import Path

import polars as pl
import pytest

from popularity.core.atomic import read_json
from popularity.core.contracts import POSTS, PREDICTIONS, write_table
from popularity.core.errors import ConfigError, ContractError
from stages import submit
from tests.repository import stage_flags
from tests.small_tables import small_posts, small_predictions, small_splits

HOLDOUT = {"bias": 0.1, "mae": 1.5, "mape": None, "src": 0.6}
PARAMS = 'submit:\n  version: VERSION 1.2\n  decimals: 4\n  external_data: "ImageNet weights, naïvely"\n'


def _write(folder: Path, posts: pl.DataFrame, predictions: pl.DataFrame, params: str = PARAMS) -> list[str]:
    write_table(posts, folder / "posts.parquet", POSTS)
    write_table(predictions, folder / "predictions.parquet", PREDICTIONS)
    (folder / "params.yaml").write_text(params, encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps({"holdout": {"stack": HOLDOUT, "constant": {}}}), encoding="utf-8")
    names = {"posts": "posts.parquet", "predictions": "predictions.parquet", "metrics": "metrics.json"}
    return stage_flags("submit", folder, **names)


def _small(test: int = 30) -> tuple[pl.DataFrame, pl.DataFrame]:
    posts = small_posts(test=test)
    return posts, small_predictions(posts, small_splits(posts))


def test_both_forms_hold_every_test_post_in_file_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    posts, predictions = _small()
    submit.main(_write(tmp_path, posts, predictions))
    out = tmp_path / "submissions"
    assert {file.name for file in out.iterdir()} == {"submission.json", "submission.csv", "manifest.json"}
    test = posts.filter(pl.col("split") == "test").sort("source_index")
    assert test["pid"].to_list() != sorted(test["pid"])  # or the order would prove nothing
    means = dict(
        predictions.filter((pl.col("scheme") == "refit") & (pl.col("model") == "stack"))
        .group_by("pid")
        .agg(pl.mean("prediction"))
        .iter_rows()
    )
    expected = [(f"post{pid}", f"{means[pid]:.4f}") for pid in test["pid"]]
    with (out / "submission.csv").open(encoding="utf-8", newline="") as stream:
        rows = [tuple(row) for row in csv.reader(stream)]
    assert rows == [("post_id", "popularity_score"), *expected]
    content = json.loads((out / "submission.json").read_text(encoding="utf-8"), parse_float=str)
    assert list(content) == ["version", "result", "external_data"]
    assert content["version"] == "VERSION 1.2"
    assert content["external_data"] == {"used": "true", "details": "ImageNet weights, naïvely"}
    assert [(row["post_id"], row["popularity_score"]) for row in content["result"]] == expected
    assert str(out / "submission.json") in capsys.readouterr().out


def test_shuffled_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    posts, predictions = _small()
    submit.main(_write(tmp_path, posts, predictions))
    first = [file.read_bytes() for file in sorted((tmp_path / "submissions").iterdir())]
    shuffled = [frame.sample(fraction=1, shuffle=True, seed=3) for frame in (posts, predictions)]
    submit.main(_write(tmp_path, shuffled[0], shuffled[1]))
    assert [file.read_bytes() for file in sorted((tmp_path / "submissions").iterdir())] == first


def test_the_manifest_says_what_was_submitted_and_what_the_model_scored(tmp_path: Path) -> None:
    submit.main(_write(tmp_path, *_small()))
    manifest = read_json(tmp_path / "submissions/manifest.json")
    assert manifest["metrics"] == {"holdout": HOLDOUT}
    assert manifest["params"]["submit"]["external_data"] == "ImageNet weights, naïvely"
    assert set(manifest["inputs"]) == {"posts", "predictions"}


def test_the_encoders_in_use_are_declared(tmp_path: Path) -> None:
    params = """\
submit: {version: VERSION 1.2, decimals: 4, external_data: "Weights of {encoders}"}
encoders:
  network: {image: lite, image_loader: timm_image, text: clip, text_loader: clip_text}
  stack: {image: lite, text: mpnet}
embed_image: {lite: {model: lite0}, unused: {model: other}}
embed_text: {clip: {model: owner/clip}, mpnet: {model: mpnet-base}}
"""
    submit.main(_write(tmp_path, *_small(), params))
    content = read_json(tmp_path / "submissions/submission.json")
    assert content["external_data"]["details"] == "Weights of lite0 and owner/clip and mpnet-base"


def test_no_test_part_leaves_only_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submit.main(_write(tmp_path, *_small()))
    submit.main(_write(tmp_path, *_small(test=0)))
    out = tmp_path / "submissions"
    assert sorted(file.name for file in out.iterdir()) == ["NO_SUBMISSION.txt", "manifest.json"]
    assert "no test split" in (out / "NO_SUBMISSION.txt").read_text()
    assert "no submission" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p, pid: p.filter(pl.col("scheme") != "refit"), "30 posts lack a prediction"),
        (lambda p, pid: p.filter((pl.col("pid") != pid) | (pl.col("model") != "stack")), "1 posts lack a prediction"),
        (
            lambda p, pid: p.filter((pl.col("pid") != pid) | (pl.col("model") != "stack") | (pl.col("seed") != 2)),
            "1 posts are predicted in some seeds only",
        ),
        (
            lambda p, pid: pl.concat(
                [p, p.filter((pl.col("scheme") == "refit") & (pl.col("pid") == pid)).with_columns(pid=pl.lit("x1"))]
            ),
            "1 posts are predicted but not in the test split, for example x1",
        ),
    ],
)
def test_wrong_predictions_keep_the_last_submission(tmp_path: Path, spoil: object, message: str) -> None:
    posts, predictions = _small()
    submit.main(_write(tmp_path, posts, predictions))
    before = (tmp_path / "submissions/submission.csv").read_bytes()
    assert callable(spoil)
    spoiled = spoil(predictions, posts.filter(pl.col("split") == "test")["pid"][3])
    with pytest.raises(ContractError, match=message):
        submit.main(_write(tmp_path, posts, spoiled))
    assert (tmp_path / "submissions/submission.csv").read_bytes() == before
    assert {path.name for path in (tmp_path / "submissions").parent.glob(".*")} == set()


def test_a_test_row_lost_on_the_way_is_an_error(tmp_path: Path) -> None:
    posts, predictions = _small()
    gap = (pl.col("split") == "test") & (pl.col("source_index") == 7)
    lost = posts.filter(gap)["pid"][0]
    with pytest.raises(ContractError, match="without a gap"):
        submit.main(_write(tmp_path, posts.filter(~gap), predictions.filter(pl.col("pid") != lost)))


def test_three_decimals_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"submit\.decimals"):
        submit.main(_write(tmp_path, *_small(), params=PARAMS.replace("decimals: 4", "decimals: 3")))


def test_more_decimals_and_no_external_data(tmp_path: Path) -> None:
    params = "submit:\n  version: VERSION 1.2\n  decimals: 6\n  external_data: ''\n"
    submit.main(_write(tmp_path, *_small(), params=params))
    content = json.loads((tmp_path / "submissions/submission.json").read_text(), parse_float=str)
    assert content["external_data"] == {"used": "false", "details": ""}
    assert {len(row["popularity_score"].split(".")[1]) for row in content["result"]} == {6}
