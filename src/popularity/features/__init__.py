"""User-behaviour and metadata features (method.md, "User-behaviour and metadata features s").

Three kinds: `rows` from the post alone; `context` label-free statistics over the rows that a scheme shows;
`target_statistics` from past labels of fit rows only. `groups` are further columns of the last two kinds, which the
stack takes by name: `rhythm`, `class_time`, `histories`, `words`, `user_text`.
"""

from popularity.features.build import FeaturizeParams, featurize, further_features
from popularity.features.columns import FeatureColumn
from popularity.features.context import context_features
from popularity.features.rows import CATEGORIES, TEXT, row_features
from popularity.features.tables import read_features
from popularity.features.target_statistics import compare_target_statistics, compute_target_statistics
from popularity.features.text_components import TextReducer

__all__ = [
    "CATEGORIES",
    "TEXT",
    "FeatureColumn",
    "FeaturizeParams",
    "TextReducer",
    "compare_target_statistics",
    "compute_target_statistics",
    "context_features",
    "featurize",
    "further_features",
    "read_features",
    "row_features",
]
