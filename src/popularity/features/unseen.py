"""Posts of a class that no train row has: their features, and train rows that are read like them.

No train row has such a class by itself, so a share of the train rows is masked: the learners see posts without a known
class as often as among the valid rows, and learn what their values mean.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import polars as pl

from popularity.core.arrays import BoolArray

CLASS = "subcategory"
# Columns of the class or of one below it: ids, counts and target statistics. The first level stays: it may be known.
MASKED_COLUMNS = r"^(subcategory|concept)(_.*)?$|^day_subcategory_share$|^class_time\..*$|^user_target\.own_class$"
ZERO_COLUMNS = ("subcategory_target_posts", "concept_target_posts")  # no past post, as for the first post of a class


def without_known_class(features: pl.DataFrame, known: Collection[str]) -> BoolArray:
    """(n,) whether the class of a post is empty or none of `known`.

    Args:
        features: (subcategory, ...) of n posts.
        known: keys of the classes of the train rows.
    """
    values = pl.Series(known, dtype=pl.String).implode()
    return (~features[CLASS].is_in(values)).fill_null(value=True).to_numpy()


def mask_classes(features: pl.DataFrame, masked: BoolArray) -> pl.DataFrame:
    """Returns `features` with the columns of the class missing in some rows, as if no train row had their class.

    Args:
        features: of n posts.
        masked: (n,) the rows.
    """
    if not masked.any():
        return features
    kept = pl.Series(~masked)
    features = features.with_columns(pl.when(kept).then(pl.col(MASKED_COLUMNS)))
    return features.with_columns(pl.col(name).fill_null(0) for name in ZERO_COLUMNS if name in features.columns)


def rows_to_mask(train: pl.DataFrame, valid: pl.DataFrame, seed: int = 0) -> BoolArray:
    """(n,) train rows to mask: as large a share, with those of an empty class, as valid rows without a known class.

    No valid row of an unseen class, no masked row.

    Args:
        train: (subcategory, ...) of the n train rows.
        valid: likewise of the valid rows.
        seed: of the draw.
    """
    masked = np.zeros(train.height, dtype=np.bool_)
    if valid.is_empty() or CLASS not in train.columns:
        return masked
    known = train[CLASS].is_not_null().to_numpy()
    share = without_known_class(valid, train[CLASS].drop_nulls().unique().to_list()).mean()
    candidates = np.flatnonzero(known)
    count = min(max(round(float(share) * train.height) - int((~known).sum()), 0), len(candidates))
    masked[np.random.default_rng(seed).permutation(candidates)[:count]] = True
    return masked
