"""Validation schemes that resemble the test part: nested in time, matched in its share of unseen users."""

from popularity.validation.splits import SplitParams, make_splits, rows_of

__all__ = ["SplitParams", "make_splits", "rows_of"]
