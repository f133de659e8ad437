"""What the columns of the matrix are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from popularity.features import FeatureColumn

Kind = Literal[
    "category",  # codes of a feature's values
    "number",  # a feature
    "component",  # a principal component of vectors, or a raw dimension of them
    "scalar",  # a single number of a block, next to its vectors
    "oof_ridge",  # predictions of a ridge, out of fold on train rows
    "neighbours",  # labels of the nearest train posts and distances to them
]


@dataclass(frozen=True)
class MatrixColumn:
    """A column of the matrix.

    Args:
        name: unique in the matrix.
        block: metadata, image, text, prototype or image_statistics; `text.<encoder>` where there are several.
        kind: what its values are.
        group: the group of `stack.columns.feature_groups` that switches it on; None: it is always there.
        fitted_on_labels: whether labels of train rows went into its values.
    """

    name: str
    block: str
    kind: Kind
    group: str | None
    fitted_on_labels: bool


def metadata_columns(names: Iterable[str], kind: Literal["category", "number"]) -> tuple[MatrixColumn, ...]:
    """Columns of the block `metadata`, made from features."""
    found = map(FeatureColumn.named, names)
    return tuple(MatrixColumn(one.name, "metadata", kind, one.group, one.fitted_on_labels) for one in found)
