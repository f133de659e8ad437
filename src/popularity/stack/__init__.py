"""Boosted trees over metadata features and dense blocks: fits, out-of-fold predictions, saved models."""

from popularity.stack.feature_blocks import Blocks, read_blocks
from popularity.stack.fit import fit_schemes
from popularity.stack.model import StackModel
from popularity.stack.params import CatBoostParams, LightGBMParams, LinearParams, StackParams
from popularity.stack.row_selection import RowSelectionParams

__all__ = [
    "Blocks",
    "CatBoostParams",
    "LightGBMParams",
    "LinearParams",
    "RowSelectionParams",
    "StackModel",
    "StackParams",
    "fit_schemes",
    "read_blocks",
]
