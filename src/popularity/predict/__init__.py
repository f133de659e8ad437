"""Popularity of posts that are in no data set: `python -m popularity.predict --help`.

A new post is treated as one more post of the test part, by the functions and the models of the graph.
"""

from popularity.predict.asked import Asked, NewPosts, make_posts, read_posts
from popularity.predict.prediction import Prediction, predict
from popularity.predict.project import Project

__all__ = ["Asked", "NewPosts", "Prediction", "Project", "make_posts", "predict", "read_posts"]
