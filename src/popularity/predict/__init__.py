"""Popularity of posts that are in no data set: `python -m popularity.predict --help`.

The functions and models of the graph treat a new post as one more post of the test split.
"""

from popularity.predict.output import Prediction
from popularity.predict.predict import N_FEATURES, Predictor, Project
from popularity.predict.requests import (
    FurtherColumns,
    NewPosts,
    Request,
    counted,
    make_posts,
    read_requests,
    refuse_unknown_columns,
    table_columns,
)

__all__ = [
    "N_FEATURES",
    "FurtherColumns",
    "NewPosts",
    "Prediction",
    "Predictor",
    "Project",
    "Request",
    "counted",
    "make_posts",
    "read_requests",
    "refuse_unknown_columns",
    "table_columns",
]
