"""The text tower, fine-tuned on the label in every fold: what the stack's columns cannot say of a text."""

from popularity.text_model.folds import fit_folds
from popularity.text_model.model import TextModel, TextModelParams

__all__ = ["TextModel", "TextModelParams", "fit_folds"]
