"""Probes against slow references, and on data where the right answer is known, chance included."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, silhouette_score, top_k_accuracy_score
from sklearn.model_selection import GroupKFold

from popularity.errors import ContractError
from popularity.evaluation import probes
from popularity.evaluation.metrics import FloatArray
from popularity.evaluation.probes import (
    Classes,
    Estimate,
    class_scores,
    linear_probe,
    paired_interval,
    retrieval,
    ridge_probe,
    silhouette,
    train_test_auc,
)

PENALTIES = (1.0, 0.1, 0.01, 0.001)


def clusters(
    n: int = 600, width: int = 12, classes: int = 5, noise: float = 1.0, seed: int = 0
) -> tuple[FloatArray, Classes]:
    """Vectors around one centre a class; the centres are those of seed 0."""
    centres = np.random.default_rng(0).normal(size=(classes, width))
    rng = np.random.default_rng(seed + 1)
    y = rng.integers(classes, size=n)
    return (centres[y] + noise * rng.normal(size=(n, width))) * np.geomspace(0.01, 100, width), y


def probe(
    features: FloatArray, y: Classes, new: FloatArray, penalties: tuple[float, ...] = PENALTIES, **more: Any
) -> npt.NDArray[np.float32]:
    given: dict[str, Any] = {"classes": 5, "folds": 3, "groups": np.arange(len(y)), "seed": 0, **more}
    return linear_probe(features, y, new, penalties=penalties, **given)


@pytest.mark.parametrize("penalty", [1.0, 0.03])
def test_the_linear_probe_equals_logistic_regression(penalty: float) -> None:
    features, y = clusters()
    new = clusters(seed=1)[0]
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    reference = LogisticRegression(C=1 / (penalty * len(y)), tol=1e-8, max_iter=2000)
    reference.fit((features - mean) / deviation, y)
    expected = reference.predict_proba((new - mean) / deviation)
    np.testing.assert_allclose(probe(features, y, new, (penalty,)), expected, atol=5e-3)


def test_the_penalty_is_the_best_out_of_fold_on_the_fit_rows() -> None:
    features, y = clusters(n=300, noise=2.0)
    features = np.hstack([features, np.random.default_rng(3).normal(size=(300, 150))])
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    penalties = (3.0, 0.3, 0.03, 0.0003)
    hits = dict.fromkeys(penalties, 0)
    for rows, own in GroupKFold(3, shuffle=True, random_state=0).split(features, groups=np.arange(300)):
        for penalty in penalties:
            reference = LogisticRegression(C=1 / (penalty * len(rows)), tol=1e-6, max_iter=2000)
            hits[penalty] += int((reference.fit(standard[rows], y[rows]).predict(standard[own]) == y[own]).sum())
    ranked = sorted(penalties, key=lambda penalty: -hits[penalty])
    assert hits[ranked[0]] > hits[ranked[1]] + 2  # or the fits' tolerance would decide
    assert ranked[0] not in (penalties[0], penalties[-1])
    new = np.hstack([clusters(n=200, noise=2.0, seed=1)[0], np.zeros((200, 150))])
    tuned = probe(features, y, new, penalties[::-1])
    np.testing.assert_allclose(tuned, probe(features, y, new, (ranked[0],)), atol=5e-3)
    assert not np.allclose(tuned, probe(features, y, new, (ranked[1],)), atol=5e-2)


def test_the_folds_of_the_tuning_keep_users_apart() -> None:
    """Each user posts one class under a signature of his own: across users nothing is learned but the noise."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(40), 5)
    signature, y = rng.normal(size=(40, 40))[users], rng.integers(5, size=40)[users]
    features = signature + 0.01 * rng.normal(size=signature.shape)
    sure = [float(probe(features, y, features, groups=groups).max(axis=1).mean()) for groups in (users, np.arange(200))]
    assert sure[0] < sure[1] - 0.2  # honest folds find no reason for a weak penalty


def test_the_linear_probe_finds_classes_and_without_any_chance() -> None:
    features, y = clusters(noise=0.5)
    new, truth = clusters(noise=0.5, seed=1)
    found = probe(features, y, new)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    assert (found.argmax(axis=1) == truth).mean() > 0.95
    blank, other = np.random.default_rng(0).normal(size=(2, 600, 12))
    assert abs((probe(blank, y, other).argmax(axis=1) == truth).mean() - 0.2) < 0.06


def test_a_class_without_a_fit_row_and_a_constant_column_are_harmless() -> None:
    features, y = clusters()
    features[:, 3] = 7.0
    found = probe(features[y != 2], y[y != 2], features, classes=6)
    assert np.isfinite(found).all()
    assert found[:, [2, 5]].max() < 0.05


@pytest.mark.parametrize("classes", [4, 3])
def test_a_class_out_of_range_is_refused(classes: int) -> None:
    features, y = clusters()
    with pytest.raises(ContractError, match=f"0 to {classes - 1}"):
        probe(features, y, features, classes=classes)


def test_a_missing_vector_is_refused() -> None:
    features, y = clusters()
    holes = features.copy()
    holes[5, 2] = np.nan
    target = features[:, 0]
    with pytest.raises(ContractError, match="NaN"):
        probe(holes, y, features)
    with pytest.raises(ContractError, match="NaN"):
        ridge_probe(features, target, holes, target, components=4, penalties=(1.0,))
    for call in (lambda: class_scores(holes, y % 5), lambda: retrieval(features, holes)):
        with pytest.raises(ContractError, match="NaN"):
            call()


def linear_target(n: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Target with 80 % of its variance in two of 30 features of unequal scale."""
    features = np.random.default_rng(seed).normal(size=(n, 30))
    noise = np.random.default_rng(seed + 1000).normal(size=n)
    return features * np.geomspace(0.1, 10, 30), features[:, 0] + features[:, 1] + np.sqrt(0.5) * noise


def r_squared(components: int = 30, target: FloatArray | None = None) -> float | None:
    (features, known), (new, truth) = linear_target(3000, 0), linear_target(2000, 1)
    fit_to = known if target is None else target
    return ridge_probe(features, fit_to, new, truth, components=components, penalties=(0.1, 10.0, 1000.0))


def test_the_ridge_probe_explains_what_is_linear_and_no_more() -> None:
    assert r_squared() == pytest.approx(0.8, abs=0.02)
    shuffled = r_squared(target=np.random.default_rng(5).permutation(linear_target(3000, 0)[1]))
    assert shuffled == pytest.approx(0, abs=0.03)
    few = r_squared(components=5)
    assert few is not None
    assert few < 0.6  # 5 directions of 30 equals hold a sixth of it, give or take


def test_the_ridge_probe_reads_a_product_only_where_it_is_a_column() -> None:
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(2, 2000, 4))
    agreement = (image * text).sum(axis=1)

    def explained(features: FloatArray) -> float:
        half = slice(None, 1000), slice(1000, None)
        value = ridge_probe(
            features[half[0]], agreement[half[0]], features[half[1]], agreement[half[1]], components=4, penalties=(1.0,)
        )
        assert value is not None
        return value

    assert abs(explained(np.hstack([image, text]))) < 0.05
    assert explained(image * text) > 0.99


def test_a_constant_target_explains_nothing() -> None:
    features, target = linear_target(50, 0)
    assert ridge_probe(features, target, features, np.ones(50), components=5, penalties=(1.0,)) is None


def parts(n: int = 900, users: int = 300, shift: float = 0.0) -> tuple[FloatArray, npt.NDArray[np.bool_], Classes]:
    """Features that are alike in both parts but for a shift, and users of three posts in one part each."""
    rng = np.random.default_rng(1)
    groups = np.arange(n) % users
    is_test = groups < users // 3
    features = rng.normal(size=(n, 6))
    features[:, 2] += shift * is_test
    return features, is_test, groups


def auc(features: FloatArray, is_test: npt.NDArray[np.bool_], groups: Classes, seed: int = 0) -> Estimate:
    return train_test_auc(features, is_test, groups, folds=3, resamples=200, confidence=0.95, threads=1, seed=seed)


def test_the_parts_are_told_apart_exactly_where_they_differ() -> None:
    alike, shifted = auc(*parts()), auc(*parts(shift=2.0))
    assert alike.low is not None
    assert alike.high is not None
    assert alike.low < 0.5 < alike.high
    assert shifted.value is not None
    assert shifted.low is not None
    assert shifted.low > 0.8
    assert shifted.low < shifted.value
    assert auc(*parts(shift=2.0)) == shifted


def test_knowing_the_user_is_not_knowing_the_part() -> None:
    features, is_test, groups = parts()
    features = features + 8 * np.random.default_rng(2).normal(size=(300, 6))[groups]
    honest, naive = auc(features, is_test, groups), auc(features, is_test, np.arange(len(groups)))
    assert honest.high is not None
    assert naive.low is not None
    assert honest.high < naive.low


def test_a_feature_that_is_missing_in_one_part_gives_it_away() -> None:
    features, is_test, groups = parts()
    features[is_test & (np.arange(900) % 2 == 0), 4] = np.nan
    found = auc(features, is_test, groups)
    assert found.value is not None
    assert found.value > 0.7


def slow_ranks(image: FloatArray, text: FloatArray) -> list[float]:
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (image, text)]
    similarity = unit[0] @ unit[1].T
    return [1 + float((row > row[place]).sum()) for place, row in enumerate(similarity)]


def test_retrieval_against_a_slow_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(150, 8))
    text = image + 1.5 * rng.normal(size=(150, 8))
    found = retrieval(image, 3 * text)
    for name, sides in (("image_to_text", (image, text)), ("text_to_image", (text, image))):
        ranks = np.array(slow_ranks(*sides))
        assert found[name]["recall_1"] == pytest.approx((ranks <= 1).mean())
        assert found[name]["recall_10"] == pytest.approx((ranks <= 10).mean())
        assert found[name]["median_rank"] == np.median(ranks)
    assert found["image_to_text"] != found["text_to_image"]
    monkeypatch.setattr(probes, "CHUNK", 37)
    assert retrieval(image, 3 * text) == found


def test_equal_texts_share_their_ranks() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(200, 16))
    same = {"recall_1": 1 / 200, "recall_10": 10 / 200, "median_rank": 100.5}
    assert retrieval(image, np.ones((200, 16)))["image_to_text"] == pytest.approx(same)
    pairs = image[np.arange(200) // 2]  # every picture and its text twice: right half the time
    assert retrieval(pairs, pairs)["text_to_image"] == {"recall_1": 0.5, "recall_10": 1.0, "median_rank": 1.5}
    assert retrieval(image, image)["image_to_text"] == {"recall_1": 1.0, "recall_10": 1.0, "median_rank": 1.0}


def test_class_scores_against_a_reference_and_by_class() -> None:
    rng = np.random.default_rng(0)
    y = rng.choice(7, p=[0.7, *[0.05] * 6], size=400)
    logits = rng.normal(size=(400, 7)) + 1.5 * np.eye(7)[y]
    found = class_scores(logits, y)
    assert found["top_1"] == pytest.approx((logits.argmax(axis=1) == y).mean())
    assert found["top_5"] == pytest.approx(top_k_accuracy_score(y, logits, k=5))
    assert found["macro"] == pytest.approx(balanced_accuracy_score(y, logits.argmax(axis=1)))
    always = class_scores(np.tile(np.eye(7)[0], (400, 1)), y)  # the frequent class for everyone
    assert always["top_1"] > 0.6
    assert always["macro"] == pytest.approx(1 / 7)
    chance = class_scores(np.zeros((400, 7)), y)
    assert chance == pytest.approx({"top_1": 1 / 7, "top_5": 5 / 7, "macro": 1 / 7})


def test_silhouette() -> None:
    features, y = clusters(n=200, noise=0.1)
    found = silhouette(features, y, max_posts=1000, seed=0)
    assert found == pytest.approx(float(silhouette_score(features, y, metric="cosine")), abs=1e-5)
    assert found is not None
    shuffled = silhouette(features, np.random.default_rng(0).permutation(y), max_posts=1000, seed=0)
    assert shuffled is not None
    assert shuffled < 0.1 < found
    sampled = [silhouette(features, y, max_posts=60, seed=seed) for seed in (0, 0, 1)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert sampled[0] != found
    assert silhouette(features, np.zeros(200, dtype=np.int64), max_posts=1000, seed=0) is None
    assert silhouette(features, np.arange(200), max_posts=1000, seed=0) is None


Metric = Literal["src", "mae", "accuracy"]


def predictions(seeds: int = 3, better: float = 0.3) -> tuple[FloatArray, FloatArray, FloatArray, npt.NDArray[Any]]:
    """Labels, two models of which the second errs more, users of unequal size."""
    rng = np.random.default_rng(0)
    labels = rng.normal(6, 2, 400)
    first, second = (labels[:, None] + scale * rng.normal(size=(400, seeds)) for scale in (1.0, 1.0 + better))
    return labels, first, second, np.array([f"u{int(user)}" for user in rng.exponential(20, 400)])


def compare(*data: Any, metric: Metric, seed: int = 0, resamples: int = 400) -> Estimate:
    return paired_interval(*data, metric=metric, resamples=resamples, confidence=0.95, seed=seed)


@pytest.mark.parametrize(("metric", "sign"), [("src", 1), ("mae", -1)])
def test_a_better_model_is_better_and_the_same_one_is_not(metric: Metric, sign: int) -> None:
    labels, first, second, users = predictions()
    found, back, none = (
        compare(labels, *sides, users, metric=metric) for sides in ((first, second), (second, first), (first, first))
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
        found = compare(labels, first, second, users, metric=metric)
        assert found.value == pytest.approx(np.mean(values[:3]) - np.mean(values[3:]))


def test_with_cuts_the_value_is_the_mean_over_them() -> None:
    labels, first, second, users = predictions()
    cuts = np.repeat([0, 1], [300, 100])
    parts = [slice(0, 300), slice(300, 400)]
    found = paired_interval(labels, first, second, users, metric="mae", resamples=50, confidence=0.9, seed=0, cuts=cuts)
    each = [np.abs(first - labels[:, None])[own].mean() - np.abs(second - labels[:, None])[own].mean() for own in parts]
    assert found.value == pytest.approx(np.mean(each))
    assert found.value != pytest.approx(compare(labels, first, second, users, metric="mae", resamples=2).value)
    assert found.low is not None
    assert found.high is not None
    assert found.value is not None
    assert found.low < found.value < found.high


def test_accuracy_is_the_share_of_equal_classes_and_one_column_stands_for_all() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(4, size=500)
    first = np.stack([np.where(rng.random(500) < share, y, 9) for share in (0.8, 0.9)], axis=1)
    second = np.where(rng.random(500) < 0.6, y, 9)[:, None]
    users = rng.integers(100, size=500)
    found = compare(y, first, second, users, metric="accuracy")
    assert found.value == pytest.approx((first == y[:, None]).mean() - (second == y[:, None]).mean())
    assert found.low is not None
    assert found.low > 0.1
    assert compare(y, first, np.repeat(second, 2, axis=1), users, metric="accuracy") == found


def test_draws_are_of_users_and_of_seeds() -> None:
    """Every post five times over tells no more; seeds that disagree widen the interval."""

    def width(found: Estimate) -> float:
        assert found.low is not None
        assert found.high is not None
        return found.high - found.low

    labels, first, second, users = predictions(seeds=1)
    once = width(compare(labels, first, second, users, metric="mae"))
    often = (np.repeat(part, 5, axis=0) for part in (labels, first, second, users))
    assert width(compare(*often, metric="mae")) == pytest.approx(once)
    assert width(compare(labels, first, second, np.arange(400), metric="mae")) != pytest.approx(once, rel=0.02)
    apart = first + np.array([[-1.0, 0.0, 1.0]]) * np.sign(first - labels[:, None])
    assert width(compare(labels, apart, second, users, metric="mae")) > 2 * once


def test_undefined_differences_are_none() -> None:
    labels, first, second, users = predictions()
    assert compare(labels, first, np.ones_like(second), users, metric="src") == Estimate(None, None, None)
    alone = compare(labels, first, second, np.zeros(400), metric="mae")
    assert alone.value is not None
    assert (alone.low, alone.high) == (None, None)
    with pytest.raises(ContractError, match="3 seeds against 2"):
        compare(labels, first, second[:, :2], users, metric="mae")
