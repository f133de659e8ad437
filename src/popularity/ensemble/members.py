"""The stack's predictions and those of the text model that was fine-tuned beside it, in shares that the cuts choose.

The level stays the stack's: the text model only moves the posts of a fold against each other. Both predict what
`matched` scores without its labels, so that says what share pays; a cut's own is chosen by the others. `report` is
asked nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import starmap
from pathlib import Path

import numpy as np
import polars as pl

from popularity.core.contracts import TEXT_PREDICTIONS, FoldKey, empty_table, read_table
from popularity.core.errors import DataError
from popularity.core.metrics import selection_loss

MODEL, CONSTANT, SCHEME = "stack", "constant", "forward"
FOLD = ("scheme", "fold")
TOLD = "told"


def read_told(folder: Path | None) -> pl.DataFrame:
    """What stages.text_model wrote (contract TEXT_PREDICTIONS); without a folder no row."""
    return read_table(folder / "predictions.parquet", TEXT_PREDICTIONS) if folder else empty_table(TEXT_PREDICTIONS)


def merge(
    predictions: pl.DataFrame, told: pl.DataFrame, posts: pl.DataFrame, candidates: Sequence[float]
) -> tuple[pl.DataFrame, dict[str, float]]:
    """`merged` in the shares of `fitted_shares`, and their `text_part`."""
    shares = fitted_shares(predictions, told, posts, candidates)
    return merged(predictions, told, shares), text_part(predictions, told, shares)


def merged(predictions: pl.DataFrame, told: pl.DataFrame, shares: pl.DataFrame) -> pl.DataFrame:
    """The predictions (contract PREDICTIONS), in their order; those of MODEL moved towards the text model's.

    Both are taken as distances from their medians over the fold's scored posts.

    Args:
        predictions: of any folds and models.
        told: contract TEXT_PREDICTIONS; without a row nothing is moved.
        shares: (scheme, fold, share) of the text model, 0 to 1.

    Raises:
        DataError: the text model says nothing of a post of MODEL.
    """
    if told.is_empty():
        return predictions
    joined = _joined(predictions, told).join(shares, on=FOLD, how="left", validate="m:1", maintain_order="left")
    own, other = (pl.col(name) - _centre(name) for name in ("prediction", TOLD))
    moved = pl.col("prediction") + pl.col("share") * (other - own)
    ours = pl.col("model") == MODEL
    return joined.with_columns(prediction=pl.when(ours).then(moved).otherwise("prediction")).drop(TOLD, "share")


def text_part(predictions: pl.DataFrame, told: pl.DataFrame, shares: pl.DataFrame) -> dict[str, float]:
    """How predictions of later posts are merged: (1 - share) * own + share * (text model's - offset).

    The share is that of `final`, 0 where there is nothing to merge. The offset is how far the text model's predictions
    of the test part lie above those of MODEL, in their medians.
    """
    final = predictions.filter(scheme="refit", model=MODEL)
    if told.is_empty() or final.is_empty():
        return {"share": 0.0, "offset": 0.0}
    offset = _joined(final, told).select(_centre(TOLD) - _centre("prediction")).to_series()[0]
    return {"share": float(shares.filter(scheme="refit")["share"].item()), "offset": float(offset)}


def fitted_shares(
    predictions: pl.DataFrame, told: pl.DataFrame, posts: pl.DataFrame, candidates: Sequence[float]
) -> pl.DataFrame:
    """(scheme, fold, share) for every fold of the predictions: the best candidate on the cuts of `matched`.

    The best has the least mean over the cuts of MAE over the constant's, minus SRC; of equals the first. A cut is left
    out of its own choice where there are others. Without a cut it is the first candidate.

    Args:
        predictions: contract PREDICTIONS.
        told: contract TEXT_PREDICTIONS.
        posts: contract POSTS.
        candidates: shares, 0 to 1.
    """
    folds = predictions.select(FOLD).unique().sort(FOLD)
    cuts = folds.filter(scheme=SCHEME)
    values = {share: _values(predictions, told, posts, cuts, share) for share in candidates} if cuts.height else {}
    shares = [_best(values, candidates, key, cuts.height) for key in starmap(FoldKey, folds.iter_rows())]
    return folds.with_columns(share=pl.Series(shares, dtype=pl.Float64))


def _values(
    predictions: pl.DataFrame, told: pl.DataFrame, posts: pl.DataFrame, cuts: pl.DataFrame, share: float
) -> dict[FoldKey, float]:
    """Of every cut, at a share."""
    own = predictions.filter(pl.col("scheme") == SCHEME, pl.col("model").is_in([MODEL, CONSTANT]))
    moved = merged(own, told, cuts.with_columns(share=pl.lit(share)))
    means = moved.group_by(*FOLD, "pid", "model").agg(pl.mean("prediction")).pivot(on="model", values="prediction")
    means = means.join(posts.select("pid", "label"), on="pid", how="left", validate="m:1").sort(*FOLD, "pid")
    found = {}
    for (scheme, fold), rows in means.group_by(FOLD, maintain_order=True):
        label, predicted, constant = (rows[name].to_numpy() for name in ("label", MODEL, CONSTANT))
        found[FoldKey(str(scheme), int(str(fold)))] = selection_loss(label, predicted, constant)
    return found


def _best(
    values: Mapping[float, Mapping[FoldKey, float]], candidates: Sequence[float], key: FoldKey, cuts: int
) -> float:
    if not values:
        return candidates[0]
    means = [
        np.mean([value for cut, value in values[share].items() if cut != key or cuts == 1]) for share in candidates
    ]
    return candidates[int(np.argmin(means))]


def _centre(column: str) -> pl.Expr:
    return pl.col(column).filter(pl.col("model") == MODEL).median().over(FOLD)


def _joined(predictions: pl.DataFrame, told: pl.DataFrame) -> pl.DataFrame:
    told = told.select(*TEXT_PREDICTIONS.key, pl.col("prediction").alias(TOLD))
    joined = predictions.join(told, on=TEXT_PREDICTIONS.key, how="left", validate="m:1", maintain_order="left")
    lacking = joined.filter(pl.col("model") == MODEL, pl.col(TOLD).is_null())
    if lacking.height:
        scheme, fold, pid = lacking.select(*FOLD, "pid").row(0)
        raise DataError(
            f"no prediction of the text model for post {pid} of {FoldKey(scheme, fold)}, "
            f"and {lacking.height - 1} more",
            expected="one for each scored post", fix="dvc repro text_model",
        )  # fmt: skip
    return joined
