"""Popularity of posts that are in no data set: `python -m popularity.predict --help`.

A new post is treated as one more post of the test part, by the functions and the models of the graph.
"""

from popularity.predict.output import Prediction
from popularity.predict.predict import Project, predict
from popularity.predict.requests import NewPosts, Request, make_posts, read_requests

__all__ = ["NewPosts", "Prediction", "Project", "Request", "make_posts", "predict", "read_requests"]
