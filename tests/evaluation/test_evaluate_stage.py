from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from dvc_render.vega import VegaRenderer  # type: ignore[import-untyped]

from popularity.core.atomic import write_json
from popularity.core.contracts import FOLDS, POSTS, PREDICTIONS, TRENDS, read_table, write_table
from popularity.core.errors import ContractError
from popularity.evaluation.promise import PROMISES
from popularity.evaluation.scores import SCORES
from stages import evaluate
from tests.repository import stage_flags
from tests.small_tables import SPLIT_SUMMARY, small_posts, small_predictions, small_splits, small_trends, with_forward

# plot -> template, x and the y fields, as declared in dvc.yaml
PLOTS = {
    "predicted_true": ("scatter", "label", ["prediction"]),
    "residual_by_month": ("simple", "year", ["residual", "low", "high"]),
    "importance_by_block": ("bar_horizontal", "share", ["block"]),
    "score_by_scheme": ("bar_horizontal", "src", ["score_of"]),
}


PREDICTED, IMPORTANCE = "data/ensemble/predictions.parquet", "data/ensemble/importance.csv"
TRENDS_FILE = "data/stack/trends.parquet"
TABLES = (("posts", POSTS), ("splits", FOLDS))


def _arguments(folder: Path) -> list[str]:
    posts = small_posts()
    splits = small_splits(posts)
    for name in ("data/interim", "data/stack"):
        (folder / name).mkdir(parents=True)
    write_table(posts, folder / "data/interim/posts.parquet", POSTS)
    write_table(splits, folder / "data/interim/splits.parquet", FOLDS)
    write_table(small_predictions(posts, splits), folder / PREDICTED, PREDICTIONS)
    write_table(small_trends(posts, splits), folder / TRENDS_FILE, TRENDS)
    (folder / IMPORTANCE).write_text("block,feature,gain\nmetadata,hour,6\nimage,pc_0,1\nimage,pc_1,1\n")
    write_json(folder / "reports/split.json", SPLIT_SUMMARY)
    (folder / "params.yaml").write_text("evaluate:\n  seed: 0\n  n_resamples: 40\n  confidence_level: 0.95\n")
    return stage_flags("evaluate", folder)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.*")) if file.is_file()}


def test_writes_everything_and_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main(_arguments(tmp_path))
    reports = tmp_path / "reports"
    metrics = json.loads((reports / "metrics.json").read_text())
    assert list(metrics) == ["group", "holdout"]  # keys are sorted
    assert set(metrics["holdout"]) == {"stack", "metadata", "user_mean", "constant"}
    assert set(metrics["holdout"]["stack"]) == {"src", "mae", "mape", "bias"}
    assert metrics["holdout"]["constant"]["src"] is None
    assert metrics["holdout"]["stack"]["src"] > metrics["holdout"]["user_mean"]["src"]
    scores = pl.read_csv(reports / "scores.csv")
    assert scores["scheme"][0] == "holdout"
    assert set(scores.filter(pl.col("scheme") == "holdout")["used_in_selection"]) == {"no"}
    assert set(scores.filter(pl.col("scheme") == "group")["used_in_selection"]) == {"yes"}
    assert set(pl.read_csv(reports / "scores_by_group.csv")["grouping"]) == {"user", "category", "subcategory", "month"}
    assert json.loads((reports / "resources/evaluate.json").read_text())["stage"] == "evaluate"
    calibration = json.loads((reports / "calibration.json").read_text())
    assert calibration == {"scheme": "forward", "posts": 0, "quantiles": {"0.5": None, "0.8": None, "0.9": None}}
    coverage = pl.read_csv(reports / "coverage.csv")
    assert coverage["coverage"].null_count() == coverage.height == 9
    lines = capsys.readouterr().out.splitlines()
    assert "used in selection" in lines[1]
    assert lines[3].split()[:5] == ["holdout", "no", "stack", "30", str(scores["users"][0])]
    assert any(line.startswith("stack - metadata") for line in lines)
    assert any("shift" in line for line in lines)
    assert any(line.startswith("No intervals: they need predictions of 'forward'") for line in lines)
    assert not any("nan" in line.lower() for line in lines)


def test_the_table_says_how_far_each_split_looks_ahead_and_which_scheme_to_quote(tmp_path: Path) -> None:
    arguments = _arguments(tmp_path)
    evaluate.main(arguments)
    text = (tmp_path / "reports/scores.txt").read_text()
    lines = text.splitlines()
    (holdout,) = (line.split() for line in lines if line.startswith("holdout") and line.endswith("23.0%"))
    assert holdout == ["holdout", "-", "0.40", "20.0", "91.0", "64.0%", "36.0%", "23.0%"]
    assert any(line.startswith("refit (test)") for line in lines)
    assert "valid span / training span = 0.40 (source: test part)." in text
    assert "quote scheme" not in text
    holdout_fold, refit = SPLIT_SUMMARY["schemes"]
    among = {
        **SPLIT_SUMMARY,
        "interleaved": True,
        "quote": "random",
        "wanted_span_ratio": None,
        "wanted_span_from": "split.holdout_fraction",
        "schemes": [{**holdout_fold, "note": "lowered to .40"}, {**refit, "span_ratio": None}],
    }
    write_json(tmp_path / "reports/split.json", among)
    evaluate.main(arguments)
    text = (tmp_path / "reports/scores.txt").read_text()
    assert "The test posts lie among the training posts in time: quote scheme 'random', not 'holdout'" in text
    assert "The length of the splits in time comes from split.holdout_fraction." in text
    assert "holdout 0: lowered to .40." in text
    assert not any(line.startswith("test ") for line in text.splitlines())  # the splits do not resemble it


def test_each_split_of_forward_has_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = _arguments(tmp_path)
    for name, contract in (("splits", FOLDS), ("predictions", PREDICTIONS)):
        path = Path(arguments[arguments.index(f"--{name}") + 1])
        write_table(with_forward(read_table(path, contract)), path, contract)
    _with_trends(tmp_path, apart=3.0)
    evaluate.main(arguments)
    scores = pl.read_csv(tmp_path / "reports/scores.csv", schema_overrides=SCORES)
    by_fold = scores.filter(scheme="forward", model="stack", metric="mae").filter(pl.col("minus").is_null())
    assert by_fold["fold"].to_list() == [None, 0, 1]
    metrics = json.loads((tmp_path / "reports/metrics.json").read_text())
    assert metrics["forward"]["stack"]["mae"] == by_fold["value"][0]
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.split()[:2] == ["forward", "yes"] for line in lines) == 4  # one a model: the means
    assert sum(line.split()[:3] == ["forward", fold, "stack"] for line in lines for fold in "01") == 2
    assert sum(line.split()[:2] == ["forward", "1"] for line in lines) == 7  # four models, mean label, two promises
    promise = pl.read_csv(tmp_path / "reports/promise.csv", schema_overrides=PROMISES)
    assert promise["part"].unique(maintain_order=True).to_list() == ["forward 0", "forward 1", "holdout", "test"]
    assert promise.filter(part="test")["result"].to_list() == [None, None]
    assert promise["members_differ_by"].to_list() == pytest.approx([1.5] * 8)
    numbers = json.loads((tmp_path / "reports/promise.json").read_text())
    row = promise.row(by_predicate=(pl.col("part") == "holdout") & (pl.col("metric") == "mae"), named=True)
    assert numbers["holdout"]["mae"] == {name: row[name] for name in ("promise", "low", "high", "width", "result")}
    assert metrics["holdout"]["stack"]["mae"] == row["result"]
    assert any(line.startswith("The level of the test part is not known: at its dates the members") for line in lines)
    _with_trends(tmp_path, apart=0.1)
    evaluate.main(arguments)
    text = (tmp_path / "reports/scores.txt").read_text()
    assert "agree on the level of the test part: their means at its dates differ by 0.05 label units" in text
    assert "not known" not in text


def _with_trends(folder: Path, apart: float) -> None:
    """Trends of the splits that lie in the folder, whose members differ by `apart` at the last date."""
    posts, splits = (read_table(folder / f"data/interim/{name}.parquet", contract) for name, contract in TABLES)
    write_table(small_trends(posts, splits, apart), folder / TRENDS_FILE, TRENDS)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    arguments = _arguments(tmp_path)
    evaluate.main(arguments)
    reports = tmp_path / "reports"
    first = _contents(reports)
    evaluate.main(arguments)
    second = _contents(reports)
    first.pop("resources/evaluate.json"), second.pop("resources/evaluate.json")
    assert first == second


def test_every_plot_has_its_columns_and_fits_its_template(tmp_path: Path) -> None:
    evaluate.main(_arguments(tmp_path))
    plots = tmp_path / "reports" / "plots"
    assert {file.stem for file in plots.iterdir()} == set(PLOTS)
    for name, (template, x, fields) in PLOTS.items():
        points = pl.read_csv(plots / f"{name}.csv").to_dicts()
        for y in fields:
            rows = [{**point, "rev": "workspace"} for point in points]
            content = VegaRenderer(rows, name, template=template, x=x, y=y).get_filled_template()
            assert content["encoding"]["x"]["field"] == x
            assert content["encoding"]["y"]["field"] == y
    importance = pl.read_csv(plots / "importance_by_block.csv")
    assert importance.rows() == [("metadata", 0.75), ("image", 0.25)]
    months = pl.read_csv(plots / "residual_by_month.csv")
    assert months["posts"].sum() == 30
    assert months["month"].is_sorted()
    assert months["year"].is_between(2016, 2017).all()


def test_a_missing_prediction_leaves_the_reports_as_they_were(tmp_path: Path) -> None:
    arguments = _arguments(tmp_path)
    evaluate.main(arguments)
    before = _contents(tmp_path / "reports")
    predictions = pl.read_parquet(tmp_path / PREDICTED)
    write_table(predictions.filter(pl.col("scheme") != "group").head(-1), tmp_path / PREDICTED, PREDICTIONS)
    with pytest.raises(ContractError, match="1 missing"):
        evaluate.main(arguments)
    assert _contents(tmp_path / "reports") == before


def test_an_importance_file_of_another_shape_is_an_error(tmp_path: Path) -> None:
    arguments = _arguments(tmp_path)
    (tmp_path / IMPORTANCE).write_text("feature,gain\nhour,6\n")
    with pytest.raises(ContractError, match="expected columns"):
        evaluate.main(arguments)


def test_the_scatter_is_a_seeded_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = _arguments(tmp_path)
    evaluate.main(arguments)
    file = tmp_path / "reports" / "plots" / "predicted_true.csv"
    everything = set(pl.read_csv(file).rows())
    assert len(everything) == 30
    monkeypatch.setattr("popularity.evaluation.tables.MAX_SCATTER_ROWS", 10)
    evaluate.main(arguments)
    sample = pl.read_csv(file).rows()
    assert len(sample) == 10
    assert set(sample) < everything


def test_no_class_is_a_formula_in_the_tables_that_people_open(tmp_path: Path) -> None:
    arguments = _arguments(tmp_path)
    posts = read_table(tmp_path / "data/interim/posts.parquet", POSTS)
    renamed = posts.with_columns(pl.concat_str(pl.lit("=1+"), name).alias(name) for name in ("category", "subcategory"))
    write_table(renamed, tmp_path / "data/interim/posts.parquet", POSTS)
    evaluate.main(arguments)
    text = (tmp_path / "reports/scores_by_group.csv").read_text(encoding="utf-8")
    assert "'=1+" in text
    assert ",=1+" not in text
