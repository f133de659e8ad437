"""The text model's weight in the stack's predictions."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from popularity.core.contracts import PREDICTIONS, TEXT_PREDICTIONS
from popularity.core.errors import DataError
from popularity.ensemble.members import member_weights, refit_weight, weighted_mean

PIDS = ["a", "b", "c"]
OURS = {0: [[1.0, 2.0, 6.0], [1.0, 4.0, 6.0]], 1: [[0.0, 5.0, 7.0], [2.0, 5.0, 9.0]]}  # by fold, a list a seed
THEIRS = {0: [13.0, 11.0, 12.0], 1: [-1.0, -3.0, -5.0]}


def rows(model: str) -> pl.DataFrame:
    lines = [
        {"pid": pid, "scheme": "forward", "fold": fold, "seed": seed, "model": model, "prediction": value}
        for fold, seeds in OURS.items()
        for seed, values in enumerate(seeds)
        for pid, value in zip(PIDS, values, strict=True)
    ]
    schema = {name: column.dtype for name, column in PREDICTIONS.columns.items()}
    return pl.DataFrame(lines, schema=schema)


def member() -> pl.DataFrame:
    lines = [
        {"pid": pid, "scheme": "forward", "fold": fold, "prediction": value}
        for fold, values in THEIRS.items()
        for pid, value in zip(PIDS, values, strict=True)
    ]
    return pl.DataFrame(lines, schema={name: column.dtype for name, column in TEXT_PREDICTIONS.columns.items()})


def weights(weight: float) -> pl.DataFrame:
    return rows("stack").select("scheme", "fold").unique().with_columns(weight=pl.lit(weight))


def test_posts_move_against_each_other_and_the_median_stays() -> None:
    found = weighted_mean(rows("stack"), member().sample(fraction=1.0, shuffle=True, seed=0), weights(0.25))
    assert found.drop("prediction").equals(rows("stack").drop("prediction"))
    for fold, seeds in OURS.items():
        centre, other = float(np.median(seeds)), float(np.median(THEIRS[fold]))
        for seed, values in enumerate(seeds):
            own = found.filter(fold=fold, seed=seed)["prediction"].to_numpy()
            expected = 0.75 * np.array(values) + 0.25 * (np.array(THEIRS[fold]) - other + centre)
            np.testing.assert_allclose(own, expected)
        one = weighted_mean(rows("stack").filter(fold=fold), member(), weights(1.0))["prediction"]
        assert one.median() == pytest.approx(centre)


def test_other_models_and_a_weight_of_zero_change_nothing() -> None:
    both = pl.concat([rows("metadata"), rows("stack")])
    assert weighted_mean(both, member(), weights(0.0)).equals(both)
    assert weighted_mean(both, member().clear(), weights(0.3)).equals(both)
    found = weighted_mean(both, member(), weights(0.3))
    assert found.filter(model="metadata").equals(rows("metadata"))
    assert found.filter(model="stack").equals(weighted_mean(rows("stack"), member(), weights(0.3)))


def test_a_post_that_the_text_model_lacks_is_named() -> None:
    with pytest.raises(DataError, match=r"post b of forward, fold 1, and 1 more"):
        weighted_mean(rows("stack"), member().filter(~((pl.col("pid") == "b") & (pl.col("fold") == 1))), weights(0.3))


def test_a_scheme_without_the_text_model_keeps_the_stack() -> None:
    group = rows("stack").with_columns(scheme=pl.lit("group"))
    both = pl.concat([rows("stack"), group])
    every = both.select("scheme", "fold").unique().with_columns(weight=pl.lit(0.3))
    found = weighted_mean(both, member(), every)
    assert found.filter(scheme="group").equals(group)
    assert found.filter(scheme="forward").equals(weighted_mean(rows("stack"), member(), weights(0.3)))


def test_a_split_does_not_choose_its_own_weight() -> None:
    """Labels of the first split follow the text model, those of the second the stack."""
    rng = np.random.default_rng(0)
    pids = [f"{post:03d}" for post in range(60)]
    folds = np.repeat([0, 1], 30)
    ours, theirs = rng.normal(size=(2, 60))
    label = np.where(folds == 0, theirs, ours)
    metadata = {"pid": pids, "fold": folds}
    lines = [
        pl.DataFrame({**metadata, "scheme": "forward", "seed": 0, "model": model, "prediction": values})
        for model, values in (("stack", ours), ("constant", np.zeros(60)))
    ]
    lines.append(pl.DataFrame({**metadata, "scheme": "holdout", "seed": 0, "model": "stack", "prediction": ours}))
    columns = list(PREDICTIONS.columns)
    predictions = pl.concat(lines).with_columns(error_scale=pl.lit(None, pl.Float64)).select(columns)
    member_rows = pl.concat(
        pl.DataFrame({**metadata, "scheme": scheme, "prediction": theirs + 5}) for scheme in ("forward", "holdout")
    )
    posts = pl.DataFrame({"pid": pids, "label": label})
    found = member_weights(predictions, member_rows, posts, [0.0, 0.5, 1.0])
    chosen = {(scheme, fold): weight for scheme, fold, weight in found.iter_rows()}
    assert chosen["forward", 0] == 0.0
    assert chosen["forward", 1] == 1.0
    assert chosen["holdout", 0] == chosen["holdout", 1] == 0.5
    alone = member_weights(predictions.filter(pl.col("fold") == 0), member_rows, posts, [0.0, 0.5, 1.0])
    assert alone["weight"].to_list() == [1.0, 1.0]
    assert (
        member_weights(predictions.filter(scheme="holdout"), member_rows, posts, [0.3, 0.0])["weight"].unique().item()
        == 0.3
    )


def test_later_posts_are_predicted_as_those_of_refit() -> None:
    refit, member_rows = (
        table.filter(fold=0).with_columns(scheme=pl.lit("refit")) for table in (rows("stack"), member())
    )
    chosen = weights(0.25).filter(fold=0).with_columns(scheme=pl.lit("refit"))
    stored = refit_weight(refit, member_rows, chosen)
    expected = 0.75 * refit["prediction"] + 0.25 * (
        refit.join(member_rows, on="pid")["prediction_right"] - stored["offset"]
    )
    np.testing.assert_allclose(weighted_mean(refit, member_rows, chosen)["prediction"], expected)
    assert (
        refit_weight(refit, member_rows.clear(), chosen)["weight"]
        == refit_weight(refit.clear(), member_rows, chosen)["weight"]
        == 0.0
    )
