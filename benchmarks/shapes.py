"""Other shapes of a data set, made from its own posts: what pays on one alone may be luck."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import polars as pl

from benchmarks.systems import Project
from popularity.splits import SplitParams, make_splits

MERGED = 10  # users in one


def whole(posts: pl.DataFrame) -> pl.DataFrame:
    return posts


def coarse_users(posts: pl.DataFrame) -> pl.DataFrame:
    """The posts with MERGED users, drawn at random, under one name."""
    users = posts["uid"].unique().sort()
    group = np.random.default_rng(0).permutation(len(users)) // MERGED
    names = dict(zip(users.to_list(), (f"{number}@N00" for number in group), strict=True))
    return posts.with_columns(uid=pl.col("uid").replace_strict(names))


def half_classes(posts: pl.DataFrame) -> pl.DataFrame:
    """The posts of a random half of the second-level classes."""
    return _of_some(posts, "subcategory", 1 / 2)


def third_of_users(posts: pl.DataFrame) -> pl.DataFrame:
    """The posts of a random third of the users: a small data set."""
    return _of_some(posts, "uid", 1 / 3)


def _of_some(posts: pl.DataFrame, column: str, share: float) -> pl.DataFrame:
    kept = posts[column].unique().sort().sample(fraction=share, shuffle=True, seed=0)
    return posts.filter(pl.col(column).is_in(kept.implode()))


SHAPES: Mapping[str, Callable[[pl.DataFrame], pl.DataFrame]] = {
    "whole": whole,
    "coarse users": coarse_users,
    "half the classes": half_classes,
    "a third of the users": third_of_users,
}


def reshaped(project: Project, shape: str, split: SplitParams) -> Project:
    """The project with the posts of a shape, and splits of these whose `report` begins where it did.

    Its features are still those of the run: benchmarks.cuts.with_splits makes them anew.
    """
    posts = SHAPES[shape](project.posts)
    reported = project.splits.filter(scheme="report", role="score").select("pid")
    start = reported.join(project.posts, on="pid", how="left", validate="1:1")["posted_at"].min()
    train = posts.filter(split="train")
    later = train.filter(pl.col("posted_at") >= start).height
    wanted = replace(split, report_share=later / train.height)
    return replace(project, posts=posts, splits=make_splits(posts, wanted)[0])
