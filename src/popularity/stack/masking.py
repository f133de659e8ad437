"""Posts of a class that no train row has: their features, and train rows that are read like them.

No train row has such a class by itself, so a share of the train rows is masked: the learners see posts without a known
class as often as among the valid rows, and learn what their values mean.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import polars as pl

from popularity.core.arrays import BoolArray
from popularity.features import FeatureColumn

CLASS = "subcategory"


def classes_of(features: pl.DataFrame) -> frozenset[str]:
    """The classes of posts; "" stands for the empty one.

    Args:
        features: (subcategory, ...) of the posts.
    """
    return frozenset(features[CLASS].fill_null(""))


def without_known_class(features: pl.DataFrame, known: Collection[str]) -> BoolArray:
    """(n,) whether the class of a post is none of `known`.

    Args:
        features: (subcategory, ...) of n posts.
        known: classes of the train rows, of `classes_of`.
    """
    values = pl.Series(sorted(known), dtype=pl.String).implode()
    return (~features[CLASS].fill_null("").is_in(values)).to_numpy()


def mask_classes(features: pl.DataFrame, masked: BoolArray) -> pl.DataFrame:
    """Returns `features` with the columns of the class missing in some rows, as if no train row had their class.

    Args:
        features: of n posts.
        masked: (n,) the rows.
    """
    if not masked.any():
        return features
    kept, columns = pl.Series(~masked), [FeatureColumn.named(name) for name in features.columns]
    features = features.with_columns(pl.when(kept).then(pl.col(column.name)) for column in columns if column.of_class)
    # No past post, as for the first post of a class.
    return features.with_columns(pl.col(column.name).fill_null(0) for column in columns if column.counts_class_past)


def rows_to_mask(train: pl.DataFrame, valid: pl.DataFrame, seed: int = 0) -> BoolArray:
    """(n,) train rows to mask: as large a share as that of the valid rows whose class no train row has.

    Where every valid row has a class of a train row, no row is masked.

    Args:
        train: (subcategory, ...) of the n train rows.
        valid: likewise of the valid rows.
        seed: of the draw, among rows whose class is not empty.
    """
    masked = np.zeros(train.height, dtype=np.bool_)
    if valid.is_empty() or CLASS not in train.columns:
        return masked
    share = float(without_known_class(valid, classes_of(train)).mean())
    candidates = np.flatnonzero(train[CLASS].is_not_null().to_numpy())
    masked[np.random.default_rng(seed).permutation(candidates)[: round(share * train.height)]] = True
    return masked
