"""The text model: the text encoder, fine-tuned on the label in every fold."""

from popularity.text_model.folds import FoldInputs, fit_folds
from popularity.text_model.model import TextModel, TextModelParams

__all__ = ["FoldInputs", "TextModel", "TextModelParams", "fit_folds"]
