"""One absurd label among the train rows bends neither ridge, trend, learners nor error scale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from popularity.core.arrays import Float64Array
from popularity.core.outliers import clipped_labels
from popularity.stack.oof_ridge import fit_oof_ridge
from popularity.target.trend import Trend
from tests.stack.small_stack import STACK, Run, posts_with_signal, run_all

PARAMS = replace(STACK, detrend="family", learners=("lightgbm", "linear"), num_boost_round=40)
ABSURD = 40.0


def predictions(run: Run) -> tuple[Float64Array, Float64Array]:
    """Predictions and error scales of the holdout."""
    rows = run.predictions.filter(scheme="holdout", model="stack").sort("pid", "seed")
    return rows["prediction"].to_numpy(), rows["error_scale"].to_numpy()


def test_one_absurd_label_moves_no_prediction_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    posts, blocks = posts_with_signal(4, train=600, test=40, users=120)

    def run(posts: pl.DataFrame, name: str) -> Run:
        (tmp_path / name).mkdir()
        return run_all(posts, blocks, tmp_path / name, params=PARAMS, fitted=("holdout",))

    made = run(posts, "before")
    train = made.splits.filter(scheme="holdout", role="train").join(posts, on="pid").sort("posted_at")
    wrong = posts.with_columns(label=pl.when(pid=train["pid"][-10]).then(pl.lit(ABSURD)).otherwise("label"))
    before, after = predictions(made), predictions(run(wrong, "after"))
    for module in ("validation.folds", "features.build"):
        monkeypatch.setattr(f"popularity.{module}.clipped_labels", lambda label: label)
    unprotected = predictions(run(wrong, "unprotected"))
    for own, clipped, bent in zip(before, after, unprotected, strict=True):
        assert np.abs(clipped - own).mean() < 0.3
        assert np.abs(clipped - own).mean() < 0.5 * np.abs(bent - own).mean()


def test_one_absurd_label_bends_neither_the_out_of_fold_ridge_nor_the_trend() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 12)).astype(np.float32)
    label = 7.5 + np.clip(vectors[:, 0] + rng.normal(0, 0.5, 300), -2.5, 2.5)
    users = np.array([f"{user}@N0" for user in rng.integers(60, size=300)], dtype=object)
    posted_at = np.arange(300) * 86_400_000_000
    wrong = label.copy()
    wrong[290] = ABSURD
    other = np.arange(300) != 290

    def ridge(target: Float64Array) -> Float64Array:
        out_of_fold = fit_oof_ridge(vectors, target, users, folds=5, alphas=(1.0, 10.0), seed=0)[1]
        return np.asarray(out_of_fold[other], dtype=np.float64)

    def trend(target: Float64Array) -> Float64Array:
        fitted: Float64Array = Trend.fit(posted_at, target, "family").at(posted_at + 300 * 86_400_000_000)
        return fitted

    for fitted, most in ((ridge, 0.08), (trend, 0.25)):
        moved = np.abs(fitted(clipped_labels(wrong)) - fitted(label)).mean()
        assert moved < most
    assert np.abs(ridge(wrong) - ridge(label)).mean() > 2 * np.abs(ridge(clipped_labels(wrong)) - ridge(label)).mean()
