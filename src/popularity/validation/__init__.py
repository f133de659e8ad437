"""Splits that resemble the test part: ordered in time, with its share of posts by unseen users."""

from popularity.validation.spans import SplitParams
from popularity.validation.splits import make_splits, rows_of

__all__ = ["SplitParams", "make_splits", "rows_of"]
