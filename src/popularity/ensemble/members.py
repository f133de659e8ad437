"""The text model as a member of the ensemble: its predictions and the stack's, with weights fitted on `forward`.

The text model moves the posts of a fold against each other; the stack's median stays. Both members predict the valid
posts of `forward` without their labels, so those splits choose the weight; a split's own weight is chosen on the
others. `holdout` chooses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import starmap
from pathlib import Path

import numpy as np
import polars as pl

from popularity.core.contracts import FORWARD, MAIN_MODEL, REFIT, TEXT_PREDICTIONS, FoldKey, empty_table, read_table
from popularity.core.errors import DataError
from popularity.core.metrics import selection_loss

CONSTANT = "constant"
FOLD = ("scheme", "fold")
MEMBER = "member"  # column of a member's predictions


def read_member(folder: Path | None) -> pl.DataFrame:
    """Returns what stages.text_model wrote (contract TEXT_PREDICTIONS); no row without a folder."""
    return read_table(folder / "predictions.parquet", TEXT_PREDICTIONS) if folder else empty_table(TEXT_PREDICTIONS)


def add_member(
    predictions: pl.DataFrame, member: pl.DataFrame, posts: pl.DataFrame, candidates: Sequence[float]
) -> tuple[pl.DataFrame, dict[str, float]]:
    """Returns the `weighted_mean` by the weights of `member_weights`, and `refit_weight`.

    Args:
        predictions: contract PREDICTIONS.
        member: contract TEXT_PREDICTIONS.
        posts: contract POSTS.
        candidates: weights, 0 to 1.
    """
    weights = member_weights(predictions, member, posts, candidates)
    return weighted_mean(predictions, member, weights), refit_weight(predictions, member, weights)


def weighted_mean(predictions: pl.DataFrame, member: pl.DataFrame, weights: pl.DataFrame) -> pl.DataFrame:
    """Returns the predictions (contract PREDICTIONS), in their order; MAIN_MODEL's are averaged with the member's.

    Both are taken as differences from their medians over the fold's valid posts. Schemes in which the member was not
    fitted stay as they are.

    Args:
        predictions: of any folds and models.
        member: contract TEXT_PREDICTIONS; without a row nothing changes.
        weights: (scheme, fold, weight) of the member, 0 to 1.

    Raises:
        DataError: the member has the scheme, but lacks a post of MAIN_MODEL.
    """
    if member.is_empty():
        return predictions
    joined = _joined(predictions, member).join(weights, on=FOLD, how="left", validate="m:1", maintain_order="left")
    own, other = (pl.col(name) - _centre(name) for name in ("prediction", MEMBER))
    mean = pl.col("prediction") + pl.col("weight") * (other - own)
    is_model = (pl.col("model") == MAIN_MODEL) & _has_scheme(member)
    return joined.with_columns(prediction=pl.when(is_model).then(mean).otherwise("prediction")).drop(MEMBER, "weight")


def refit_weight(predictions: pl.DataFrame, member: pl.DataFrame, weights: pl.DataFrame) -> dict[str, float]:
    """Returns how later posts are predicted: (1 - weight) * own + weight * (the member's - offset).

    The weight is that of `refit`, 0 without a member. The offset is how far the member's predictions of the test part
    lie above those of MAIN_MODEL, in their medians.

    Args:
        predictions: contract PREDICTIONS.
        member: contract TEXT_PREDICTIONS.
        weights: (scheme, fold, weight).
    """
    refit = predictions.filter(scheme=REFIT, model=MAIN_MODEL)
    if member.is_empty() or refit.is_empty():
        return {"weight": 0.0, "offset": 0.0}
    offset = _joined(refit, member).select(_centre(MEMBER) - _centre("prediction")).to_series()[0]
    return {"weight": float(weights.filter(scheme=REFIT)["weight"].item()), "offset": float(offset)}


def member_weights(
    predictions: pl.DataFrame, member: pl.DataFrame, posts: pl.DataFrame, candidates: Sequence[float]
) -> pl.DataFrame:
    """Returns (scheme, fold, weight) for every fold of the predictions: the best candidate on the splits of `forward`.

    The best has the least mean selection loss over the splits; of equals the first. A split does not choose its own
    weight where there are others. Without a split it is the first candidate.

    Args:
        predictions: contract PREDICTIONS.
        member: contract TEXT_PREDICTIONS.
        posts: contract POSTS.
        candidates: weights, 0 to 1.
    """
    folds = predictions.select(FOLD).unique().sort(FOLD)
    splits = folds.filter(scheme=FORWARD)
    losses = {
        weight: _losses(predictions, member, posts, splits.with_columns(weight=pl.lit(weight))) for weight in candidates
    } if splits.height else {}  # fmt: skip
    weights = [_best(losses, candidates, key, splits.height) for key in starmap(FoldKey, folds.iter_rows())]
    return folds.with_columns(weight=pl.Series(weights, dtype=pl.Float64))


def _losses(
    predictions: pl.DataFrame, member: pl.DataFrame, posts: pl.DataFrame, weights: pl.DataFrame
) -> dict[FoldKey, float]:
    """The selection loss of every split at its weight."""
    own = predictions.filter(pl.col("scheme") == FORWARD, pl.col("model").is_in([MAIN_MODEL, CONSTANT]))
    mean = weighted_mean(own, member, weights)
    by_model = mean.group_by(*FOLD, "pid", "model").agg(pl.mean("prediction")).pivot(on="model", values="prediction")
    by_model = by_model.join(posts.select("pid", "label"), on="pid", how="left", validate="m:1").sort(*FOLD, "pid")
    losses = {}
    for (scheme, fold), rows in by_model.group_by(FOLD, maintain_order=True):
        label, predicted, constant = (rows[name].to_numpy() for name in ("label", MAIN_MODEL, CONSTANT))
        losses[FoldKey(str(scheme), int(str(fold)))] = selection_loss(label, predicted, constant)
    return losses


def _best(
    losses: Mapping[float, Mapping[FoldKey, float]], candidates: Sequence[float], key: FoldKey, n_splits: int
) -> float:
    if not losses:
        return candidates[0]
    means = [
        np.mean([loss for split, loss in losses[weight].items() if split != key or n_splits == 1])
        for weight in candidates
    ]
    return candidates[int(np.argmin(means))]


def _centre(column: str) -> pl.Expr:
    return pl.col(column).filter(pl.col("model") == MAIN_MODEL).median().over(FOLD)


def _has_scheme(member: pl.DataFrame) -> pl.Expr:
    return pl.col("scheme").is_in(member["scheme"].unique().to_list())


def _joined(predictions: pl.DataFrame, member: pl.DataFrame) -> pl.DataFrame:
    member = member.select(*TEXT_PREDICTIONS.key, pl.col("prediction").alias(MEMBER))
    joined = predictions.join(member, on=TEXT_PREDICTIONS.key, how="left", validate="m:1", maintain_order="left")
    missing = joined.filter(pl.col("model") == MAIN_MODEL, pl.col(MEMBER).is_null(), _has_scheme(member))
    if missing.height:
        scheme, fold, pid = missing.select(*FOLD, "pid").row(0)
        raise DataError(
            f"no prediction of the text model for post {pid} of {FoldKey(scheme, fold)}, "
            f"and {missing.height - 1} more",
            expected="one for each valid post", fix="dvc repro text_model",
        )  # fmt: skip
    return joined
