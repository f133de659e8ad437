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


def without_known_class(classes: pl.Series, known: Collection[str]) -> BoolArray:
    """(n,) whether the class of a post is none of `known`.

    Args:
        classes: (n,) of n posts, from `Blocks.classes_of`.
        known: classes of the train rows.
    """
    return (~classes.is_in(pl.Series(sorted(known), dtype=pl.String).implode())).to_numpy()


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


def rows_to_mask(train: pl.Series, valid: pl.Series, seed: int = 0) -> BoolArray:
    """(n,) train rows to mask: as large a share as that of the valid rows whose class no train row has.

    Where every valid row has a class of a train row, no row is masked.

    Args:
        train: (n,) classes of the train rows, from `Blocks.classes_of`.
        valid: (m,) those of the valid rows.
        seed: of the draw, among rows whose class is not empty.
    """
    masked = np.zeros(len(train), dtype=np.bool_)
    if len(valid):
        share = float(without_known_class(valid, frozenset(train)).mean())
        candidates = np.flatnonzero((train != "").to_numpy())
        masked[np.random.default_rng(seed).permutation(candidates)[: round(share * len(train))]] = True
    return masked
