"""The whole tiny graph on a user's own table without classes: two commands, a prediction, and a changed row."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from popularity.app.answers import Answers
from popularity.app.bodies import Draft, Drafts, Question
from popularity.core import paths
from popularity.core.contracts import CLUSTERS, POSTS, PREDICTIONS, is_unclassified, read_table
from popularity.core.errors import DataError
from popularity.predict import Predictor, Project
from tests.clones import Clone, make_clone, switch_to_tiny
from tests.dataset.tables import shop

pytestmark = pytest.mark.slow
ABOUT_CLASSES = ("category", "subcategory", "concept", "user_subcategory_share")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> tuple[Clone, Path]:
    """A clone whose graph has run on a shop's listings, and their table."""
    folder = tmp_path_factory.mktemp("own")
    table, photos = shop(folder, 330)
    clone = make_clone(folder / "clone", programs)
    switch_to_tiny(clone)
    clone.run("python", "-m", "popularity.dataset", "--table", str(table), "--images", str(photos))
    assert "330 posts" in clone.run("python", "-m", "popularity.dataset_profile").stdout
    clone.run("python", "-m", "popularity.check")
    clone.run("dvc", "repro", "report")
    return clone, table


def test_posts_are_predicted_and_submitted_in_the_order_of_the_table(own: tuple[Clone, Path]) -> None:
    clone, _ = own
    posts = read_table(clone.root / paths.POSTS, POSTS)
    assert is_unclassified(posts)
    predicted = read_table(clone.root / paths.ENSEMBLE_PREDICTIONS, PREDICTIONS).filter(scheme="refit", model="stack")
    assert set(predicted["pid"]) == {f"L{row}" for row in range(320, 330)}
    submitted = pl.read_csv(clone.root / paths.SUBMISSIONS / "submission.csv")
    assert submitted["post_id"].to_list() == [f"postL{row}" for row in range(320, 330)]
    assert clone.run("python", "-m", "popularity.submission").stdout.count("valid: 10 posts") == 2


def test_clusters_stand_in_for_classes_and_features_by_class_are_left_out(own: tuple[Clone, Path]) -> None:
    clone, _ = own
    clusters = read_table(clone.root / paths.PROTOTYPE_CLUSTERS, CLUSTERS)
    assert len(clusters) == 330
    assert clusters["subcategory"].n_unique() > 1
    used = set(pl.read_csv(clone.root / paths.ENSEMBLE_IMPORTANCE)["feature"])
    assert used.isdisjoint(ABOUT_CLASSES)
    page = (clone.root / "reports/report.html").read_text(encoding="utf-8")
    assert "clusters of similar posts" in page
    assert "Popularity is log2(views + 1)" in page


def test_a_new_listing_is_predicted(own: tuple[Clone, Path]) -> None:
    clone, _ = own
    given = ("--title", "brass lamp", "--tags", "lamp home", "--date", "2024-11-01T12:00")
    columns = ("--column", "Price (EUR)=-3.5", "--column", "condition=new")
    printed = clone.run("python", "-m", "popularity.predict", *given, *columns).stdout
    assert "popularity" in printed
    assert "views" in printed
    assert "missing columns" not in printed
    assert "missing columns: Price (EUR), condition" in clone.run("python", "-m", "popularity.predict", *given).stdout


def test_the_page_takes_the_further_columns_that_predict_takes(
    own: tuple[Clone, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    clone, _ = own
    monkeypatch.chdir(clone.root)
    monkeypatch.setenv("POPULARITY_WORKERS", "0")
    answers = Answers(Predictor(Project.at(Path())))
    assert answers.options["columns"] == {"Price (EUR)": [], "condition": ["new", "used"]}
    assert answers.options["counted"] == "views"
    columns = {"Price (EUR)": "-3.5", "condition": "used"}
    draft = Draft(title="brass lamp", date="2024-11-01T12:00", columns=columns)
    found = answers.predict(Question(post=draft)).prediction
    flags = [f"--column={name}={value}" for name, value in columns.items()]
    given = ("--title", draft.title, "--date", draft.date, *flags, "--json")
    printed = json.loads(clone.run("python", "-m", "popularity.predict", *given).stdout)
    assert (found.popularity, found.notes) == (printed["popularity"], printed["notes"])
    assert not any("missing columns" in note for note in found.notes)
    rows = "title,date,Price (EUR),condition\nbrass lamp,2024-11-01T12:00,-3.5,used\n"
    (ranked,) = answers.rank(Drafts(csv=rows)).drafts
    assert ranked.popularity == pytest.approx(found.popularity, abs=1e-3)
    with pytest.raises(DataError, match=r"column price(?s:.*)known are Price \(EUR\), condition"):
        answers.predict(Question(post=draft.model_copy(update={"columns": {"price": "3"}})))


def test_a_changed_row_runs_what_depends_on_it(own: tuple[Clone, Path]) -> None:
    clone, table = own
    before = table.read_bytes()
    table.write_bytes(before.replace(b"L5,5.JPG,", b"L5,5.JPG,old "))
    try:
        status = clone.run("dvc", "status").stdout
    finally:
        table.write_bytes(before)
    assert "ingest:" in status
    assert "index_images:" not in status
    assert "embed_image" not in status
