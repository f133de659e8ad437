"""Agreement after a linear map: against canonical correlations by their definition, and who has a part in a map."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from popularity.post_features import agreement
from popularity.post_features.agreement import linear_agreement

POSTS, WIDTHS = 300, (9, 6)
Array = npt.NDArray[np.float32]


def pairs(seed: int = 0) -> tuple[Array, Array]:
    """Pictures and texts that share two of their directions, each lengths apart from the others in variance."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(POSTS, 2))
    image, text = (
        rng.normal(size=(POSTS, width)) * rng.uniform(0.5, 2, width) + shared @ rng.normal(size=(2, width))
        for width in WIDTHS
    )
    return image.astype(np.float32), text.astype(np.float32)


def users(count: int = 40) -> npt.NDArray[np.int64]:
    return np.random.default_rng(5).integers(count, size=POSTS)


def run(
    pair: tuple[Array, Array], fitted: npt.NDArray[np.int64], others: npt.NDArray[np.int64], shrinkage: float = 0.1
) -> npt.NDArray[np.float64]:
    return linear_agreement(lambda rows: (pair[0][rows], pair[1][rows]), fitted, others, users()[fitted], shrinkage)


def by_definition(
    pair: tuple[Array, Array], fitted: npt.NDArray[np.int64], shrinkage: float
) -> npt.NDArray[np.float64]:
    """Of all posts, by the map of `fitted`: whitened by eigenvectors, correlated by a singular value decomposition."""
    centred = [values.astype(np.float64) - values[fitted].astype(np.float64).mean(axis=0) for values in pair]
    whitening = []
    for values in centred:
        covariance = values[fitted].T @ values[fitted] / len(fitted)
        covariance += shrinkage * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        variances, axes = np.linalg.eigh(covariance)
        whitening.append(axes / np.sqrt(variances) @ axes.T)
    image, text = (values @ matrix for values, matrix in zip(centred, whitening, strict=True))
    left, correlations, right = np.linalg.svd(image[fitted].T @ text[fitted] / len(fitted), full_matrices=False)
    one, other = image @ left * correlations, text @ right.T * correlations
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosine: npt.NDArray[np.float64] = (one * other).sum(axis=1) / lengths
    return cosine


def test_others_are_read_by_canonical_correlations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "CHUNK", 37)
    fitted, others = np.arange(0, 200), np.arange(200, POSTS)
    for shrinkage in (0.01, 1.0):
        found = run(pairs(), fitted, others, shrinkage)
        np.testing.assert_allclose(found[200:], by_definition(pairs(), fitted, shrinkage)[others], rtol=1e-5, atol=1e-6)


def test_true_pairs_agree_more_than_mixed_ones() -> None:
    image, text = pairs()
    everybody = np.arange(POSTS)
    found = run((image, text), everybody, everybody[:0])
    mixed = text.copy()
    mixed[::2] = text[::2][np.random.default_rng(1).permutation(POSTS // 2)]
    of_mixed = run((image, mixed), everybody, everybody[:0])
    assert found.mean() > 0.3
    assert of_mixed[::2].mean() < 0.1
    assert np.abs(found).max() <= 1 + 1e-9


def test_neither_a_post_nor_its_user_has_a_part_in_its_map() -> None:
    image, text = pairs()
    everybody = np.arange(POSTS)
    first = run((image, text), everybody, everybody[:0])
    user = users()[0]
    same_user = np.flatnonzero(users() == user)[1:]
    assert len(same_user) > 2
    text = text.copy()
    text[same_user] *= -3
    second = run((image, text), everybody, everybody[:0])
    assert second[0] == pytest.approx(first[0], abs=1e-12)
    elsewhere = (users() != user) & (np.abs(second - first) > 1e-6)
    assert elsewhere.sum() > 100  # those of other folds


def test_posts_that_may_not_be_fitted_on_change_no_map() -> None:
    image, text = pairs()
    fitted, others = np.arange(0, 200), np.arange(200, POSTS)
    first = run((image, text), fitted, others)
    text = text.copy()
    text[250:] = 7
    second = run((image, text), fitted, others)
    np.testing.assert_array_equal(first[:250], second[:250])


def test_order_does_not_matter() -> None:
    order = np.random.default_rng(2).permutation(POSTS)
    none = order[:0]
    np.testing.assert_allclose(run(pairs(), order, none), run(pairs(), np.arange(POSTS), none)[order], atol=1e-9)


def test_too_little_to_fit_on() -> None:
    nobody = np.arange(0)
    assert np.isnan(run(pairs(), np.arange(1), np.arange(5, 8))).all()
    assert run(pairs(), nobody, nobody).shape == (0,)
    image, text = pairs()
    of_one_user = linear_agreement(
        lambda rows: (image[rows], text[rows]), np.arange(9), np.arange(9, 12), np.zeros(9, np.int64), 0.1
    )
    assert np.isnan(of_one_user).tolist() == [True] * 9 + [False] * 3


def test_vectors_that_are_all_alike_agree_nowhere() -> None:
    same = (np.ones((POSTS, 3), np.float32), np.ones((POSTS, 2), np.float32))
    np.testing.assert_allclose(run(same, np.arange(POSTS), np.arange(0)), 0, atol=1e-9)


def test_posts_that_are_not_asked_for_change_no_other() -> None:
    image, text = pairs()
    fitted, others = np.arange(0, 200), np.arange(200, POSTS)
    wanted = np.zeros(POSTS, np.bool_)
    wanted[[3, 77, 250]] = True
    found = linear_agreement(lambda rows: (image[rows], text[rows]), fitted, others, users()[fitted], 0.1, wanted)
    np.testing.assert_allclose(found[wanted], run((image, text), fitted, others)[wanted], rtol=1e-9)
    assert np.isnan(found[~wanted]).all()
