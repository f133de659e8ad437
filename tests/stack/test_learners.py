"""The learners: what the inner splits choose, out-of-fold predictions, seeds, contributions, saved models."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import Ridge

from popularity.core import arrays
from popularity.core.errors import ConfigError
from popularity.stack import LinearParams, StackParams, catboost, extra_trees, lightgbm, linear
from popularity.stack.columns import metadata_columns
from popularity.stack.matrix import Matrix
from popularity.stack.sample import Learned, Sample
from popularity.validation.inner_cv import InnerCvParams, InnerSplit, inner_splits, valid_rows
from tests.stack.small_stack import STACK, needs_catboost

TREES = [lightgbm, extra_trees, pytest.param(catboost, marks=needs_catboost)]
LEARNERS = [*TREES, linear]


def problem(n: int, seed: int = 0) -> tuple[Sample, npt.NDArray[np.int64]]:
    """A sample whose rows are in no relation to time, labels that drift with it, and the times."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, 5)).astype(np.float32)
    values[:, 0] = rng.integers(4, size=n)
    values[rng.random(values.shape) < 0.05] = np.nan
    posted_at = rng.permutation(n).astype(np.int64)
    known = np.nan_to_num(values)
    target = 2 * (known[:, 0] == 2) + known[:, 1] + 2 * known[:, 2] * posted_at / n + rng.normal(0, 1, n)
    columns = metadata_columns(["category"], "category") + metadata_columns("abcd", "number")
    matrix = Matrix(values, [f"{row:04d}" for row in range(n)], columns)
    return Sample(matrix, target, rng.uniform(0.5, 1.5, n)), posted_at


def splits_of(posted_at: npt.NDArray[np.int64], params: StackParams) -> list[InnerSplit]:
    return inner_splits(posted_at, params.inner_cv)


def part(sample: Sample, rows: npt.NDArray[np.int64]) -> Sample:
    """The sample with some of its rows."""
    assert sample.weight is not None
    matrix = replace(sample.matrix, values=sample.matrix.values[rows], pids=[sample.matrix.pids[row] for row in rows])
    return Sample(matrix, sample.target[rows], sample.weight[rows])


def slow_learned(learner: ModuleType, sample: Sample, splits: list[InnerSplit], params: StackParams) -> Learned:
    """All rounds on the rows before each slice, one round at a time; the round with the least mean error."""
    own = replace(params, lightgbm=params.extra_trees) if learner is extra_trees else params
    options = lightgbm.lightgbm_params(own, params.seed)
    whole = lightgbm.dataset(sample, options)
    curves = []
    for fit, scored in splits:
        mine, other = part(sample, fit), part(sample, scored)
        if learner is not catboost:
            inner = whole.subset([int(row) for row in fit])  # bins of all train rows, as lgb.cv has them
            model = lgb.train(options, inner, params.num_boost_round)
            each = [
                model.predict(other.matrix.values, num_iteration=end) for end in range(1, params.num_boost_round + 1)
            ]
        else:
            model = learner.fit(mine, params.num_boost_round, params, params.seed)
            pool = catboost._pool(other.matrix)
            each = [model.predict(pool, ntree_end=end) for end in range(1, params.num_boost_round + 1)]
        curves.append((np.array(each), other))
    power = 2 if learner is extra_trees else 1  # the squared error, as its objective
    errors = [np.average(np.abs(each - other.target) ** power, axis=1, weights=other.weight) for each, other in curves]
    best = int(np.argmin(np.mean(errors, axis=0)))
    return Learned(best + 1, np.concatenate([each[best] for each, _ in curves]))


@pytest.mark.parametrize("learner", TREES)
@pytest.mark.parametrize("splits", [1, 3])
def test_rounds_and_predictions_of_the_last_slices_of_time(learner: ModuleType, splits: int) -> None:
    params = replace(STACK, num_boost_round=150, early_stopping_rounds=150, inner_cv=InnerCvParams(splits, 0.15))
    sample, posted_at = problem(200)
    inner = splits_of(posted_at, params)
    learned = learner.learn(sample, inner, params)
    slow = slow_learned(learner, sample, inner, params)
    assert learned.chosen == slow.chosen
    assert 1 < learned.chosen < params.num_boost_round
    np.testing.assert_allclose(learned.out_of_fold, slow.out_of_fold, rtol=1e-6, atol=1e-6)
    assert len(learned.out_of_fold) == len(valid_rows(inner)) == 30 * splits
    again = learner.learn(sample, inner, params)
    assert again.chosen == learned.chosen
    np.testing.assert_array_equal(again.out_of_fold, learned.out_of_fold)


@pytest.mark.parametrize("learner", LEARNERS)
def test_the_target_of_a_slice_does_not_reach_its_own_predictions(learner: ModuleType) -> None:
    """With rounds and alpha held fast (one of one), a scored slice's target moves nothing in what predicts it."""
    params = replace(STACK, num_boost_round=1, inner_cv=InnerCvParams(1, 0.15), linear=LinearParams(alphas=(10.0,)))
    sample, posted_at = problem(200)
    inner = splits_of(posted_at, params)
    target = sample.target.copy()
    target[valid_rows(inner)] += 40
    before, after = (learner.learn(one, inner, params) for one in (sample, replace(sample, target=target)))
    np.testing.assert_array_equal(before.out_of_fold, after.out_of_fold)
    other = sample.target.copy()
    other[inner[0][0]] *= 3
    assert not np.array_equal(
        learner.learn(replace(sample, target=other), inner, params).out_of_fold, before.out_of_fold
    )


@pytest.mark.parametrize("learner", TREES)
def test_rounds_need_no_gain_longer_than_the_patience(learner: ModuleType) -> None:
    sample, posted_at = problem(200)
    noise = replace(sample, target=np.random.default_rng(1).normal(size=200))
    patient, hasty = (
        learner.learn(
            noise,
            splits_of(posted_at, STACK),
            replace(STACK, num_boost_round=200, early_stopping_rounds=early_stopping_rounds),
        ).chosen
        for early_stopping_rounds in (200, 1)
    )
    assert hasty <= patient < 200


@pytest.mark.parametrize("n", [1, 5, 10])
def test_few_rows_give_some_number_of_rounds(n: int) -> None:
    sample, posted_at = problem(n)
    assert 1 <= lightgbm.learn(sample, splits_of(posted_at, STACK), STACK).chosen <= STACK.num_boost_round


@pytest.mark.parametrize("learner", TREES)
def test_without_room_for_a_cut_all_rounds_are_taken(learner: ModuleType) -> None:
    learned = learner.learn(problem(20)[0], [], STACK)
    assert learned.chosen == STACK.num_boost_round
    assert len(learned.out_of_fold) == 0


@pytest.mark.parametrize("learner", LEARNERS)
def test_seeds_contributions_and_files(learner: ModuleType, tmp_path: Path) -> None:
    """The same seed gives the same numbers and bytes; what the columns add, with the base, is the prediction."""
    sample, _ = problem(200)
    chosen = 0 if learner is linear else 12
    models = [learner.fit(sample, chosen, STACK, seed) for seed in (1, 1, 2)]
    first, again, other = (learner.predict(model, sample.matrix) for model in models)
    np.testing.assert_array_equal(first, again)
    assert np.array_equal(first, other) == (learner is linear)
    for name, model in zip("ab", models, strict=False):
        learner.save(model, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    np.testing.assert_array_equal(learner.predict(learner.load(tmp_path / "a"), sample.matrix), first)
    added = learner.shap_values(models[0], sample.matrix)
    assert added.shape == (200, 6)
    np.testing.assert_allclose(added.sum(axis=1), first, atol=1e-9)
    sizes = np.abs(added[:, :-1]).mean(axis=0)
    assert min(sizes[:3]) > max(sizes[3:])  # a category and two numbers matter, the others do not


@needs_catboost
def test_catboost_takes_codes_as_categories() -> None:
    """Which code is which says nothing: a renaming of the categories changes no prediction."""
    sample, _ = problem(300)
    values = sample.matrix.values.copy()
    values[:, 0] = (values[:, 0] * 7 + 3) % 11
    assert np.isnan(values[:, 0]).any()
    renamed = replace(sample, matrix=replace(sample.matrix, values=values))
    columns = metadata_columns(sample.matrix.names, "number")
    plain = replace(sample, matrix=replace(sample.matrix, columns=columns))
    first, second = (catboost.predict(catboost.fit(one, 10, STACK, 1), one.matrix) for one in (sample, renamed))
    np.testing.assert_allclose(first, second)
    numbers = catboost.predict(catboost.fit(plain, 10, STACK, 1), plain.matrix)
    assert not np.allclose(first, numbers)


def test_without_catboost_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "catboost", None)
    with pytest.raises(ConfigError, match=r"stack\.learners: catboost .*pip install -e '\.\[catboost\]'"):
        catboost.learn(problem(50)[0], [(np.arange(30), np.arange(30, 50))], STACK)


def test_the_linear_learner_is_a_weighted_ridge() -> None:
    """Against scikit-learn, on columns made by hand; what is missing or unknown adds nothing."""
    sample, _ = problem(150)
    assert sample.weight is not None
    codes, numbers = sample.matrix.values[:, 0], sample.matrix.values[:, 1:].astype(np.float64)
    standard = np.clip((numbers - np.nanmean(numbers, axis=0)) / np.nanstd(numbers, axis=0), -3, 3)
    known = np.unique(codes[~np.isnan(codes)])
    design = np.hstack([np.nan_to_num(standard), codes[:, None] == known])
    params = replace(STACK, linear=LinearParams(alphas=(5.0, 20.0)))
    for index, alpha in enumerate(params.linear.alphas):
        model = linear.fit(sample, index, params, 0)
        ridge = Ridge(alpha).fit(design, sample.target, sample.weight)
        np.testing.assert_allclose(linear.predict(model, sample.matrix), ridge.predict(design), atol=1e-6)
        odd = replace(sample.matrix, values=np.array([[99, np.nan, np.nan, np.nan, np.nan]], dtype=np.float32))
        np.testing.assert_allclose(linear.predict(model, odd), ridge.intercept_, atol=1e-6)
        assert np.isfinite(linear.predict(model, replace(odd, values=odd.values * np.float32(1e30)))).all()


def test_the_linear_learner_takes_the_penalty_of_the_least_error() -> None:
    sample, posted_at = problem(200)
    params = replace(STACK, linear=LinearParams(alphas=(1e5, 1.0, 1e4)))
    splits = splits_of(posted_at, params)
    errors = []
    for index in range(3):
        each = []
        for fit, scored in splits:
            mine, other = part(sample, fit), part(sample, scored)
            predicted = linear.predict(linear.fit(mine, index, params, 0), other.matrix)
            each.append((predicted, np.average((predicted - other.target) ** 2, weights=other.weight)))
        errors.append((np.mean([error for _, error in each]), np.concatenate([predicted for predicted, _ in each])))
    best = int(np.argmin([error for error, _ in errors]))
    learned = linear.learn(sample, splits, params)
    assert learned.chosen == best == 1
    np.testing.assert_allclose(learned.out_of_fold, errors[best][1])
    assert linear.learn(sample, [], params).chosen == 0  # the strongest, where nothing can tell


def test_the_linear_learner_reads_its_rows_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    sample, _ = problem(150)
    whole = linear.predict(linear.fit(sample, 0, STACK, 0), sample.matrix)
    monkeypatch.setattr(arrays, "CHUNK_ROWS", 7)
    np.testing.assert_allclose(linear.predict(linear.fit(sample, 0, STACK, 0), sample.matrix), whole)


def test_columns_without_a_value_or_a_difference_are_no_obstacle() -> None:
    sample, _ = problem(60)
    values = np.column_stack([sample.matrix.values, np.full(60, np.nan), np.full(60, 7.0)]).astype(np.float32)
    more = replace(sample.matrix, values=values, columns=sample.matrix.columns + metadata_columns("ef", "number"))
    plain = linear.predict(linear.fit(sample, 0, STACK, 0), sample.matrix)
    model = linear.fit(replace(sample, matrix=more), 0, STACK, 0)
    np.testing.assert_allclose(linear.predict(model, more), plain)
    assert not linear.shap_values(model, more)[:, 5:7].any()


def test_the_linear_learner_has_indicators_of_the_largest_categories_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sample, _ = problem(300)
    values = sample.matrix.values.copy()
    values[:, 0] = np.repeat([7, 3, 9, 1], [150, 20, 100, 30])
    sample = replace(sample, matrix=replace(sample.matrix, values=values))
    monkeypatch.setattr(linear, "MAX_INDICATORS", 2)
    model = linear.fit(sample, 0, STACK, 0)
    assert model.codes.tolist() == [7, 9]
    values[:, 1:] = 0
    by_code = dict(zip(values[:, 0].tolist(), linear.predict(model, sample.matrix).tolist(), strict=True))
    assert by_code[3] == by_code[1]
    assert len(set(by_code.values())) == 3
