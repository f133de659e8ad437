"""LightGBM over metadata features and dense blocks: fits, out-of-fold predictions, saved models."""

from popularity.stack.fit import StackParams, TreeParams, fit_schemes
from popularity.stack.model import StackModel

__all__ = ["StackModel", "StackParams", "TreeParams", "fit_schemes"]
