"""The stack: learners on metadata features and dense blocks, fitted in every fold."""

from popularity.stack.feature_blocks import Blocks, read_blocks
from popularity.stack.fit import StackData, fit_schemes
from popularity.stack.model import StackModel
from popularity.stack.params import CatBoostParams, LightGBMParams, LinearParams, StackParams
from popularity.stack.row_selection import RowSelectionParams

__all__ = [
    "Blocks",
    "CatBoostParams",
    "LightGBMParams",
    "LinearParams",
    "RowSelectionParams",
    "StackData",
    "StackModel",
    "StackParams",
    "fit_schemes",
    "read_blocks",
]
