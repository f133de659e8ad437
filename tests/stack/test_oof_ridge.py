"""The ridge ridge: equal to an explicit one, out of fold on the rows it was fitted on, apart by user."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold

from popularity.core import arrays
from popularity.core.arrays import Float32Array
from popularity.stack.oof_ridge import BlockRidge, fit_oof_ridge

Floats = npt.NDArray[np.float64]
Users = npt.NDArray[np.object_]
FOLDS, SEED = 4, 3


def rows(n: int = 160, width: int = 9, users: int = 30, seed: int = 0) -> tuple[Float32Array, Floats, Users]:
    """Vectors of unequal scale, labels that follow them, users."""
    rng = np.random.default_rng(seed)
    vectors = (rng.normal(size=(n, width)) * np.geomspace(0.1, 20, width) + 2).astype(np.float32)
    standard = (vectors - vectors.mean(axis=0)) / vectors.std(axis=0)
    label = 6 + standard @ rng.normal(size=width) * 0.5 + rng.normal(0, 1, n)
    return vectors, label, np.array([f"{user}@N0" for user in rng.integers(users, size=n)], dtype=object)


def fit(
    vectors: Float32Array, label: Floats, users: Users, *alphas: float, folds: int = FOLDS
) -> tuple[BlockRidge, Float32Array]:
    return fit_oof_ridge(vectors, label, users, folds=folds, alphas=alphas, seed=SEED)


def explicit(vectors: Float32Array, label: Floats, users: Users, alpha: float) -> Floats:
    """Out-of-fold predictions by one Ridge a fold."""
    standard = (vectors - vectors.mean(axis=0, dtype=np.float64)) / vectors.std(axis=0, dtype=np.float64)
    predictions = np.empty(len(label))
    for others, own in GroupKFold(FOLDS, shuffle=True, random_state=SEED).split(standard, groups=users):
        predictions[own] = Ridge(alpha).fit(standard[others], label[others]).predict(standard[own])
    return predictions


@pytest.mark.parametrize("alpha", [0.1, 10.0, 1000.0])
def test_equals_an_explicit_ridge_per_fold(alpha: float) -> None:
    vectors, label, users = rows()
    ridge, out_of_fold = fit(vectors, label, users, alpha)
    np.testing.assert_allclose(out_of_fold, explicit(vectors, label, users, alpha), atol=1e-4)
    standard = (vectors - vectors.mean(axis=0)) / vectors.std(axis=0)
    new = rows(seed=1)[0]
    everything = Ridge(alpha).fit(standard, label)
    expected = everything.predict((new - vectors.mean(axis=0)) / vectors.std(axis=0))
    np.testing.assert_allclose(ridge.predict(new), expected, atol=1e-4)


@pytest.mark.parametrize("width", [10, 90], ids=["more rows than columns", "fewer"])
def test_in_parts_it_is_the_same_ridge(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, label, users = rows(n=60, width=width)
    vectors[3] = np.nan
    ridge, out_of_fold = fit(vectors, label, users, 10.0, 100.0)
    whole = ridge.predict(vectors)
    monkeypatch.setattr(arrays, "CHUNK_ROWS", 7)
    ridge, in_parts = fit(vectors, label, users, 10.0, 100.0)
    np.testing.assert_allclose(in_parts, out_of_fold, rtol=1e-5)
    np.testing.assert_allclose(ridge.predict(vectors), whole, rtol=1e-5)
    assert np.flatnonzero(np.isnan(in_parts)).tolist() == np.flatnonzero(np.isnan(whole)).tolist() == [3]


def test_fewer_rows_than_columns_equals_an_explicit_ridge_too() -> None:
    vectors, label, users = rows(n=40, width=90)
    ridge, out_of_fold = fit(vectors, label, users, 10.0)
    np.testing.assert_allclose(out_of_fold, explicit(vectors, label, users, 10.0), atol=1e-4)
    mean, deviation = vectors.mean(axis=0), vectors.std(axis=0)
    everything = Ridge(10.0).fit((vectors - mean) / deviation, label)
    new = rows(n=40, width=90, seed=1)[0]
    np.testing.assert_allclose(ridge.predict(new), everything.predict((new - mean) / deviation), atol=1e-4)


def test_takes_the_alpha_with_the_least_error_out_of_fold() -> None:
    vectors, label, users = rows()
    alphas = (0.1, 30.0, 3000.0)
    errors = [float(np.mean((explicit(vectors, label, users, alpha) - label) ** 2)) for alpha in alphas]
    best = alphas[int(np.argmin(errors))]
    assert best != alphas[0]  # or the first would pass by being first
    chosen, alone = fit(vectors, label, users, *alphas), fit(vectors, label, users, best)
    np.testing.assert_array_equal(chosen[0].weights, alone[0].weights)
    np.testing.assert_array_equal(chosen[1], alone[1])


def test_the_label_of_a_user_changes_nothing_in_the_predictions_of_his_posts() -> None:
    vectors, label, users = rows()
    _, before = fit(vectors, label, users, 10.0)
    for row in (0, 7, 50):
        mine = users == users[row]
        changed = label.copy()
        changed[row] += 50.0
        ridge, after = fit(vectors, changed, users, 10.0)
        np.testing.assert_allclose(after[mine], before[mine], atol=1e-5)
        assert (np.abs(after - before) > 0.01).mean() > 0.5  # the other folds have seen it
        assert abs(ridge.predict(vectors[[row]])[0] - before[row]) > 0.1  # and so has the ridge for valid rows


def test_one_user_alone_has_nothing_to_learn_from() -> None:
    vectors, label, users = rows()
    users[:] = "one@N0"
    ridge, out_of_fold = fit(vectors, label, users, 10.0)
    assert np.unique(out_of_fold).size == 1
    assert np.corrcoef(ridge.predict(vectors), label)[0, 1] > 0.5


def test_fewer_users_than_folds() -> None:
    vectors, label, users = rows(users=2)
    _, before = fit(vectors, label, users, 10.0, folds=5)
    changed = np.where(users == users[0], label + 50.0, label)
    _, after = fit(vectors, changed, users, 10.0, folds=5)
    np.testing.assert_allclose(after[users == users[0]], before[users == users[0]], atol=1e-5)
    assert (np.abs(after - before)[users != users[0]] > 10).all()


def test_rows_without_a_vector_are_left_out() -> None:
    vectors, label, users = rows()
    without = np.arange(len(label)) % 5 == 0
    holes = vectors.copy()
    holes[without] = np.nan
    strange = np.where(without, 1e6, label)
    ridge, out_of_fold = fit(holes, strange, users, 10.0)
    alone, expected = fit(vectors[~without], label[~without], users[~without], 10.0)
    np.testing.assert_array_equal(np.isnan(out_of_fold), without)
    np.testing.assert_array_equal(out_of_fold[~without], expected)
    np.testing.assert_array_equal(ridge.weights, alone.weights)
    np.testing.assert_array_equal(np.isnan(ridge.predict(holes)), without)


def test_a_constant_column_is_harmless() -> None:
    vectors, label, users = rows()
    wider = np.hstack([vectors, np.full((len(label), 1), 7, dtype=np.float32)])
    ridge, out_of_fold = fit(wider, label, users, 10.0)
    np.testing.assert_allclose(out_of_fold, fit(vectors, label, users, 10.0)[1], atol=1e-4)
    assert np.isfinite(ridge.predict(wider)).all()
