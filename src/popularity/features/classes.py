"""The classes by which a post's past is found.

`theme` and `variant` are the names of the second and third taxonomy level without the first one: a collection that
starts to file the same posts under another first level keeps their past. `concept` is the whole path.
"""

from __future__ import annotations

import polars as pl

from popularity.core.contracts import class_key, class_names

CLASSES = ("theme", "variant", "concept")
TIMED = ("theme", "variant")  # classes whose activity and recent labels become columns


def with_themes(posts: pl.DataFrame) -> pl.DataFrame:
    """Returns `posts` with `theme` and `variant`: the keys of their classes without the first level."""
    columns = {}
    for name, level in (("theme", "subcategory"), ("variant", "concept")):
        published = posts[level].unique().to_list()
        own = [class_key(*class_names(key)[1:]) for key in published]
        columns[name] = pl.col(level).replace_strict(published, own, return_dtype=pl.String)
    return posts.with_columns(**columns)
