"""The members of the stack as one model: predictions and SHAP values are weighted means over the members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from popularity.core.arrays import Float32Array, Float64Array
from popularity.stack.model import Explained, Predicted


@dataclass(frozen=True)
class ShapValues:
    """SHAP values of n posts, in label units: expected value and the blocks' values add up to the prediction.

    Args:
        expected_value: (n,) what all posts share, with the trend at the post's date.
        blocks: pid, block, shap_value (the sum over the block's columns), by falling size.
        features: pid, rank (0 is the largest in size), block, feature, value (null: missing; a code in a categorical
            column), shap_value.
    """

    expected_value: Float64Array
    blocks: pl.DataFrame
    features: pl.DataFrame


def weighted_mean(
    members: Mapping[str, Explained], weights: Mapping[str, float], largest: int
) -> tuple[Predicted, ShapValues]:
    """The members' mean: its predictions and SHAP values, and those of its features.

    Members share columns by name; the value of a shared column is that of the member of the largest weight.

    Args:
        members: of n posts, at least one member; all have the same posts in the same order.
        weights: of the members, of sum 1.
        largest: how many features of each post are listed.
    """
    order = sorted(members, key=lambda name: -weights[name])
    posts = len(members[order[0]].predicted.values)
    predicted, expected_value = Predicted(np.zeros(posts), np.zeros(posts)), np.zeros(posts)
    columns: dict[str, int] = {}
    blocks: list[str] = []
    for name in order:
        for column in members[name].matrix.columns:
            if column.name not in columns:
                columns[column.name] = len(columns)
                blocks.append(column.block)
    shap_values, values = np.zeros((posts, len(columns))), np.full((posts, len(columns)), np.nan, dtype=np.float32)
    for name in reversed(order):  # the largest weight last, whose values count
        weight, one = weights[name], members[name]
        predicted = replace(
            predicted,
            values=predicted.values + weight * one.predicted.values,
            error_scale=predicted.error_scale + weight * one.predicted.error_scale,
        )
        expected_value = expected_value + weight * one.expected_value
        own = [columns[column] for column in one.matrix.names]
        shap_values[:, own] += weight * one.shap_values
        values[:, own] = one.matrix.values
    pids = members[order[0]].matrix.pids
    features = _largest(pids, shap_values, values, blocks, list(columns), largest)
    return predicted, ShapValues(expected_value, _by_block(pids, shap_values, blocks), features)


def _largest(
    pids: Sequence[str],
    shap_values: Float64Array,
    values: Float32Array,
    blocks: Sequence[str],
    columns: Sequence[str],
    largest: int,
) -> pl.DataFrame:
    order = np.argsort(-np.abs(shap_values), axis=1, kind="stable")[:, :largest]
    rows = np.arange(len(shap_values))[:, None]
    kept = order.shape[1]
    return pl.DataFrame(
        {
            "pid": np.repeat(pids, kept),
            "rank": np.tile(np.arange(kept, dtype=np.int32), len(shap_values)),
            "block": np.array(blocks, dtype=object)[order].ravel(),
            "feature": np.array(columns, dtype=object)[order].ravel(),
            "value": values[rows, order].ravel(),
            "shap_value": shap_values[rows, order].ravel(),
        },
        schema_overrides={"pid": pl.String, "block": pl.String, "feature": pl.String},
    ).with_columns(pl.col("value").fill_nan(None))


def _by_block(pids: Sequence[str], shap_values: Float64Array, blocks: Sequence[str]) -> pl.DataFrame:
    names = list(dict.fromkeys(blocks))
    sums = [shap_values[:, [block == name for block in blocks]].sum(axis=1) for name in names]
    return (
        pl.DataFrame({"pid": pids, **dict(zip(names, sums, strict=True))}, schema_overrides={"pid": pl.String})
        .with_row_index("post")
        .unpivot(index=["post", "pid"], variable_name="block", value_name="shap_value")
        .sort(["post", pl.col("shap_value").abs()], descending=[False, True], maintain_order=True)
        .drop("post")
    )
