"""Weights of fit rows by how much they look like the rows to be scored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from popularity.stack.matrix import Matrix
from popularity.stack.weights import LEAST, MOST, label_free, likeness, row_weights

N, M = 300, 200
RNG = np.random.default_rng(4)
NAMES = (
    "category", "uid_history_level", "history.level", "rhythm.user_week", "hour", "image_head", "image_component_000",
    "image_neighbours.mean", "losses.global",
)  # fmt: skip
BLOCKS = (*("metadata",) * 5, *("image",) * 3, "prototype")


def matrix(n: int, shifted: float, seed: int) -> Matrix:
    """Random values; `hour` is moved."""
    values = np.random.default_rng(seed).normal(size=(n, len(NAMES))).astype(np.float32)
    values[:, NAMES.index("hour")] += shifted
    return Matrix(values, [f"{row:04d}" for row in range(n)], NAMES, BLOCKS, (0,))


FIT, SCORED = matrix(N, 0.0, 1), matrix(M, 1.0, 2)
USERS = np.array([f"{row % 60}@N0" for row in range(N)], dtype=object)
SCORED_USERS = np.array([f"{40 + row % 50}@N0" for row in range(M)], dtype=object)


def alike(fit: Matrix, scored: Matrix) -> np.ndarray:
    return likeness(fit, scored, USERS, SCORED_USERS, seed=0, threads=1)


def test_rows_like_the_scored_ones_weigh_more() -> None:
    weights = alike(FIT, SCORED)
    hour = FIT.values[:, NAMES.index("hour")]
    assert weights[hour > 0.5].mean() > 2 * weights[hour < -0.5].mean()
    assert LEAST <= weights.min() < weights.max() <= MOST
    # A weighted mean of the fit rows is nearer to that of the scored rows.
    there = SCORED.values[:, NAMES.index("hour")].mean()
    assert abs(np.average(hour, weights=weights) - there) < abs(hour.mean() - there) - 0.2
    np.testing.assert_array_equal(weights, alike(FIT, SCORED))


def test_columns_that_labels_went_into_tell_nothing() -> None:
    kept = [NAMES[place] for place in label_free(FIT)]
    assert kept == ["category", "hour", "image_component_000", "losses.global"]
    values = SCORED.values.copy()
    dropped = [place for place in range(len(NAMES)) if NAMES[place] not in kept]
    values[:, dropped] += 100
    np.testing.assert_array_equal(alike(FIT, replace(SCORED, values=values)), alike(FIT, SCORED))
    values[:, NAMES.index("losses.global")] += 100
    assert not np.array_equal(alike(FIT, replace(SCORED, values=values)), alike(FIT, SCORED))


def test_no_row_is_judged_by_posts_of_its_user() -> None:
    """A user's mark is no sign of the scored part, be most of his posts there; that of several users is one."""
    fit, scored = replace(FIT, values=FIT.values.copy()), replace(SCORED, values=matrix(M, 0.0, 3).values)
    hour = NAMES.index("hour")
    users, others = USERS.copy(), np.array([f"{100 + row % 50}@N0" for row in range(M)], dtype=object)
    users[:15] = others[:90] = "marked@N0"
    fit.values[:15, hour] = scored.values[:90, hour] = 50
    weights = [
        likeness(fit, scored, users, named, seed=0, threads=1)[:15].mean()
        for named in (others, np.where(others == "marked@N0", [f"{row % 9}@N9" for row in range(M)], others))
    ]
    assert weights[1] > 2 * weights[0]


@pytest.mark.parametrize("kind", ["recency", "adversarial", "both"])
def test_kinds(kind: str) -> None:
    recency = RNG.uniform(0.5, 1.5, N)
    recency /= recency.mean()
    how = {"seed": 0, "threads": 1}
    found = row_weights(kind, recency, FIT, SCORED, USERS, SCORED_USERS, **how)  # type: ignore[arg-type]
    assert found is not None
    assert found.mean() == pytest.approx(1.0)
    odds = alike(FIT, SCORED)
    expected = {"recency": recency, "adversarial": odds, "both": odds * recency}[kind]
    np.testing.assert_allclose(found / found[0], expected / expected[0])
    none = matrix(0, 0.0, 5)
    assert row_weights(kind, recency, FIT, none, USERS, SCORED_USERS[:0], **how) is recency  # type: ignore[arg-type]
    assert row_weights("recency", None, FIT, SCORED, USERS, SCORED_USERS, seed=0, threads=1) is None


def test_one_user_is_no_fold() -> None:
    users = np.array(["1@N0"] * N, dtype=object)
    weights = likeness(FIT, SCORED, users, users[:M], seed=0, threads=1)
    assert np.ptp(weights) == 0
