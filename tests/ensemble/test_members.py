"""The text model's share in the stack's predictions."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from popularity.core.contracts import PREDICTIONS, TEXT_PREDICTIONS
from popularity.core.errors import DataError
from popularity.ensemble.members import fitted_shares, merged, text_part

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


def told() -> pl.DataFrame:
    lines = [
        {"pid": pid, "scheme": "forward", "fold": fold, "prediction": value}
        for fold, values in THEIRS.items()
        for pid, value in zip(PIDS, values, strict=True)
    ]
    return pl.DataFrame(lines, schema={name: column.dtype for name, column in TEXT_PREDICTIONS.columns.items()})


def shares(share: float) -> pl.DataFrame:
    return rows("stack").select("scheme", "fold").unique().with_columns(share=pl.lit(share))


def test_posts_move_against_each_other_and_the_level_stays() -> None:
    found = merged(rows("stack"), told().sample(fraction=1.0, shuffle=True, seed=0), shares(0.25))
    assert found.drop("prediction").equals(rows("stack").drop("prediction"))
    for fold, seeds in OURS.items():
        centre, other = float(np.median(seeds)), float(np.median(THEIRS[fold]))
        for seed, values in enumerate(seeds):
            own = found.filter(fold=fold, seed=seed)["prediction"].to_numpy()
            expected = 0.75 * np.array(values) + 0.25 * (np.array(THEIRS[fold]) - other + centre)
            np.testing.assert_allclose(own, expected)
        one = merged(rows("stack").filter(fold=fold), told(), shares(1.0))["prediction"]
        assert one.median() == pytest.approx(centre)


def test_other_models_and_no_share_are_left_as_they_are() -> None:
    both = pl.concat([rows("metadata"), rows("stack")])
    assert merged(both, told(), shares(0.0)).equals(both)
    assert merged(both, told().clear(), shares(0.3)).equals(both)
    found = merged(both, told(), shares(0.3))
    assert found.filter(model="metadata").equals(rows("metadata"))
    assert found.filter(model="stack").equals(merged(rows("stack"), told(), shares(0.3)))


def test_a_post_that_the_text_model_lacks_is_named() -> None:
    with pytest.raises(DataError, match=r"post b of matched, fold 1, and 1 more"):
        merged(rows("stack"), told().filter(~((pl.col("pid") == "b") & (pl.col("fold") == 1))), shares(0.3))


def test_a_cut_has_no_say_in_its_own_share() -> None:
    """Labels of the first cut follow the text model, those of the second the stack."""
    rng = np.random.default_rng(0)
    pids = [f"{post:03d}" for post in range(60)]
    folds = np.repeat([0, 1], 30)
    ours, theirs = rng.normal(size=(2, 60))
    label = np.where(folds == 0, theirs, ours)
    facts = {"pid": pids, "fold": folds}
    lines = [
        pl.DataFrame({**facts, "scheme": "forward", "seed": 0, "model": model, "prediction": values})
        for model, values in (("stack", ours), ("constant", np.zeros(60)))
    ]
    lines.append(pl.DataFrame({**facts, "scheme": "holdout", "seed": 0, "model": "stack", "prediction": ours}))
    columns = list(PREDICTIONS.columns)
    predictions = pl.concat(lines).with_columns(error_scale=pl.lit(None, pl.Float64)).select(columns)
    said = pl.concat(
        pl.DataFrame({**facts, "scheme": scheme, "prediction": theirs + 5}) for scheme in ("forward", "holdout")
    )
    posts = pl.DataFrame({"pid": pids, "label": label})
    found = fitted_shares(predictions, said, posts, [0.0, 0.5, 1.0])
    chosen = {(scheme, fold): share for scheme, fold, share in found.iter_rows()}
    assert chosen["forward", 0] == 0.0
    assert chosen["forward", 1] == 1.0
    assert chosen["holdout", 0] == chosen["holdout", 1] == 0.5
    alone = fitted_shares(predictions.filter(pl.col("fold") == 0), said, posts, [0.0, 0.5, 1.0])
    assert alone["share"].to_list() == [1.0, 1.0]
    assert fitted_shares(predictions.filter(scheme="holdout"), said, posts, [0.3, 0.0])["share"].unique().item() == 0.3


def test_later_posts_are_merged_as_those_of_final() -> None:
    final, said = (table.filter(fold=0).with_columns(scheme=pl.lit("refit")) for table in (rows("stack"), told()))
    chosen = shares(0.25).filter(fold=0).with_columns(scheme=pl.lit("refit"))
    part = text_part(final, said, chosen)
    expected = 0.75 * final["prediction"] + 0.25 * (final.join(said, on="pid")["prediction_right"] - part["offset"])
    np.testing.assert_allclose(merged(final, said, chosen)["prediction"], expected)
    assert text_part(final, said.clear(), chosen)["share"] == text_part(final.clear(), said, chosen)["share"] == 0.0
