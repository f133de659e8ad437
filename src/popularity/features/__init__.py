"""User-behaviour and metadata features (docs/features-and-stack.md, "Features").

There are three kinds: `rows` uses the post alone; `context` counts the train and valid rows of a scheme, without
labels; `target_statistics` uses past labels of train rows. Feature groups (`groups`) are further columns of the last
two kinds that one key switches on: `rhythm`, `class_time`, `user_target`, `words`, `user_text`.
"""

from popularity.features.build import FeaturizeParams, add_columns, count_each_alone, featurize, further_features
from popularity.features.columns import FeatureColumn
from popularity.features.context import context_features
from popularity.features.rows import CATEGORIES, TEXT, categories_of, row_features
from popularity.features.tables import read_features
from popularity.features.target_statistics import compare_target_statistics
from popularity.features.text_components import TextReducer

__all__ = [
    "CATEGORIES",
    "TEXT",
    "FeatureColumn",
    "FeaturizeParams",
    "TextReducer",
    "add_columns",
    "categories_of",
    "compare_target_statistics",
    "context_features",
    "count_each_alone",
    "featurize",
    "further_features",
    "read_features",
    "row_features",
]
