from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from popularity.errors import ContractError
from popularity.evaluation.scores import collect
from popularity.report.inputs import Sources
from popularity.schema import PREDICTIONS
from tests.conftest import Dataset
from tests.report.small_run import HOSTILE, HOSTILE_CLASS, SHOWN, SmallRun, facts, make_run


class Elements(HTMLParser):
    """Counts elements, gathers attributes and checks that they nest."""

    void = frozenset(("meta", "link", "img", "br"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(written: Path) -> str:
    return (written / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def card(written: Path) -> str:
    return (written / "model_card.md").read_text(encoding="utf-8")


def section(page: str, anchor: str) -> str:
    found = re.search(rf'<section id="{anchor}".*?</section>', page, flags=re.DOTALL)
    assert found, anchor
    return found[0]


def words(markup: str) -> str:
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", markup)))


def test_two_runs_give_the_same_bytes(small_run: SmallRun, written: Path, tmp_path: Path) -> None:
    small_run.write(tmp_path)
    for name in ("report.html", "model_card.md"):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()
    assert (written / "report.html").stat().st_size < 10 * 2**20
    assert json.loads((written / "report.json").read_text())["stage"] == "report"


def test_the_page_loads_nothing_and_nests(page: str) -> None:
    elements = Elements(page)
    assert not elements.open
    assert not {"script", "iframe", "object", "form", "base"} & set(elements.found)
    for name, value in elements.attributes:
        assert not name.startswith("on"), (name, value)
        if name in ("src", "href", "xlink:href", "action"):
            assert value.startswith(("data:", "#")), value
    assert not re.findall(r"url\((?!#)", page)
    anchors = {value[1:] for name, value in elements.attributes if name == "href" and value.startswith("#")}
    ids = [value for name, value in elements.attributes if name == "id"]
    assert anchors <= set(ids)
    assert len(re.findall(r"<nav.*?</nav>", page, flags=re.DOTALL)[0].split("<li>")) - 1 == elements.found["section"]


def test_hostile_words_are_shown_as_words(page: str, card: str) -> None:
    assert "<script" not in page
    assert html.escape(HOSTILE[:60]).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page
    assert HOSTILE_CLASS in words(section(page, "gallery"))
    assert HOSTILE_CLASS[:25] + "…" in words(section(page, "map"))
    assert "onerror" in page
    assert "</style><b>" not in page
    assert re.findall(r"<[a-z/][^>]*>", card) == ["<the code revision above>"]


def test_the_class_of_a_table_row_cannot_break_the_card(small_run: SmallRun, tmp_path: Path) -> None:
    """A first-level class named with pipes, in the table of subgroups."""
    groups = (small_run.folder / "reports/groups.csv").read_text(encoding="utf-8")
    (tmp_path / "groups.csv").write_text(groups.replace(",Fashion,", ",Fa|sh\\*<i>,"), encoding="utf-8")
    _, card = small_run.write(tmp_path, groups=tmp_path / "groups.csv")
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert any("Fa" in row for row in rows)
    for table in re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE):
        widths = {len(re.split(r"(?<!\\)(?:\\\\)*\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
    assert "<i>" not in card


def test_scores_are_those_of_evaluate(small_run: SmallRun, page: str, card: str) -> None:
    metrics = facts(small_run, "metrics")
    for text in (words(section(page, "scores")), card):
        for scheme, models in metrics.items():
            for model, values in models.items():
                row = re.search(
                    rf"{scheme} (?:\| )?{model.replace('_', chr(92) + chr(92) + '?_')} (?:\| )?[\d,]+ .*?\]", text
                )
                assert row, (scheme, model)
                if values["src"] is not None:
                    assert f"{values['src']:.3f}".replace("-", "−") in row[0]
    assert f"{metrics['report']['stack']['src']:.3f}" in words(page.split("<main>", maxsplit=1)[0])
    assert "this is the score to quote" in section(page, "scores")


def test_the_worst_posts_are_the_worst(small_run: SmallRun, page: str) -> None:
    tables = (small_run.table(name) for name in ("posts", "splits", "predictions"))
    rows = next(one for one in collect(*tables) if one.scheme == "report").rows
    errors = rows.select(pl.col("prediction:stack") - pl.col("label")).to_series().sort()
    expected = [*errors.tail(3).reverse(), *errors.head(3)]
    shown = re.findall(r"predicted [\d.−]+ \(([+−][\d.]+)\)", words(section(page, "failures")))
    assert [float(error.replace("−", "-")) for error in shown] == pytest.approx(expected, abs=0.006)
    assert len(re.findall(r"<img", section(page, "failures"))) == 2 * SHOWN["worst_posts"]


def test_modalities_add_up(small_run: SmallRun, page: str) -> None:
    posts = small_run.table("posts")
    splits = small_run.table("splits").filter(scheme="report", role="score")
    silent = splits.join(posts.filter(title="", tags=""), on="pid").height
    assert silent > 0
    text = words(section(page, "failures"))
    assert re.search(rf"picture and text {splits.height - silent} ", text)
    assert re.search(rf"picture only {silent} ", text)


def test_the_gallery_shows_the_nearest_posts_of_the_largest_classes(small_run: SmallRun, page: str) -> None:
    nearest = pl.read_parquet(small_run.folder / "explain/nearest.parquet")
    classes = pl.read_parquet(small_run.folder / "models/prototypes/classes.parquet").filter(level="subcategory")
    largest = classes.sort("posts", "index", descending=[True, False]).head(SHOWN["gallery_classes"])
    expected = [
        f"{value:.2f}".replace("-", "−")
        for index in largest["index"]
        for head in ("visual", "text")
        for value in nearest.filter(head=head, index=index)["value"].sort(descending=True).head(SHOWN["gallery_posts"])
    ]
    assert re.findall(r"cos ([\d.−]+)", words(section(page, "gallery"))) == expected


def test_pictures_are_small_jpegs_of_the_posts(page: str) -> None:
    sources = re.findall(r'<img src="data:image/jpeg;base64,([^"]*)"', page)
    assert len(sources) == 2 * SHOWN["worst_posts"] + 2 * SHOWN["gallery_classes"] * SHOWN["gallery_posts"]
    for source in sources:
        with Image.open(io.BytesIO(base64.b64decode(source))) as picture:
            assert max(picture.size) <= SHOWN["thumbnail"]
            assert np.ptp(np.asarray(picture)) > 0


def test_importance_attention_tuning_and_cost(page: str) -> None:
    assert re.search(r"metadata \(1 column\).*81\.2 %", words(section(page, "importance")))
    assert "<b>" not in section(page, "importance")
    shares = re.findall(r"\d+ / \d+ / \d+ / \d+", words(section(page, "attention")))
    assert len(shares) > 3
    assert all(abs(sum(map(int, share.split(" / "))) - 100) <= 2 for share in shares)
    tuning = words(section(page, "tuning"))
    assert "12 trials (11 complete, 1 pruned)" in tuning
    assert "best (trial 8)" in tuning
    assert re.search(r"half_life_days 365 158", tuning)
    assert re.search(r"The 6 best trials stack\. (trial \d+ ){6}value ([\d.−]+ ){6}", tuning)
    assert "train 1.2 s, 120 MiB + 40" in words(section(page, "cost"))
    assert "- attention" in words(section(page, "ablation"))


def test_the_chosen_configuration_and_why(small_run: SmallRun, page: str, card: str) -> None:
    found = json.loads((small_run.folder / "models/selection/selection.json").read_text(encoding="utf-8"))
    assert (found["chosen"], found["best"]) == ("level", "user")
    text = words(section(page, "selection"))
    assert "Chosen: level." in text
    assert "the best is user" in text
    for one in found["configurations"]:
        figures = [f"{one[name]:.4f}".replace("-", "−") for name in ("src", "mae", "value", "standard_error")]
        chosen = "chosen " if one["name"] == "level" else ""
        assert re.search(rf"{one['name']} {chosen}\S+: .*{' '.join(figures[:3])} \+[\d.]+ ± {figures[3]}", text)
    assert "Scores of each cut, in order of time (posts: 30, 30)" in text
    assert "configuration level, which replaced these keys of section stack: `level` residual." in card


def test_coverage_is_that_of_evaluate(small_run: SmallRun, page: str, card: str) -> None:
    row = pl.read_csv(small_run.folder / "reports/coverage.csv").filter(scheme="report", group="unseen", level=0.9)
    text = f"{100 * row['coverage'][0]:.1f} %"
    assert re.search(rf"90 % unseen users {row['posts'][0]} {text}", words(section(page, "intervals")))
    assert f"| 90 % | unseen | {text} |" in card


def test_the_users_path_is_not_told(small_run: SmallRun, page: str, card: str) -> None:
    assert str(small_run.folder) not in page
    assert str(small_run.folder) not in card


def test_what_is_missing_is_said(small_run: SmallRun, tmp_path: Path) -> None:
    """No coverage, no trial, no ablation, no curve, no manifest."""
    empty = tmp_path / "empty"
    empty.mkdir()
    models = {}
    for name in ("prototypes", "network", "stack"):
        models[name] = shutil.copytree(small_run.folder / "models" / name, tmp_path / name)
        (models[name] / "manifest.json").unlink()
    page, card = small_run.write(
        tmp_path,
        coverage=tmp_path / "none.csv",
        selection=empty,
        tuning=empty,
        ablation=empty,
        curves=empty,
        submissions=empty,
        **models,
    )
    assert "no table of the intervals' coverage" in words(section(page, "intervals"))
    assert "Nothing was chosen" in section(page, "selection")
    assert "Not tuned" in section(page, "tuning")
    assert "python -m benchmarks.ablation" in section(page, "ablation")
    assert "no curves" in section(page, "training")
    assert "carry no manifest" in section(page, "provenance")
    assert "not recorded" in page
    assert "Not tuned: the values below" in card
    assert "Chosen on matched" not in card


def test_a_search_of_no_trials_is_no_search(small_run: SmallRun, tmp_path: Path) -> None:
    tuning = shutil.copytree(small_run.folder / "models/tuning", tmp_path / "tuning")
    header = (tuning / "trials.csv").read_text().splitlines()[0]
    (tuning / "trials.csv").write_text(header + "\n")
    study = json.loads((tuning / "study.json").read_text()) | {"best": None, "default": None, "importance": {}}
    (tuning / "study.json").write_text(json.dumps(study))
    page, _ = small_run.write(tmp_path, tuning=tuning)
    assert "Not tuned" in section(page, "tuning")


def test_a_data_set_without_test_part(tiny_dataset: Dataset, tmp_path: Path) -> None:
    run = make_run(tiny_dataset.root, tmp_path / "run", test=False)
    page, card = run.write(tmp_path)
    assert "no test part" in words(section(page, "quality"))
    assert "no test part" in words(section(page, "drift"))
    assert "no test part" in card


def test_a_data_set_without_pictures(tiny_dataset: Dataset, tmp_path: Path) -> None:
    run = make_run(tiny_dataset.root, tmp_path / "run", pictures=False)
    page, _ = run.write(tmp_path)
    assert "<img" not in page
    assert "no picture" in section(page, "failures")
    assert "No post has attention" in section(page, "attention")
    assert re.search(r"neither \d+ ", words(section(page, "failures")))


def test_without_scored_posts_of_report_the_sections_say_so(small_run: SmallRun, tmp_path: Path) -> None:
    predictions = small_run.table("predictions").filter(pl.col("scheme") != "report")
    predictions.write_parquet(tmp_path / "predictions.parquet")
    changed = {"predictions": tmp_path / "predictions.parquet"}
    for name in ("scores", "groups"):
        table = pl.read_csv(small_run.folder / f"reports/{name}.csv").filter(pl.col("scheme") != "report")
        table.write_csv(tmp_path / f"{name}.csv")
        changed[name] = tmp_path / f"{name}.csv"
    page, card = small_run.write(tmp_path, **changed)
    for anchor in ("predicted", "failures"):
        assert "nothing to show" in section(page, anchor)
    assert "no honest score" in page
    assert "no honest score" in card


def test_a_picture_that_is_damaged_since_is_left_out(small_run: SmallRun, tmp_path: Path) -> None:
    root = shutil.copytree(small_run.folder / "data", tmp_path / "data")
    shard = root / "train_images.tar"
    shard.write_bytes(bytes(shard.stat().st_size))
    page, _ = small_run.write(tmp_path, root=root)
    assert "<img" in section(page, "gallery")  # posts of the test part
    assert "<img" not in section(page, "failures")
    assert "no picture" in section(page, "failures")


def test_a_table_of_another_shape_is_refused(small_run: SmallRun, tmp_path: Path) -> None:
    small_run.table("predictions").drop("scale").write_parquet(tmp_path / "predictions.parquet")
    with pytest.raises(ContractError, match="predictions: expected columns"):
        small_run.write(tmp_path, predictions=tmp_path / "predictions.parquet")
    assert not (tmp_path / "report.html").exists()
    assert PREDICTIONS.columns["scale"].nullable


def test_every_source_is_a_flag_of_the_stage(small_run: SmallRun, tmp_path: Path) -> None:
    flags = {part[2:] for part in small_run.arguments(tmp_path) if part.startswith("--")}
    assert flags == set(Sources.__dataclass_fields__) | {"html", "card", "resources"}
