"""What vectors know: probes on frozen features, class scores, retrieval, and intervals of differences.

Each function takes arrays whose rows are the same posts in the same order. What is tuned is tuned inside the
fit rows; held-out rows are only ever scored.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score, roc_auc_score, silhouette_score
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from popularity.arrays import normalize_rows
from popularity.errors import ContractError
from popularity.evaluation.bootstrap import interval, resample, resample_auc
from popularity.evaluation.metrics import FloatArray, score

logger = logging.getLogger(__name__)

Vectors = npt.NDArray[np.floating[Any]]
Single = npt.NDArray[np.float32]
Classes = npt.NDArray[np.int64]
Users = npt.NDArray[Any]

TIE = 1e-6  # similarities closer than this are equal: equal vectors may differ by that much after a matrix product
CHUNK = 2048  # rows of a similarity matrix that are in memory at once


@dataclass(frozen=True)
class Estimate:
    """A value and its percentile interval; None where undefined."""

    value: float | None
    low: float | None
    high: float | None


def linear_probe(
    features_fit: Vectors,
    y_fit: Classes,
    features_held_out: Vectors,
    *,
    classes: int,
    penalties: Sequence[float],
    folds: int,
    groups: Users,
    seed: int,
) -> Single:
    """(m, classes) class probabilities of the held-out rows by a tuned multinomial logistic regression.

    Features are standardised on the fit rows. The loss is the mean cross-entropy plus penalty / 2 times the sum of
    squared weights (the constants are free). The penalty with the best out-of-fold top-1 on the fit rows is
    taken, of equals the one with the least cross-entropy.

    Args:
        features_fit: (n, d).
        y_fit: (n,) class indices below `classes`; a class that does not occur gets next to no probability.
        features_held_out: (m, d).
        classes: width of the result.
        penalties: candidates; fitted from the strongest down, each from where the last one ended.
        folds: of the tuning.
        groups: (n,) users of the fit rows; no user is on both sides of a fold.
        seed: of the folds.

    Raises:
        ContractError: a feature is not finite or a class index out of range.
    """
    _check_finite(features_fit, features_held_out)
    if y_fit.min() < 0 or y_fit.max() >= classes:
        raise ContractError(f"linear probe: expected classes 0 to {classes - 1}, found {y_fit.min()} to {y_fit.max()}")
    scaler = StandardScaler().fit(features_fit.astype(np.float64))
    design, held_out = (
        scaler.transform(part.astype(np.float64)).astype(np.float32) for part in (features_fit, features_held_out)
    )
    path = sorted(penalties, reverse=True)
    hits, losses = np.zeros(len(path)), np.zeros(len(path))
    users = np.unique(groups, return_inverse=True)[1]
    for rows, own in GroupKFold(folds, shuffle=True, random_state=seed).split(design, groups=users):
        weights = np.zeros((design.shape[1] + 1, classes))
        for place, penalty in enumerate(path):
            weights = _fit_softmax(design[rows], y_fit[rows], penalty, weights, TUNED)
            log_probabilities = _log_softmax(design[own], weights)
            hits[place] += (log_probabilities.argmax(axis=1) == y_fit[own]).sum()
            losses[place] -= log_probabilities[np.arange(len(own)), y_fit[own]].sum(dtype=np.float64)
    best = min(range(len(path)), key=lambda place: (-hits[place], losses[place]))
    logger.info(
        "linear probe: penalty %g of %g to %g, top-1 out of fold %.4f", path[best], path[0], path[-1],
        hits[best] / len(y_fit),
    )  # fmt: skip
    weights = np.zeros((design.shape[1] + 1, classes))
    for penalty in path[: best + 1]:
        weights = _fit_softmax(design, y_fit, penalty, weights, FINAL if penalty == path[best] else TUNED)
    return np.exp(_log_softmax(held_out, weights))


TUNED, FINAL = 1e-4, 1e-6  # relative gain of the loss below which a fit ends


def _fit_softmax(design: Single, y: Classes, penalty: float, start: FloatArray, gain: float) -> FloatArray:
    """(d + 1, classes) weights, the constants last; products in float32, the search in float64."""
    rows = np.arange(len(y))

    def objective(flat: FloatArray) -> tuple[float, FloatArray]:
        weights = flat.reshape(start.shape)
        log_probabilities = _log_softmax(design, weights)
        loss = -log_probabilities[rows, y].mean(dtype=np.float64) + penalty / 2 * (weights[:-1] ** 2).sum()
        residual = np.exp(log_probabilities)
        residual[rows, y] -= 1
        residual /= len(y)
        gradient = np.empty(start.shape)
        gradient[:-1] = design.T @ residual + penalty * weights[:-1]
        gradient[-1] = residual.sum(axis=0)
        return float(loss), gradient.ravel()

    options = {"maxiter": 300, "ftol": gain, "gtol": 1e-9}
    found = minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    weights: FloatArray = found.x.reshape(start.shape)
    return weights


def _log_softmax(design: Single, weights: FloatArray) -> Single:
    """(n, classes)."""
    logits: Single = design @ weights[:-1].astype(np.float32) + weights[-1].astype(np.float32)
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


def ridge_probe(
    features_fit: Vectors,
    target_fit: FloatArray,
    features_held_out: Vectors,
    target_held_out: FloatArray,
    *,
    components: int,
    penalties: Sequence[float],
) -> float | None:
    """Explained variance R^2 of the held-out target; None when that is constant.

    Features are standardised and turned to `components` principal components on the fit rows; a ridge reads
    the target from them, with the penalty of the least leave-one-out error there. Two blocks are compared
    fairly when rows and components are the same. A missing feature is a ContractError.
    """
    _check_finite(features_fit, features_held_out)
    if np.ptp(target_held_out) == 0:
        return None
    # The solver is named: the default draws at random for wide features.
    reduced = PCA(min(components, *features_fit.shape), svd_solver="covariance_eigh")
    probe = make_pipeline(StandardScaler(), reduced, RidgeCV(alphas=list(penalties)))
    probe.fit(features_fit.astype(np.float64), target_fit)
    return float(r2_score(target_held_out, probe.predict(features_held_out.astype(np.float64))))


def train_test_auc(
    features: Vectors,
    is_test: npt.NDArray[np.bool_],
    groups: Users,
    *,
    folds: int,
    resamples: int,
    confidence: float,
    threads: int,
    seed: int,
) -> Estimate:
    """How well trees tell test posts from training posts: out-of-fold AUC, .5 when they cannot.

    What they can tell, trees of the stack can learn, and no hold-out of training posts shows it (method.md, "Two
    traps"). A feature may be NaN. Folds and the interval's draws keep the posts of a user together, or knowing
    the user would pass for knowing the part.
    """
    users = np.unique(groups, return_inverse=True)[1]
    scores = np.empty(len(is_test))
    params = {
        "objective": "binary", "learning_rate": 0.05, "num_leaves": 15, "min_data_in_leaf": 20, "max_bin": 63,
        "feature_fraction": 0.2, "seed": seed, "deterministic": True, "force_row_wise": True,
        "num_threads": threads, "verbosity": -1,
    }  # fmt: skip
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(features, is_test, users)
    for rows, own in split:
        booster = lgb.train(params, lgb.Dataset(features[rows], is_test[rows].astype(np.float64)), ROUNDS)
        scores[own] = np.asarray(booster.predict(features[own]))
    draws = resample_auc(scores, is_test, users, resamples=resamples, seed=seed)
    return Estimate(float(roc_auc_score(is_test, scores)), *interval(draws, confidence))


ROUNDS = 100  # of the classifier of train against test


def retrieval(image: Vectors, text: Vectors) -> dict[str, dict[str, float]]:
    """`recall_1`, `recall_10` and `median_rank` of a post's own text among all texts, and the other way round.

    By cosine of image (n, d) and text (n, d); keys `image_to_text` and `text_to_image`. Among equal similarities the
    order is a matter of chance: a recall is what it is on average over orders, a rank the mean one. Chance is
    k / n and (n + 1) / 2.
    """
    _check_finite(image, text)
    image, text = normalize_rows(image, dtype=np.float32), normalize_rows(text, dtype=np.float32)
    return {"image_to_text": _retrieve(image, text), "text_to_image": _retrieve(text, image)}


def _retrieve(queries: Single, answers: Single) -> dict[str, float]:
    above, tied = np.empty(len(queries)), np.empty(len(queries))
    for start in range(0, len(queries), CHUNK):
        rows = slice(start, start + CHUNK)
        similarity = queries[rows] @ answers.T
        own = similarity[np.arange(len(similarity)), np.arange(start, start + len(similarity))]
        above[rows], tied[rows] = _above_and_tied(similarity, own)
    ranks = above + (tied + 1) / 2
    return {
        "recall_1": float(_hits(above, tied, 1).mean()),
        "recall_10": float(_hits(above, tied, 10).mean()),
        "median_rank": float(np.median(ranks)),
    }


def class_scores(logits: Vectors, y: Classes) -> dict[str, float]:
    """`top_1`, `top_5` and `macro` (top-1 averaged over the classes that occur) of logits (n, classes) for y (n,).

    Equal logits count as what they are on average over their orders: constant logits score chance.
    """
    _check_finite(logits)
    above, tied = _above_and_tied(logits, logits[np.arange(len(y)), y])
    first = _hits(above, tied, 1)
    _, place, posts = np.unique(y, return_inverse=True, return_counts=True)
    return {
        "top_1": float(first.mean()),
        "top_5": float(_hits(above, tied, 5).mean()),
        "macro": float((np.bincount(place, weights=first) / posts).mean()),
    }


def _above_and_tied(values: Vectors, own: Vectors) -> tuple[FloatArray, FloatArray]:
    """For each row of (n, m) values: how many exceed its `own` (n,), and how many equal it (its own too)."""
    above = values > own[:, None] + TIE
    tied = np.abs(values - own[:, None]) <= TIE
    return above.sum(axis=1).astype(np.float64), tied.sum(axis=1).astype(np.float64)


def _hits(above: FloatArray, tied: FloatArray, k: int) -> FloatArray:
    """(n,) chance of being among the first k when equals are ordered at random."""
    return np.clip((k - above) / tied, 0, 1)


def silhouette(features: Vectors, y: Classes, *, max_posts: int, seed: int) -> float | None:
    """Mean silhouette of the classes by cosine distance, -1 to 1, on at most `max_posts` seeded rows.

    None when those rows are all of one class or all of different ones.
    """
    _check_finite(features)
    rows = np.sort(np.random.default_rng(seed).permutation(len(y))[:max_posts])
    if not 1 < len(np.unique(y[rows])) < len(rows):
        return None
    return float(silhouette_score(normalize_rows(features[rows], dtype=np.float32), y[rows], metric="cosine"))


def paired_interval(
    labels: FloatArray | Classes,
    first: FloatArray | Classes,
    second: FloatArray | Classes,
    users: Users,
    *,
    metric: Literal["src", "mae", "accuracy"],
    resamples: int,
    confidence: float,
    seed: int,
    cuts: Classes | None = None,
) -> Estimate:
    """The metric of `first` minus that of `second`, mean over seeds, with an interval over users and seeds.

    A draw takes users with replacement, each with all posts, and seeds with replacement; both sides are scored on
    the same draw. None where a metric is undefined; no interval for one user.

    Args:
        labels: (n,) labels, or class indices for `accuracy`.
        first: (n, seeds) predictions, or predicted class indices.
        second: as first, column by column of the same seeds; either may have one column that stands for all.
        users: (n,).
        metric: `accuracy` is the share of equal entries.
        resamples: number of draws.
        confidence: share of the draws inside the interval.
        seed: of the draws.
        cuts: (n,) the cut that scores each post: scores are means over the cuts; None for one.
    """
    seeds = max(first.shape[1], second.shape[1])
    if {first.shape[1], second.shape[1]} - {1, seeds}:
        raise ContractError(f"paired interval: {first.shape[1]} seeds against {second.shape[1]}")
    sides = [np.broadcast_to(side, (len(labels), seeds)) for side in (first, second)]
    predictions = np.hstack(sides).astype(np.float64)
    truth = labels.astype(np.float64)
    if metric == "accuracy":  # the mean error against 0 of a miss, turned round below
        predictions, truth = (predictions != truth[:, None]).astype(np.float64), np.zeros(len(labels))
    told = "src" if metric == "src" else "mae"
    sign = -1.0 if metric == "accuracy" else 1.0
    places = np.unique(users, return_inverse=True)[1]
    drawn = resample(truth, predictions, places, resamples=resamples, seed=seed, cuts=cuts)[told]
    picked = np.random.default_rng([seed, seeds]).integers(seeds, size=(resamples, seeds))
    left, right = (
        np.take_along_axis(part, picked, axis=1).mean(axis=1) for part in (drawn[:, :seeds], drawn[:, seeds:])
    )
    values = [score(truth, column, cuts)[told] for column in predictions.T]
    if any(value is None for value in values):
        return Estimate(None, None, None)
    difference = float(np.mean(values[:seeds]) - np.mean(values[seeds:]))  # type: ignore[arg-type]
    known = int(places.max()) > 0
    return Estimate(sign * difference, *(interval(sign * (left - right), confidence) if known else (None, None)))


def _check_finite(*parts: Vectors) -> None:
    for part in parts:
        if not np.isfinite(part).all():
            raise ContractError("a probe takes posts that have the vector; found NaN or infinity: leave such rows out")
