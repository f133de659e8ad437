"""The ensemble: the weighted mean of the stack's members, the text model and files, weighted on the forward splits.

The members of the stack and of files count as they are. The text model moves the posts of a fold against each other
alone: its predictions are taken as differences from their median, and the median of the stack's equal mean is added
again.

Every member predicts the valid posts of `forward` without their labels, so these splits choose the weights
(popularity.ensemble.greedy); the weights in a split are chosen on the others. `holdout` chooses nothing. In a scheme
without predictions of a member, the others share its weight; without `forward` only the stack's members have one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
from pydantic import Field

from popularity.core.arrays import Float64Array, rounded
from popularity.core.config import Section
from popularity.core.contracts import (
    BASELINES,
    FORWARD,
    MAIN_MODEL,
    MEMBER_PREDICTIONS,
    PREDICTIONS,
    REFIT,
    TEXT_MODEL,
    FoldKey,
    read_table,
)
from popularity.core.errors import DataError
from popularity.ensemble.greedy import OutOfFold, greedy_weights, shrunk

CONSTANT = "constant"
RESERVED = (*BASELINES, MAIN_MODEL, TEXT_MODEL)  # names that no file of a member can have
FOLD = ["scheme", "fold"]
ROW = [*FOLD, "seed", "pid"]
MIN_STACK = 0.05  # share of the stack's members together: a prediction is explained by their columns
DIGITS = 6  # of a weight or loss in weights.json, for people

Weights = Mapping[str, float]  # by member, not negative, of sum 1; a member that is not there has none


@dataclass(frozen=True)
class EnsembleParams(Section):
    """Section ensemble of params.yaml.

    Args:
        seed: of the bags of the greedy selection.
        text_model: whether the text model is a member.
        members: names of files <name>.parquet (contract MEMBER_PREDICTIONS) of other members.
        shrinkage: the share of the way from the greedy weights of the stack's members to equal ones. These members are
            alike; the text model and files keep their weights, because one that knows nothing would take a share.
    """

    seed: Annotated[int, Field(ge=0)]
    text_model: bool
    members: tuple[str, ...]
    shrinkage: Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class MemberTable:
    """The predictions of all members.

    Args:
        names: of the members, those of the stack first.
        rows: scheme, fold, seed, pid, a column a member, `error_scale:<member>` for those of the stack, and `constant`;
            sorted by scheme, fold, seed, pid. The text model's predictions are already centred. A member that is none
            of the stack's is null in schemes that it does not predict.
        offset: what was taken off the text model's predictions of the test part; 0 without any.
    """

    names: Sequence[str]
    rows: pl.DataFrame
    offset: float

    @classmethod
    def of(
        cls, predictions: pl.DataFrame, text: pl.DataFrame | None, others: Mapping[str, pl.DataFrame] | None = None
    ) -> MemberTable:
        """The table of all members.

        Args:
            predictions: contract PREDICTIONS, of stage stack.
            text: of the text model, contract MEMBER_PREDICTIONS; None or without a row: it is no member.
            others: of members from files, likewise, by name.

        Raises:
            DataError: a member has the scheme, but lacks a post, or a name is taken.
        """
        names = [name for name in predictions["model"].unique().sort() if name not in BASELINES]
        own = predictions.filter(pl.col("model").is_in(names))
        values = own.pivot(on="model", index=ROW, values="prediction")
        scales = own.pivot(on="model", index=ROW, values="error_scale")
        scales = scales.rename({name: f"error_scale:{name}" for name in names})
        constant = predictions.filter(model=CONSTANT).select(*FOLD, "pid", pl.col("prediction").alias(CONSTANT))
        rows = values.join(scales, on=ROW, how="left", validate="1:1").join(
            constant, on=[*FOLD, "pid"], how="left", validate="m:1"
        )
        rows = rows.sort(ROW)
        for name, member in (others or {}).items():
            if name in [*names, *RESERVED]:
                raise DataError(f"ensemble.members: another member has the name {name}", expected="a name of its own")
            rows = _joined(rows, name, member)
        stack, names = names, [*names, *(others or {})]
        if text is None or text.is_empty():
            return cls(names, rows, 0.0)
        rows = _joined(rows, TEXT_MODEL, text)
        offset = pl.col(TEXT_MODEL).median() - pl.mean_horizontal(stack).median()
        refit = rows.filter(scheme=REFIT)
        known = float(refit.select(offset).item()) if refit.height else 0.0
        return cls([*names, TEXT_MODEL], rows.with_columns(pl.col(TEXT_MODEL) - offset.over(FOLD)), known)

    def out_of_fold(self, posts: pl.DataFrame) -> OutOfFold:
        """The rows of the forward splits, of the members that predict them; predictions are means over the seeds.

        Args:
            posts: contract POSTS.
        """
        means = (
            self.rows.filter(scheme=FORWARD)
            .group_by("fold", "pid")
            .agg(pl.mean(*self.names), pl.first(CONSTANT))
            .join(posts.select("pid", "uid", "label"), on="pid", how="left", validate="m:1")
            .sort("fold", "pid")
        )
        names = [name for name in self.names if not means[name].has_nulls()]
        return OutOfFold(
            names=names,
            fold=means["fold"].to_numpy().astype(np.int64),
            label=means["label"].to_numpy(),
            user=np.unique(means["uid"].to_numpy().astype(str), return_inverse=True)[1].astype(np.int64),
            baseline=means[CONSTANT].to_numpy(),
            prediction=means.select(names).to_numpy(),
        )

    def mean(self, chosen: Chosen) -> pl.DataFrame:
        """The predictions of the ensemble (contract PREDICTIONS, model MAIN_MODEL), sorted by its key.

        In a fold that a member does not predict, the others share its weight. The error scale is the weighted mean of
        those of the stack's members.

        Args:
            chosen: the weights of every fold.
        """
        scaled = [name for name in self.names if f"error_scale:{name}" in self.rows.columns]
        parts = []
        for (scheme, fold), rows in self.rows.group_by(FOLD, maintain_order=True):
            own = chosen.of(FoldKey(str(scheme), int(str(fold))))
            fitted = [name for name in self.names if not rows[name].has_nulls()]
            values = rows.select(fitted).to_numpy() @ _shares(own, fitted)
            known = [name for name in scaled if name in fitted]
            scales = rows.select(f"error_scale:{name}" for name in known).to_numpy() @ _shares(own, known)
            parts.append(
                rows.select(ROW).with_columns(
                    model=pl.lit(MAIN_MODEL), prediction=pl.Series(values), error_scale=pl.Series(scales)
                )
            )
        columns = {name: column.dtype for name, column in PREDICTIONS.columns.items()}
        return pl.concat(parts).select(pl.col(name).cast(kind) for name, kind in columns.items()).sort(PREDICTIONS.key)


@dataclass(frozen=True)
class Chosen:
    """The weights of the members.

    Args:
        whole: those that all forward splits choose.
        by_split: those of a forward split, by its number, which the other splits choose.
    """

    whole: Weights
    by_split: Mapping[int, Weights]

    def of(self, key: FoldKey) -> Weights:
        """The weights in a fold."""
        return self.by_split[key.fold] if key.scheme == FORWARD else self.whole


def _shares(weights: Weights, names: Sequence[str]) -> Float64Array:
    """(members,) weights of some members, scaled to sum 1; equal ones where they have none."""
    own = np.array([weights.get(name, 0.0) for name in names])
    shares: Float64Array = own / own.sum() if own.sum() > 0 else np.full(len(names), 1 / len(names))
    return shares


def chosen_weights(rows: OutOfFold, params: EnsembleParams) -> Chosen:
    """The weights that the forward splits choose; a single split chooses its own.

    Without a split, the stack's members have equal weights and the others none.

    Args:
        rows: of the forward splits.
        params: section ensemble.
    """
    own = np.array([name not in (TEXT_MODEL, *params.members) for name in rows.names])  # those of the stack
    if not len(rows.label):
        return Chosen({name: 1 / own.sum() for name, of_stack in zip(rows.names, own, strict=True) if of_stack}, {})

    def weights(some: OutOfFold) -> Weights:
        found = greedy_weights(some, params.seed)
        share = max(found[own].sum(), MIN_STACK)
        stack = shrunk(found[own], params.shrinkage) if found[own].any() else np.ones(own.sum())
        found[own] = stack / stack.sum() * share
        if others := found[~own].sum():
            found[~own] *= (1 - share) / others
        return dict(zip(rows.names, found.tolist(), strict=True))

    return Chosen(weights(rows), {fold: weights(rows.without(fold)) for fold in rows.folds})


def summary(rows: OutOfFold, chosen: Chosen, table: MemberTable, files: Sequence[str]) -> dict[str, Any]:
    """The content of weights.json: weights, the text model's offset, and losses on the forward splits.

    Later posts are predicted as sum(weight * prediction), less the offset in the text model's predictions. The loss of
    the ensemble in a split is that of the weights that the other splits choose.

    Args:
        rows: of the forward splits.
        chosen: the weights.
        table: of the members.
        files: names of the members that have no model here.
    """
    losses: dict[str, float | None] = {}
    ensemble = None
    if len(rows.label):
        losses = {
            name: rounded(float(loss), DIGITS) for name, loss in zip(rows.names, rows.losses_of_members(), strict=True)
        }
        each = [
            rows.only(fold).losses(np.array([own[name] for name in rows.names]))[0]
            for fold, own in chosen.by_split.items()
        ]
        ensemble = rounded(float(np.mean(each)), DIGITS)
    return {
        "weights": dict(chosen.whole),
        "files": list(files),
        "text_model_offset": table.offset,
        "losses": losses,
        "ensemble_loss": ensemble,
        "splits": len(chosen.by_split),
    }


def weighted_importance(importance: pl.DataFrame, weights: Weights) -> pl.DataFrame:
    """(block, feature, gain), largest first: the share of each feature in a member's gain, averaged over the members.

    Args:
        importance: (model, block, feature, gain) of the stack's members.
        weights: of the members.
    """
    total = pl.col("gain").sum().over("model")
    share = pl.when(total > 0).then(pl.col("gain") / total).otherwise(0.0)
    own = pl.col("model").replace_strict(dict(weights), return_dtype=pl.Float64)
    return (
        importance.with_columns(gain=share * own)
        .group_by("block", "feature", maintain_order=True)
        .agg(pl.sum("gain"))
        .sort(["gain", "feature"], descending=[True, False])
    )


def read_text_predictions(folder: Path | None) -> pl.DataFrame | None:
    """What stages.text_model wrote (contract MEMBER_PREDICTIONS); None without a folder."""
    return read_table(folder / "predictions.parquet", MEMBER_PREDICTIONS) if folder else None


def read_members(names: Sequence[str], folder: Path) -> dict[str, pl.DataFrame]:
    """Predictions (contract MEMBER_PREDICTIONS) by name, of the files that section ensemble names.

    Args:
        names: of members.
        folder: of <name>.parquet.

    Raises:
        DataError: there is no such file, or it lacks the forward splits or the test part.
    """
    found = {}
    for name in names:
        file = folder / f"{name}.parquet"
        if not file.is_file():
            raise DataError(
                f"no file of the member {name}", file=file, expected="a file for each name in ensemble.members",
                fix="python -m popularity.member --help",
            )  # fmt: skip
        found[name] = read_table(file, MEMBER_PREDICTIONS)
        for scheme in {FORWARD, REFIT} - {*found[name]["scheme"]}:
            raise DataError(
                f"no row of scheme {scheme}", file=file,
                expected="predictions of the valid posts of forward, which choose its weight, and of refit's",
            )  # fmt: skip
    return found


def _joined(rows: pl.DataFrame, name: str, member: pl.DataFrame) -> pl.DataFrame:
    """`rows` with a member's predictions as a column; null in schemes that it does not have."""
    column = member.select(*MEMBER_PREDICTIONS.key, pl.col("prediction").alias(name))
    rows = rows.join(column, on=MEMBER_PREDICTIONS.key, how="left", validate="m:1", maintain_order="left")
    schemes = member["scheme"].unique().to_list()
    missing = rows.filter(pl.col("scheme").is_in(schemes), pl.col(name).is_null()).select(*FOLD, "pid")
    if missing.height:
        missing = missing.unique(maintain_order=True)
        scheme, fold, pid = missing.row(0)
        raise DataError(
            f"member {name}: no prediction for post {pid} of {FoldKey(scheme, fold)}, and {missing.height - 1} more",
            expected="one for each valid post of a scheme that it predicts",
            fix="dvc repro text_model" if name == TEXT_MODEL else "write its file again for these splits",
        )  # fmt: skip
    return rows
