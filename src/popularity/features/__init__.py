"""User-behaviour and metadata features (method.md, "User-behaviour and metadata features s").

Three kinds, one module each: `row` from the post alone; `context` label-free statistics over the rows
that a scheme shows; `label` fitted on labels of fit rows only, causal in time.
"""

from popularity.features.build import FeaturizeParams, featurize, further_features, read_features
from popularity.features.columns import FeatureColumn
from popularity.features.context import TextReducer, context_features
from popularity.features.histories import compare_histories
from popularity.features.label import label_features
from popularity.features.row import CATEGORIES, TEXT, row_features

__all__ = [
    "CATEGORIES",
    "TEXT",
    "FeatureColumn",
    "FeaturizeParams",
    "TextReducer",
    "compare_histories",
    "context_features",
    "featurize",
    "further_features",
    "label_features",
    "read_features",
    "row_features",
]
