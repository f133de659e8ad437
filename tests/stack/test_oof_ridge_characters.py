"""The ridge on characters: what it counts, equal to an explicit ridge, out of fold, apart by user."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold

from popularity.core.arrays import Float32Array
from popularity.stack.oof_ridge_characters import MAX_NGRAM, CharacterRidge, fit_oof_ridge_characters, log_counts

Floats = npt.NDArray[np.float64]
Users = npt.NDArray[np.object_]
FOLDS, SEED = 4, 3
WORDS = ("sunset", "sun", "Über", "бар", "x", "sunny", "day", "1984", "day", "😀", "night", "nightfall")


def rows(n: int = 120, users: int = 25, seed: int = 0) -> tuple[list[str], Floats, Users]:
    """Texts of some words, labels that follow one ending, users; the first text is empty."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(1, 6))) for _ in range(n)]
    label = 6 + np.array([1.5 * text.count("n") for text in texts]) + rng.normal(0, 0.5, n)
    return ["", *texts[1:]], label, np.array([f"{user}@N0" for user in rng.integers(users, size=n)], dtype=object)


def fit(texts: list[str], label: Floats, users: Users, *alphas: float) -> tuple[CharacterRidge, Float32Array]:
    return fit_oof_ridge_characters(texts, label, users, folds=FOLDS, alphas=alphas, seed=SEED)


def pieces(text: str) -> Counter[str]:
    """Counts of the pieces of every word, a blank at both ends of it, one by one."""
    found: Counter[str] = Counter()
    for word in text.lower().split():
        padded = f" {word} "
        for length in range(1, MAX_NGRAM + 1):
            found.update(padded[start : start + length] for start in range(max(1, len(padded) - length + 1)))
            if length >= len(padded):  # a short word is a piece once
                break
    return found


def test_counts_pieces_of_words() -> None:
    texts = [*WORDS, " ".join(WORDS), "day  day\nDAY", ""]
    slow, logs = [pieces(text) for text in texts], log_counts(texts)
    products = (logs @ logs.T).toarray()
    for one, left in enumerate(slow):
        for other, right in enumerate(slow):
            expected = sum(np.log1p(left[piece]) * np.log1p(right[piece]) for piece in left)
            assert products[one, other] == pytest.approx(expected), (texts[one], texts[other])


@pytest.mark.parametrize("alpha", [0.1, 10.0])
def test_equals_an_explicit_ridge_per_fold(alpha: float) -> None:
    texts, label, users = rows()
    ridge, out_of_fold = fit(texts, label, users, alpha)
    counts = log_counts(texts)
    columns = np.unique(counts.indices)
    dense = counts[:, columns].toarray()
    dense /= np.sqrt((dense**2).sum(axis=1).mean())
    expected = np.empty(len(label))
    for others, own in GroupKFold(FOLDS, shuffle=True, random_state=SEED).split(dense, groups=users):
        expected[own] = Ridge(alpha).fit(dense[others], label[others]).predict(dense[own])
    np.testing.assert_allclose(out_of_fold, expected, atol=5e-3)
    everything = Ridge(alpha).fit(dense, label)
    np.testing.assert_allclose(ridge.predict(texts), everything.predict(dense), atol=5e-3)
    assert np.corrcoef(out_of_fold, label)[0, 1] > 0.7


def test_takes_the_alpha_with_the_least_error_out_of_fold() -> None:
    texts, label, users = rows()
    alphas = (300.0, 1.0, 3000.0)
    errors = [float(np.mean((fit(texts, label, users, alpha)[1] - label) ** 2)) for alpha in alphas]
    assert np.argmin(errors) == 1
    chosen, alone = fit(texts, label, users, *alphas), fit(texts, label, users, 1.0)
    np.testing.assert_array_equal(chosen[0].weights, alone[0].weights)
    np.testing.assert_array_equal(chosen[1], alone[1])


def test_the_label_of_a_user_changes_nothing_in_the_predictions_of_his_posts() -> None:
    texts, label, users = rows()
    _, before = fit(texts, label, users, 1.0)
    for row in (1, 7, 50):
        mine = users == users[row]
        changed = label.copy()
        changed[row] += 50.0
        ridge, after = fit(texts, changed, users, 1.0)
        np.testing.assert_array_equal(after[mine], before[mine])
        assert (np.abs(after - before) > 0.01).mean() > 0.5  # the other folds have seen it
        assert abs(ridge.predict([texts[row]])[0] - before[row]) > 0.1  # and so has the ridge for valid rows


def test_one_user_alone_has_nothing_to_learn_from() -> None:
    texts, label, users = rows()
    users[:] = "one@N0"
    ridge, out_of_fold = fit(texts, label, users, 1.0)
    np.testing.assert_allclose(out_of_fold, label.mean(), rtol=1e-6)
    assert np.corrcoef(ridge.predict(texts), label)[0, 1] > 0.7


def test_posts_without_any_text() -> None:
    _, label, users = rows()
    ridge, out_of_fold = fit([""] * len(label), label, users, 1.0)
    assert np.isfinite(out_of_fold).all()
    np.testing.assert_allclose(ridge.predict(["", "new"]), label.mean(), rtol=1e-6)
