"""The folds, intervals and tables of all benchmarks, and benchmarks.peers, leaks and coverage."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from scipy.stats import binomtest, spearmanr

from benchmarks import leaks
from benchmarks.coverage import (
    INFINITE,
    INSIDE,
    LESS,
    MORE,
    Group,
    Measured,
    binomial_interval,
    clustered_variance,
    coverage_at,
    verdict,
)
from benchmarks.leaks import HONEST, PRACTICES, cases, measure, shifted_join
from benchmarks.peers import PEERS, Recipe, TextModel, columns_of, standardised
from benchmarks.systems import (
    Estimate,
    FoldData,
    Metric,
    Project,
    Scored,
    compare,
    ours,
    paired_interval,
)
from benchmarks.tables import signed_interval, text_table, write_csv
from benchmarks.tables import verdict as verdict_of
from popularity.core.arrays import Float64Array
from popularity.core.contracts import TIME_SCHEMES
from popularity.core.errors import ContractError, DataError
from popularity.evaluation.conformal import calibrate
from tests.benchmarks.test_compare import write_project
from tests.encoders.tiny_encoders import save_bert, text_params
from tests.stack.small_stack import STACK, Run, posts_with_signal, run_all


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    posts, blocks = posts_with_signal(3, train=500, test=80)
    return run_all(posts, blocks, tmp_path_factory.mktemp("run"), fitted=("forward",))


@pytest.fixture
def project(small: Run, tmp_path: Path) -> Project:
    return Project(
        small.posts, small.splits, small.features, small.blocks, replace(STACK, num_boost_round=30), tmp_path
    )


def first_fold(project: Project, scheme: str = "forward") -> FoldData:
    return next(iter(project.folds([scheme])))


def hidden_labels_moved(project: Project) -> Project:
    """Another project, the labels of all posts that are no train posts of the last forward split drawn anew."""
    *_, last = project.folds(["forward"])
    known = pl.col("pid").is_in(last.fold.train["pid"].to_list())
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


def test_a_fold_has_its_own_rows_and_no_label_of_a_valid_one(project: Project) -> None:
    for data in project.folds(["forward", "group"]):
        fit, scored = (data.posts.filter(pl.col("label").is_not_null() == known) for known in (True, False))
        assert fit["pid"].to_list() == data.fold.train["pid"].to_list()
        assert scored["pid"].to_list() == data.fold.valid["pid"].to_list()
        assert fit["label"].to_list() == data.fold.label.tolist()
        truth = dict(project.posts.select("pid", "label").iter_rows())
        assert project.labels(data).tolist() == [truth[pid] for pid in scored["pid"]]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_predicts_without_labels_of_valid_posts(project: Project, name: str) -> None:
    *_, data = project.folds(["forward"])
    *_, other = hidden_labels_moved(project).folds(["forward"])
    first = quick(name)(data)
    assert first.shape == (data.fold.valid.height,)
    assert np.ptp(first) > 0
    assert first.tolist() == quick(name)(other).tolist()


def test_the_text_model_learns_without_labels_of_valid_posts(project: Project, tmp_path: Path) -> None:
    model = tiny_text_model(tmp_path / "bert")
    *_, data = project.folds(["forward"])
    *_, other = hidden_labels_moved(project).folds(["forward"])
    predicted = model(data)
    assert predicted.tolist() == model(other).tolist()
    assert np.corrcoef(predicted, project.labels(data))[0, 1] > 0.2


def test_columns_of_embeddings_are_the_raw_vectors(project: Project) -> None:
    data = first_fold(project)
    plain, wide = (columns_of(data, text=False, embeddings=chosen) for chosen in (False, True))
    widths = sum(project.blocks.vectors[name].values.shape[1] for name in ("image", "title", "tags"))
    assert wide.numbers.shape[1] - plain.numbers.shape[1] == widths
    assert len(plain.label) == plain.is_fit.sum() == data.fold.train.height


def test_numbers_are_standardised_by_the_train_rows_alone() -> None:
    numbers = np.array([[1.0, np.nan], [3.0, np.nan], [1e6, 2.0]], dtype=np.float32)
    scaled = standardised(numbers, np.array([0, 1]))
    assert scaled[:2, 0].tolist() == pytest.approx([-1, 1], abs=1e-5)
    assert scaled[2, 0] == 5
    assert scaled[:, 1].tolist() == pytest.approx([0, 0, np.log(3)])


def test_ours_is_the_stage(small: Run, project: Project) -> None:
    rows = replace(project, params=STACK).run({"ours": ours}, "forward")
    stage = small.predictions.filter(scheme="forward", model="stack").select("pid", "fold", "prediction")
    both = rows.join(stage, left_on=["pid", "fold"], right_on=["pid", pl.col("fold").cast(pl.Int64)], validate="1:1")
    assert len(both) == len(rows)
    assert both["ours"].to_list() == pytest.approx(both["prediction"].to_list())


def test_compare_scores_every_split_by_itself(project: Project) -> None:
    """A system that adds a constant to the labels of each split has SRC 1 in each, and in their mean."""

    def shifted(data: FoldData) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return project.labels(data) + 10 * data.fold.key.fold

    table = compare(project.run({"ours": ours, "shifted": shifted}, "forward"), "ours", resamples=50)
    found = {(row["metric"], row["system"]): row for row in table.iter_rows(named=True)}
    assert found["src", "shifted"]["score"] == pytest.approx(1.0)
    splits = found["src", "shifted"]["splits"]
    assert found["mae", "shifted"]["score"] == pytest.approx(10 * np.mean(range(splits)))
    assert found["src", "ours"]["difference"] == found["src", "ours"]["low"] == 0
    assert found["src", "shifted"]["low"] > 0
    assert "forward" in TIME_SCHEMES


def test_leaked_labels_gain_in_validation_alone(project: Project) -> None:
    """Labels are random, so a practice that reads them gains in validation alone."""
    labels = pl.Series(np.random.default_rng(1).uniform(1, 16, project.posts.height))
    noise = replace(project, posts=project.posts.with_columns(label=labels))
    table = measure(list(cases(noise)), resamples=20)
    assert table.height == 2 * len(PRACTICES) == 16
    assert table["pseudo-test"].null_count() == 0
    for found in (dict(zip(own["leak"], own.to_dicts(), strict=True)) for own in table.partition_by("metric")):
        assert found[HONEST]["validation gain"] == found[HONEST]["test loss"] == 0
        for leak in (name for name in PRACTICES if name[0] in "15"):
            assert found[leak]["validation gain"] > 0.2, leak
            assert found[leak]["optimism"] > 0.2, leak


def test_the_shifted_join_gives_posts_their_own_labels(project: Project) -> None:
    """Train and valid posts; on the pseudo-test there is no label."""
    for case in cases(project):
        earlier, later = shifted_join(case)
        order = case.earlier.posts.sort("uid", "posted_at", "pid")
        last = order.unique("uid", keep="last")["pid"].to_list()
        for rows, labels in ((earlier.train, earlier.label), (earlier.valid, case.truth)):
            expected = [None if pid in last else label for pid, label in zip(rows["pid"], labels, strict=True)]
            assert rows["previous_label"].to_list() == expected
            assert any(expected)
        assert later.valid["previous_label"].null_count() == later.valid.height


def test_a_practice_reads_no_label_of_the_pseudo_test(project: Project) -> None:
    *_, case = cases(project)
    scored = pl.col("pid").is_in(case.later.fold.valid["pid"].to_list())
    moved = project.posts.with_columns(label=pl.when(scored).then(17 - pl.col("label")).otherwise("label"))
    *_, other = cases(replace(project, posts=moved))
    assert case.test["label"].to_list() != other.test["label"].to_list()
    for name in (HONEST, *[name for name in PRACTICES if name[0] in "1257"]):
        assert PRACTICES[name](case).predictions.tolist() == PRACTICES[name](other).predictions.tolist(), name


def test_one_split_is_too_few_for_leaks(project: Project) -> None:
    single = project.splits.filter((pl.col("scheme") != "forward") | (pl.col("fold") == 0))
    with pytest.raises(DataError, match=r"split\.n_origins"):
        list(cases(replace(project, splits=single)))


def predictions(
    seeds: int = 3, better: float = 0.3
) -> tuple[Float64Array, Float64Array, Float64Array, npt.NDArray[Any]]:
    """Labels, two models of which the second errs more, users of unequal size."""
    rng = np.random.default_rng(0)
    labels = rng.normal(6, 2, 400)
    first, second = (labels[:, None] + scale * rng.normal(size=(400, seeds)) for scale in (1.0, 1.0 + better))
    return labels, first, second, np.array([f"u{int(user)}" for user in rng.exponential(20, 400)])


def difference(
    labels: Float64Array, first: Float64Array, second: Float64Array, users: Any, *, metric: Metric, resamples: int = 400
) -> Estimate:
    return paired_interval(Scored(labels, users), first, second, metric, resamples=resamples)


@pytest.mark.parametrize(("metric", "sign"), [("src", 1), ("mae", -1)])
def test_a_better_model_is_better_and_the_same_one_is_not(metric: Metric, sign: int) -> None:
    labels, first, second, users = predictions()
    found, back, none = (
        difference(labels, *sides, users, metric=metric) for sides in ((first, second), (second, first), (first, first))
    )
    assert found.low is not None
    assert found.high is not None
    assert found.value is not None
    assert min(sign * found.low, sign * found.high) > 0
    assert found.low < found.value < found.high
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))
    assert none == Estimate(0.0, 0.0, 0.0)


def test_the_value_is_the_mean_over_seeds() -> None:
    labels, first, second, users = predictions()
    ranked = [float(spearmanr(labels, side).statistic) for side in (*first.T, *second.T)]
    errors = [float(np.abs(side - labels).mean()) for side in (*first.T, *second.T)]
    scores: dict[Metric, list[float]] = {"src": ranked, "mae": errors}
    for metric, values in scores.items():
        found = difference(labels, first, second, users, metric=metric)
        assert found.value == pytest.approx(np.mean(values[:3]) - np.mean(values[3:]))


def test_the_value_is_the_mean_over_splits() -> None:
    labels, first, second, users = predictions()
    splits = np.repeat([0, 1], [300, 100])
    parts = [slice(0, 300), slice(300, 400)]
    found = paired_interval(Scored(labels, users, splits), first, second, "mae", resamples=50)
    each = [np.abs(first - labels[:, None])[own].mean() - np.abs(second - labels[:, None])[own].mean() for own in parts]
    assert found.value == pytest.approx(np.mean(each))
    assert found.value != pytest.approx(difference(labels, first, second, users, metric="mae", resamples=2).value)
    assert found.low is not None
    assert found.high is not None
    assert found.value is not None
    assert found.low < found.value < found.high


def test_draws_are_of_users_and_of_seeds() -> None:
    """Five copies of each post do not narrow the interval; seeds that disagree widen it."""

    def width(found: Estimate) -> float:
        assert found.low is not None
        assert found.high is not None
        return found.high - found.low

    labels, first, second, users = predictions(seeds=1)
    once = width(difference(labels, first, second, users, metric="mae"))
    often = (np.repeat(part, 5, axis=0) for part in (labels, first, second, users))
    assert width(difference(*often, metric="mae")) == pytest.approx(once)
    assert width(difference(labels, first, second, np.arange(400), metric="mae")) != pytest.approx(once, rel=0.02)
    apart = first + np.array([[-1.0, 0.0, 1.0]]) * np.sign(first - labels[:, None])
    assert width(difference(labels, apart, second, users, metric="mae")) > 2 * once


def test_undefined_differences_are_none() -> None:
    labels, first, second, users = predictions()
    assert difference(labels, first, np.ones_like(second), users, metric="src") == Estimate(None, None, None)
    alone = difference(labels, first, second, np.zeros(400), metric="mae")
    assert alone.value is not None
    assert (alone.low, alone.high) == (None, None)
    with pytest.raises(ContractError, match="3 seeds against 2"):
        difference(labels, first, second[:, :2], users, metric="mae")


HITS = np.array([1.0] * 73 + [0.0] * 27)


def names(count: int, posts: int = 1) -> np.ndarray[tuple[int], np.dtype[np.str_]]:
    return np.repeat([f"user {user}" for user in range(count)], posts)


def test_one_post_a_user_is_the_exact_binomial_interval() -> None:
    variance = clustered_variance(HITS, names(100))
    assert variance == pytest.approx(0.73 * 0.27 / 99)
    exact = binomtest(73, 100).proportion_ci(0.95, method="exact")
    assert binomial_interval(0.73, variance, 100, 0.95) == pytest.approx((exact.low, exact.high), abs=0.001)


def test_posts_that_always_agree_count_as_one() -> None:
    variance = clustered_variance(np.repeat(HITS, 4), names(100, 4))
    assert variance == pytest.approx(clustered_variance(HITS, names(100)))
    mixed = clustered_variance(np.tile(HITS, 4), np.tile(names(100), 4))  # the same posts in another order
    assert mixed == pytest.approx(variance)


def test_all_or_none_inside() -> None:
    assert binomial_interval(1.0, 0.0, 50, 0.95) == pytest.approx((0.025 ** (1 / 50), 1.0))
    assert binomial_interval(1.0, 0.01, 50, 0.95) == binomial_interval(1.0, 0.0, 50, 0.95)
    assert binomial_interval(0.0, 0.0, 50, 0.95) == pytest.approx((0.0, 1 - 0.025 ** (1 / 50)))


def test_verdicts() -> None:
    assert [verdict(0.8, *bounds) for bounds in ((0.7, 0.9), (0.5, 0.79), (0.81, 0.9))] == [INSIDE, LESS, MORE]


def part(rng: np.random.Generator, calibrating: int, noise: float, shift: float) -> Measured:
    """Labels of standard error `noise` around the predictions; the test part's miss the level by `shift`."""
    calibrated = Group(np.abs(rng.normal(0, noise, calibrating)), np.full(calibrating, noise), names(calibrating))
    test = Group(np.abs(rng.normal(shift, noise, 400)), np.full(400, noise), names(200, 2))
    calibration = calibrate(calibrated.error, np.zeros(calibrating), calibrated.scale)
    return Measured(calibration, calibrated, {"any": test})


def test_a_drift_is_found_and_its_absence_too() -> None:
    rng = np.random.default_rng(0)
    same = coverage_at(0.8, [part(rng, 300, 1.0, 0.0), part(rng, 300, 2.0, 0.0)], "any", 0.95)
    assert same["posts"] == 800
    assert same["users"] == 400  # of two data sets: equal names are different people
    assert same["verdict, both"] == INSIDE
    assert same["low, both"] < same["low"] < same["coverage"] < same["high"] < same["high, both"]
    assert same["width"] == pytest.approx(2 * 1.28 * 1.5, rel=0.1)
    drifted = coverage_at(0.8, [part(rng, 300, 1.0, 1.5)], "any", 0.95)
    assert (drifted["verdict"], drifted["verdict, both"]) == (LESS, LESS)


def test_an_infinite_interval_has_no_coverage() -> None:
    rng = np.random.default_rng(0)
    row = coverage_at(0.9, [part(rng, 300, 1.0, 0.0), part(rng, 5, 1.0, 0.0)], "any", 0.95)
    assert row == {"posts": 800, "users": 400, "verdict": INFINITE, "verdict, both": INFINITE}


def test_tables_show_what_the_csv_holds(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"system": "ours", "mae": 1.19355, "posts": 1200},
        {"system": "constant", "mae": None, "verdict": "worse"},
    ]
    lines = text_table(rows, digits=3).splitlines()
    assert lines[0].split() == ["system", "mae", "posts", "verdict"]
    assert lines[1].split() == ["ours", "1.194", "1,200"]
    assert lines[2].split() == ["constant", "worse"]
    write_csv(rows, tmp_path / "new/table.csv")
    table = pl.read_csv(tmp_path / "new/table.csv")
    assert table.to_dicts()[0] == {"system": "ours", "mae": 1.19355, "posts": 1200, "verdict": None}
    assert table["mae"].to_list() == [1.19355, None]
    write_csv(rows, None)
    assert signed_interval(0.04, -0.01, None, digits=2) == "+0.04 [-0.01, -]"
    assert [verdict_of(metric, *bounds) for metric in ("src", "mae") for bounds in ((0.1, 0.2), (-0.1, 0.2))] == [
        "better", "", "worse", "",
    ]  # fmt: skip


def test_the_command_of_leaks_prints_and_keeps_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The practices are measured above; here a table stands for them."""
    row = {"metric": "src", "leak": HONEST, "validation": 0.5, "validation gain": 0.0, "pseudo-test": 0.4}
    monkeypatch.setattr(leaks, "cases", lambda project: [project])
    monkeypatch.setattr(leaks, "measure", lambda *_: pl.DataFrame([row]))
    folder = write_project(tmp_path)
    leaks.main(["--folder", str(folder), "--csv", str(tmp_path / "leaks.csv")])
    assert HONEST in capsys.readouterr().out
    assert pl.read_csv(tmp_path / "leaks.csv").to_dicts() == [row]
