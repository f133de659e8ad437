"""The classes of a post that its past is looked up by.

A class by its own names from the second level on, whatever it is filed under: a collection that starts to file alike
posts under another first level takes no past from them. The third is the whole path.
"""

from __future__ import annotations

import polars as pl

from popularity.core.contracts import class_key, class_names

CLASSES = ("theme", "variant", "concept")
TIMED = ("theme", "variant")  # whose activity and recent labels are columns


def with_themes(posts: pl.DataFrame) -> pl.DataFrame:
    """`posts` with `theme` and `variant`: the keys of their classes of the second and third level by own names."""
    columns = {}
    for name, level in (("theme", "subcategory"), ("variant", "concept")):
        published = posts[level].unique().to_list()
        own = [class_key(*class_names(key)[1:]) for key in published]
        columns[name] = pl.col(level).replace_strict(published, own, return_dtype=pl.String)
    return posts.with_columns(**columns)
