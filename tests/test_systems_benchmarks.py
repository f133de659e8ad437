"""The benchmarks that run systems by fold: competitors and leaks, on random posts."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.leaks import HONEST, PRACTICES, cases, measure, shifted_join
from benchmarks.peers import PEERS, Recipe, TextModel, columns_of, standardised
from benchmarks.systems import FoldData, Project, compare, ours
from popularity.errors import DataError
from popularity.schema import CUT_SCHEMES
from tests.encoders.tiny_encoders import save_bert, text_params
from tests.stack.small_stack import STACK, Run, posts_with_signal, run_all


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    posts, blocks = posts_with_signal(3, train=500, test=80)
    return run_all(posts, blocks, tmp_path_factory.mktemp("run"), fitted=("matched",))


@pytest.fixture
def project(small: Run, tmp_path: Path) -> Project:
    return Project(small.posts, small.splits, small.features, small.blocks, replace(STACK, max_rounds=30), tmp_path)


def first_fold(project: Project, scheme: str = "matched") -> FoldData:
    return next(iter(project.folds([scheme])))


def hidden_labels_moved(project: Project) -> Project:
    """Another project, the labels of all posts that the last cut of `matched` does not fit on drawn anew."""
    *_, last = project.folds(["matched"])
    known = pl.col("pid").is_in(last.fold.fit["pid"].to_list())
    drawn = pl.Series(np.random.default_rng(0).uniform(1, 16, project.posts.height))
    return replace(project, posts=project.posts.with_columns(label=pl.when(known).then("label").otherwise(drawn)))


def quick(name: str) -> Recipe:
    recipe = PEERS[name]
    assert isinstance(recipe, Recipe)
    return replace(recipe, rounds=8)


def tiny_text_model(folder: Path) -> TextModel:
    save_bert(folder)
    return TextModel(
        epochs=4, batch=32, lr=1e-3, lr_head=1e-2, encoder=text_params(weights=f"path:{folder}", max_tokens=12)
    )


RECIPES = [
    pytest.param(name, marks=pytest.mark.skipif("catboost" in name and find_spec("catboost") is None, reason="extra"))
    for name, peer in PEERS.items()
    if isinstance(peer, Recipe)
]


def test_a_fold_holds_its_own_rows_and_no_label_of_a_scored_one(project: Project) -> None:
    for data in project.folds(["matched", "user"]):
        fit, scored = (data.posts.filter(pl.col("label").is_not_null() == known) for known in (True, False))
        assert fit["pid"].to_list() == data.fold.fit["pid"].to_list()
        assert scored["pid"].to_list() == data.fold.score["pid"].to_list()
        assert fit["label"].to_list() == data.fold.label.tolist()
        truth = dict(project.posts.select("pid", "label").iter_rows())
        assert project.labels(data).tolist() == [truth[pid] for pid in scored["pid"]]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_predicts_without_labels_of_scored_posts(project: Project, name: str) -> None:
    *_, data = project.folds(["matched"])
    *_, other = hidden_labels_moved(project).folds(["matched"])
    first = quick(name)(data)
    assert first.shape == (data.fold.score.height,)
    assert np.ptp(first) > 0
    assert first.tolist() == quick(name)(other).tolist()


def test_the_text_model_learns_and_knows_no_label_of_scored_posts(project: Project, tmp_path: Path) -> None:
    model = tiny_text_model(tmp_path / "bert")
    *_, data = project.folds(["matched"])
    *_, other = hidden_labels_moved(project).folds(["matched"])
    predicted = model(data)
    assert predicted.tolist() == model(other).tolist()
    assert np.corrcoef(predicted, project.labels(data))[0, 1] > 0.2


def test_columns_of_embeddings_are_the_raw_vectors(project: Project) -> None:
    data = first_fold(project)
    plain, wide = (columns_of(data, text=False, embeddings=chosen) for chosen in (False, True))
    widths = sum(project.blocks.vectors[name].values.shape[1] for name in ("image", "title", "tags"))
    assert wide.numbers.shape[1] - plain.numbers.shape[1] == widths
    assert len(plain.label) == plain.is_fit.sum() == data.fold.fit.height


def test_numbers_are_standardised_by_the_fit_rows_alone() -> None:
    numbers = np.array([[1.0, np.nan], [3.0, np.nan], [1e6, 2.0]], dtype=np.float32)
    scaled = standardised(numbers, np.array([0, 1]))
    assert scaled[:2, 0].tolist() == pytest.approx([-1, 1], abs=1e-5)
    assert scaled[2, 0] == 5
    assert scaled[:, 1].tolist() == pytest.approx([0, 0, np.log(3)])


def test_ours_is_the_stage(small: Run, project: Project) -> None:
    rows = replace(project, params=STACK).run({"ours": ours}, "matched")
    stage = small.predictions.filter(scheme="matched", model="stack").select("pid", "fold", "prediction")
    both = rows.join(stage, left_on=["pid", "cut"], right_on=["pid", pl.col("fold").cast(pl.Int64)], validate="1:1")
    assert len(both) == len(rows)
    assert both["ours"].to_list() == pytest.approx(both["prediction"].to_list())


def test_compare_scores_cuts_by_themselves(project: Project) -> None:
    """A system that is right but for a constant of each cut has SRC 1 in each, and in their mean."""

    def shifted(data: FoldData) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return project.labels(data) + 10 * data.fold.key.fold

    table = compare(project.run({"ours": ours, "shifted": shifted}, "matched"), "ours", resamples=50)
    found = {(row["metric"], row["system"]): row for row in table.iter_rows(named=True)}
    assert found["src", "shifted"]["score"] == pytest.approx(1.0)
    cuts = found["src", "shifted"]["cuts"]
    assert found["mae", "shifted"]["score"] == pytest.approx(10 * np.mean(range(cuts)))
    assert found["src", "ours"]["minus ours"] == found["src", "ours"]["low"] == 0
    assert found["src", "shifted"]["low"] > 0
    assert "matched" in CUT_SCHEMES


def test_a_kept_system_is_asked_once_and_again_after_a_change_of_code(small: Run, tmp_path: Path) -> None:
    asked: list[int] = []
    code = tmp_path / "code.py"
    code.write_text("1")

    def system(data: FoldData) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        asked.append(1)
        return np.full(data.fold.score.height, float(len(asked)))

    for name in ("posts", "splits"):
        table = small.posts if name == "posts" else small.splits
        (tmp_path / "data/interim").mkdir(parents=True, exist_ok=True)
        table.write_parquet(tmp_path / f"data/interim/{name}.parquet")
    for name in ("image", "text", "prototype"):
        (tmp_path / "data/embeddings" / name).mkdir(parents=True)
    project = Project(small.posts, small.splits, small.features, small.blocks, STACK, tmp_path)
    data = first_fold(project)
    kept = project.kept("one", system, [code])
    assert kept(data).tolist() == kept(data).tolist() == [1.0] * data.fold.score.height
    code.write_text("2")
    assert project.kept("one", system, [code])(data)[0] == 2


def test_leaked_labels_look_good_and_bring_nothing(project: Project) -> None:
    """Labels without any pattern: whoever sees them claims what the pseudo-test does not bear out."""
    labels = pl.Series(np.random.default_rng(1).uniform(1, 16, project.posts.height))
    noise = replace(project, posts=project.posts.with_columns(label=labels))
    table = measure(list(cases(noise)), resamples=20)
    assert table.height == 2 * len(PRACTICES) == 16
    assert table["pseudo-test"].null_count() == 0
    for found in (dict(zip(own["leak"], own.to_dicts(), strict=True)) for own in table.partition_by("metric")):
        assert found[HONEST]["seems to gain"] == found[HONEST]["loses"] == 0
        for leak in (name for name in PRACTICES if name[0] in "15"):
            assert found[leak]["seems to gain"] > 0.2, leak
            assert found[leak]["overpromises"] > 0.2, leak


def test_the_shifted_join_gives_posts_their_own_labels(project: Project) -> None:
    """Of fit and validating posts; on the pseudo-test there is none to give."""
    for case in cases(project):
        earlier, later = shifted_join(case)
        order = case.earlier.posts.sort("uid", "posted_at", "pid")
        last = order.unique("uid", keep="last")["pid"].to_list()
        for rows, labels in ((earlier.fit, earlier.label), (earlier.score, case.truth)):
            expected = [None if pid in last else label for pid, label in zip(rows["pid"], labels, strict=True)]
            assert rows["previous_label"].to_list() == expected
            assert any(expected)
        assert later.score["previous_label"].null_count() == later.score.height


def test_a_practice_knows_no_label_of_the_pseudo_test(project: Project) -> None:
    *_, case = cases(project)
    scored = pl.col("pid").is_in(case.later.fold.score["pid"].to_list())
    moved = project.posts.with_columns(label=pl.when(scored).then(17 - pl.col("label")).otherwise("label"))
    *_, other = cases(replace(project, posts=moved))
    assert case.test["label"].to_list() != other.test["label"].to_list()
    for name in (HONEST, *[name for name in PRACTICES if name[0] in "1257"]):
        assert PRACTICES[name](case).predictions.tolist() == PRACTICES[name](other).predictions.tolist(), name


def test_one_cut_is_too_few_for_leaks(project: Project) -> None:
    single = project.splits.filter((pl.col("scheme") != "matched") | (pl.col("fold") == 0))
    with pytest.raises(DataError, match=r"split\.cuts"):
        list(cases(replace(project, splits=single)))
