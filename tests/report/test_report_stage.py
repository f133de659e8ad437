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
from ruamel.yaml import YAML

from popularity.core import paths
from popularity.core.atomic import write_json
from popularity.core.contracts import PREDICTIONS
from popularity.core.errors import ContractError
from popularity.evaluation.scores import collect
from popularity.report import head, model_card
from popularity.report.page import SECTIONS
from tests.conftest import Dataset
from tests.report.small_run import DATASET, HOSTILE, HOSTILE_CLASS, SHOWN, SmallRun, make_run, resolved
from tests.repository import PAIR, STAGES


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


def test_hostile_text_is_escaped(page: str, card: str) -> None:
    assert "<script" not in page
    assert html.escape(HOSTILE[:60]).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page
    assert HOSTILE_CLASS in words(section(page, "prototypes"))
    assert HOSTILE_CLASS[:25] + "…" in words(section(page, "prototypes"))
    assert "onerror" in page
    assert "</style><b>" not in page
    assert re.findall(r"<[a-z/][^>]*>", card) == ["<the code revision above>"]


def test_the_class_of_a_table_row_cannot_break_the_card(small_run: SmallRun, tmp_path: Path) -> None:
    """A first-level class named with pipes, in the table of subgroups."""
    run = small_run.copy(tmp_path / "run")
    groups = run.folder / paths.SCORES_BY_GROUP
    groups.write_text(groups.read_text(encoding="utf-8").replace(",Fashion,", ",Fa|sh\\*<i>,"), encoding="utf-8")
    _, card = run.write(tmp_path)
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert any("Fa" in row for row in rows)
    for table in re.findall(r"(?:^\|.*\n)+", card, flags=re.MULTILINE):
        widths = {len(re.split(r"(?<!\\)(?:\\\\)*\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
    assert "<i>" not in card


def test_the_head_and_the_scores_say_what_is_promised(page: str, card: str, small_run: SmallRun) -> None:
    promise = pl.read_csv(small_run.folder / paths.PROMISE)
    row = promise.row(by_predicate=(pl.col("part") == "test") & (pl.col("metric") == "mae"), named=True)
    promised = f"MAE {row['promise']:.3f} [{row['low']:.3f}, {row['high']:.3f}] for the test part"
    for text in (words(page.split("<main>", maxsplit=1)[0]), card.replace("\\", "")):
        assert promised in text
        assert "The level of the test part is not known" in text
    assert "Promise with a 90 % interval" in words(section(page, "scores"))


def test_scores_are_those_of_evaluate(small_run: SmallRun, page: str, card: str) -> None:
    metrics = small_run.json(paths.METRICS)
    for text in (words(section(page, "scores")), card):
        for scheme, models in metrics.items():
            for model, values in models.items():
                row = re.search(
                    rf"{scheme} (?:\| )?{model.replace('_', chr(92) + chr(92) + '?_')} (?:\| )?[\d,]+ .*?\]", text
                )
                assert row, (scheme, model)
                if values["src"] is not None:
                    assert f"{values['src']:.3f}".replace("-", "−") in row[0]
    assert f"{metrics['holdout']['stack']['src']:.3f}" in words(page.split("<main>", maxsplit=1)[0])


def test_the_splits_are_drawn_and_explained(small_run: SmallRun, page: str) -> None:
    text = words(section(page, "splits"))
    folds = small_run.json(paths.SPLIT_SUMMARY)["schemes"]
    for fold in folds:
        if fold["scheme"] == "holdout":
            counts = " ".join(f"{fold[role]:,}" for role in ("train", "valid", "excluded"))
            assert f"holdout 1 {counts} " in text
    assert re.search(r"holdout no The last posts in time.* quote this score\.", text)
    assert re.search(r"forward yes Earlier splits", text)
    (holdout,) = (fold for fold in folds if fold["scheme"] == "holdout")
    assert f"holdout - {holdout['span_ratio']:.2f} {holdout['days_ahead_median']:.1f} " in text
    assert re.search(r"refit \(test\) - \d+\.\d\d ", text)
    assert "random not scored" in text
    (drawn,) = re.findall(r"<svg.*?</svg>", section(page, "splits"), flags=re.DOTALL)
    assert all(
        f">{name}<" in drawn for name in ("holdout", "forward 1 of 2", "group 1 of 2", "refit", "train", "excluded")
    )


def test_where_the_test_part_is_interleaved_another_scheme_is_to_be_quoted(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copy(tmp_path / "run")
    summary = run.json(paths.SPLIT_SUMMARY) | {"interleaved": True, "quote": "random"}
    (run.folder / paths.SPLIT_SUMMARY).write_text(json.dumps(summary))
    page, card = run.write(tmp_path)
    for text in (words(page.split('id="splits"', maxsplit=1)[0]), card):
        assert "The test posts lie among the training posts in time: quote scheme random instead." in text
    text = words(section(page, "splits"))
    assert re.search(r"holdout no The last posts in time\. .*: quote random\.", text)
    assert re.search(r"random not scored The test posts lie among .*: quote this score\.", text)


def test_the_worst_posts_are_the_worst(small_run: SmallRun, page: str) -> None:
    tables = (small_run.table(name) for name in (paths.POSTS, paths.SPLITS, paths.ENSEMBLE_PREDICTIONS))
    rows = next(one for one in collect(*tables) if one.scheme == "holdout").rows
    errors = rows.select(pl.col("prediction:stack") - pl.col("label")).to_series().sort()
    expected = [*errors.tail(3).reverse(), *errors.head(3)]
    shown = re.findall(r"predicted [\d.−]+ \(([+−][\d.]+)\)", words(section(page, "errors")))
    assert [float(error.replace("−", "-")) for error in shown] == pytest.approx(expected, abs=0.006)
    assert len(re.findall(r"<img", section(page, "errors"))) == 2 * SHOWN["worst_posts"]


def test_modalities_add_up(small_run: SmallRun, page: str) -> None:
    posts = small_run.table(paths.POSTS)
    splits = small_run.table(paths.SPLITS).filter(scheme="holdout", role="valid")
    silent = splits.join(posts.filter(title="", tags=""), on="pid").height
    assert silent > 0
    text = words(section(page, "errors"))
    assert re.search(rf"image and text {splits.height - silent} ", text)
    assert re.search(rf"image only {silent} ", text)


def test_the_gallery_shows_the_nearest_posts_of_the_largest_classes(small_run: SmallRun, page: str) -> None:
    nearest = small_run.table(paths.NEAREST_CLASSES)
    classes = small_run.table(paths.PROTOTYPE_CLASSES).filter(level="subcategory")
    largest = classes.sort("posts", "index", descending=[True, False]).head(SHOWN["gallery_classes"])
    expected = [
        f"{value:.2f}".replace("-", "−")
        for index in largest["index"]
        for head in ("visual", "text")
        for value in nearest.filter(head=head, index=index)["value"].sort(descending=True).head(SHOWN["gallery_posts"])
    ]
    assert re.findall(r"cos ([\d.−]+)", words(section(page, "prototypes"))) == expected


def test_images_are_small_jpegs_of_the_posts(page: str) -> None:
    sources = re.findall(r'<img src="data:image/jpeg;base64,([^"]*)"', page)
    assert len(sources) == 2 * SHOWN["worst_posts"] + 2 * SHOWN["gallery_classes"] * SHOWN["gallery_posts"]
    for source in sources:
        with Image.open(io.BytesIO(base64.b64decode(source))) as image:
            assert max(image.size) <= SHOWN["thumbnail"]
            assert np.ptp(np.asarray(image)) > 0


def test_importance_attention_tuning_and_cost(page: str) -> None:
    assert re.search(r"metadata \(1 feature\).*81\.2 %", words(section(page, "importance")))
    assert "<b>" not in section(page, "importance")
    shares = re.findall(r"\d+ / \d+ / \d+ / \d+", words(section(page, "network")))
    assert len(shares) > 3
    assert all(abs(sum(map(int, share.split(" / "))) - 100) <= 2 for share in shares)
    tuning = words(section(page, "tuning"))
    assert "12 trials (11 complete, 1 pruned)" in tuning
    assert "trial 0, first trial 8, best trial 10" in tuning
    assert re.search(r"sample_weight_half_life_days 365 158 160", tuning)
    assert re.search(r"The first trial and the best trials stack\. .*loss ([\d.−]+ ){6}", tuning)
    assert "train 1.2 s, 120 + 40 MiB" in words(section(page, "run"))


def test_the_members_their_weights_and_the_registered_configurations(page: str, card: str) -> None:
    text = words(section(page, "tuning"))
    assert "Weights were chosen on 2 forward splits" in text
    assert "trial_8 45 % 0.5100 text_model 30 % 0.6600 texts 25 % 0.5200 their mean 0.4321" in text
    assert "predict the forward splits best together: trial_8 and texts." in text
    assert "columns.feature_blocks: metadata, text" in text
    assert re.search(r"texts .*metadata, text.* 0\.4800", text)
    assert re.search(r"- trial\\?_8, weight 45.*: .*`lightgbm\.num_leaves` 15", card)


def test_coverage_is_that_of_evaluate(small_run: SmallRun, page: str, card: str) -> None:
    row = pl.read_csv(small_run.folder / paths.COVERAGE).filter(scheme="holdout", group="unseen", nominal=0.9)
    text = f"{100 * row['coverage'][0]:.1f} %"
    assert re.search(rf"90 % unseen users {row['posts'][0]} {text}", words(section(page, "intervals")))
    assert f"| 90 % | unseen | {text} |" in card


def test_the_users_path_is_not_shown(small_run: SmallRun, page: str, card: str) -> None:
    assert str(small_run.folder) not in page
    assert str(small_run.folder) not in card


ANCHORS = ("scores", "splits", "errors", "intervals", "prototypes", "network", "importance", "tuning", "data", "run")
SECTION_OF = dict(zip(ANCHORS, SECTIONS, strict=True))


def test_the_sections_and_their_order(page: str) -> None:
    assert re.findall(r'<section id="(\w+)"', page) == list(ANCHORS)


@pytest.mark.parametrize("anchor", ANCHORS)
def test_a_section_reads_no_more_than_it_names(small_run: SmallRun, page: str, tmp_path: Path, anchor: str) -> None:
    """In a folder with the files of its READS alone it is the same."""
    alone, _ = small_run.only(tmp_path / "run", SECTION_OF[anchor].reads).write(tmp_path)
    assert section(alone, anchor) == section(page, anchor)


def test_a_missing_file_takes_away_the_sections_that_read_it(small_run: SmallRun, tmp_path: Path) -> None:
    for index, name in enumerate((paths.SCORES, paths.IMAGES, paths.TRAINING_PLOTS, paths.RESOURCES["train"])):
        run = small_run.copy(tmp_path / f"run{index}")
        file = run.folder / name
        shutil.rmtree(file) if file.is_dir() else file.unlink()
        page, _ = run.write(tmp_path)
        expected = [anchor for anchor in ANCHORS if name not in SECTION_OF[anchor].reads]
        assert len(expected) < len(ANCHORS)
        assert re.findall(r'<section id="(\w+)"', page) == expected


def test_an_encoder_of_the_stack_alone_has_its_time_in_the_table(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copy(tmp_path / "run")
    params = YAML().load(run.folder / paths.PARAMS)
    params["encoders"]["stack"]["text"] = "mpnet"
    params["embed_text"]["mpnet"] = dict(params["embed_text"][PAIR["text"]], model="all-mpnet-base-v2")
    YAML().dump(params, run.folder / paths.PARAMS)
    record = {"stage": "embed_text@mpnet", "seconds": 77.0, "peak_mib": 120, "largest_child_mib": 0}
    write_json(run.folder / "reports/resources/embed_text_mpnet.json", record)
    page, _ = run.write(tmp_path)
    assert "77.0 s" in section(page, "run")
    assert "embed_text@mpnet" in section(page, "run")


def test_the_stage_depends_on_what_it_reads() -> None:
    """The data among the deps of stage `report` are the files that the page and the card name."""
    stage = STAGES["report"]
    deps = {dep for dep in stage["deps"] if not dep.startswith(("src/", "stages/"))}
    named = {path for one in SECTIONS for path in one.reads} | {*head.READS, *model_card.READS}
    assert deps == set(map(resolved, named))
    assert stage["params"] == [{paths.PARAMS: None}]


def test_a_folder_of_parameters_alone_gives_a_page_without_sections(small_run: SmallRun, tmp_path: Path) -> None:
    page, card = small_run.only(tmp_path / "run", ()).write(tmp_path)
    assert "<section" not in page
    for text in (page, card):
        assert "no score on posts that were kept out of every choice" in text
    assert ", weight " not in card


def test_a_search_of_no_trials_is_no_search(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copy(tmp_path / "run")
    trials, study = run.folder / paths.TUNING_TRIALS, run.folder / paths.TUNING_STUDY
    trials.write_text(trials.read_text().splitlines()[0] + "\n")
    study.write_text(json.dumps(run.json(paths.TUNING_STUDY) | {"best": None, "members": [], "importance": {}}))
    page, _ = run.write(tmp_path)
    assert "Members of the ensemble" in section(page, "tuning")
    assert "Search:" not in section(page, "tuning")


def test_a_data_set_without_test_part(tiny_dataset: Dataset, tmp_path: Path) -> None:
    run = make_run(tiny_dataset.root, tmp_path / "run", test=False)
    page, card = run.write(tmp_path)
    assert "no test part" in words(section(page, "data"))
    assert "no test part" in card


def test_a_data_set_without_images(tiny_dataset: Dataset, tmp_path: Path) -> None:
    run = make_run(tiny_dataset.root, tmp_path / "run", with_images=False)
    page, _ = run.write(tmp_path)
    assert "<img" not in page
    assert "no image" in section(page, "errors")
    assert "Attention" not in section(page, "network")
    assert re.search(r"neither \d+ ", words(section(page, "errors")))


def test_without_scored_posts_of_the_holdout_there_is_no_section_of_errors(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copy(tmp_path / "run")
    run.table(paths.ENSEMBLE_PREDICTIONS).filter(pl.col("scheme") != "holdout").write_parquet(
        run.folder / paths.ENSEMBLE_PREDICTIONS
    )
    for name in (paths.SCORES, paths.SCORES_BY_GROUP):
        pl.read_csv(run.folder / name).filter(pl.col("scheme") != "holdout").write_csv(run.folder / name)
    page, card = run.write(tmp_path)
    assert 'id="errors"' not in page
    assert "no score on posts that were kept out of every choice" in page
    assert "no score on posts that were kept out of every choice" in card


def test_a_damaged_image_is_left_out(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copy(tmp_path / "run")
    shard = run.folder / DATASET / "train_images.tar"
    shard.write_bytes(bytes(shard.stat().st_size))
    page, _ = run.write(tmp_path)
    assert "<img" in section(page, "prototypes")  # posts of the test part
    assert "<img" not in section(page, "errors")
    assert "no image" in section(page, "errors")


def test_a_table_of_another_shape_is_refused(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copy(tmp_path / "run")
    file = run.folder / paths.ENSEMBLE_PREDICTIONS
    run.table(paths.ENSEMBLE_PREDICTIONS).drop("error_scale").write_parquet(file)
    with pytest.raises(ContractError, match="predictions: expected columns"):
        run.write(tmp_path)
    assert not (tmp_path / "report.html").exists()
    assert PREDICTIONS.columns["error_scale"].nullable


def test_what_is_counted_has_its_name(small_run: SmallRun, tmp_path: Path) -> None:
    """A table of one's own counts what its column says."""
    own = small_run.copy(tmp_path / "own")
    params = own.folder / paths.PARAMS
    text = params.read_text(encoding="utf-8")
    assert "    count: ''" in text
    params.write_text(text.replace("    count: ''", "    count: Likes | all"), encoding="utf-8")
    page, card = own.write(tmp_path)
    assert "log2(Likes | all + 1)" in page
    assert "log2(Likes \\| all + 1)" in card
    assert "log2(views" not in page + card
    assert "log2 of views" not in page
