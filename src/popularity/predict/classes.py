"""The classes of new posts: given, unseen, or the likeliest if none was given."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from popularity.core.arrays import Float32Array
from popularity.core.atomic import read_json
from popularity.core.contracts import CLASSES, class_key, class_names, read_table
from popularity.network.params import CLASS_LEVEL
from popularity.prototypes.classes import ClassNameFormat, level_key

LEVEL_ABOVE = "category"


@dataclass(frozen=True)
class KnownClasses:
    """The classes that the network knows.

    Args:
        table: contract CLASSES.
        class_name_format: of their keys.
    """

    table: pl.DataFrame
    class_name_format: ClassNameFormat

    @classmethod
    def read(cls, folder: Path) -> KnownClasses:
        """Of models/prototypes."""
        metadata = read_json(folder / "metadata.json")
        return cls(read_table(folder / "classes.parquet", CLASSES), metadata["class_name_format"])

    @property
    def of_level(self) -> pl.DataFrame:
        """The K classes, by index."""
        return self.table.filter(level=CLASS_LEVEL)

    def without(self, posts: pl.DataFrame) -> pl.DataFrame:
        """Those of `posts` (contract POSTS) that have no class."""
        empty = [
            key for key in posts[CLASS_LEVEL].unique() if level_key(key, CLASS_LEVEL, self.class_name_format) is None
        ]
        return posts.filter(pl.col(CLASS_LEVEL).is_in(empty))

    def likeliest(self, post: dict[str, str], probabilities: Float32Array) -> tuple[dict[str, str], float]:
        """The class keys of POSTS of the likeliest class, and its probability among the candidates.

        Args:
            post: its own keys; where its first-level class is known, only the classes below it are candidates.
            probabilities: (K,) of the classes.
        """
        above = self.table.filter(level=LEVEL_ABOVE)
        parents = self.of_level["parent"].fill_null(-1).to_numpy()
        given = above.filter(key=post[LEVEL_ABOVE])["index"]
        below = parents == given[0] if len(given) else np.ones(len(parents), bool)
        possible = np.where(below if below.any() else True, probabilities, 0.0)
        best = int(possible.argmax())
        name = class_names(self.of_level["key"][best])[-1]
        top = class_names(above["key"][int(parents[best])])[0] if parents[best] >= 0 else ""
        path = (top, name, class_names(post["concept"])[-1])
        keys = {
            level: class_key(*path[: depth + 1]) for depth, level in enumerate((LEVEL_ABOVE, CLASS_LEVEL, "concept"))
        }
        return keys, float(possible[best] / possible.sum())

    def note(self, published: str) -> str:
        """The note on a class of POSTS that the network does not know; "" for one that it knows."""
        key, keys = level_key(published, CLASS_LEVEL, self.class_name_format), self.of_level["key"].to_list()
        if key is None or key in keys:
            return ""
        return f"unseen class: {key}; a mixture of the known ones stands in{_spelled_alike(key, keys)}"

    def note_above(self, published: str) -> str:
        """The note on a first-level class of POSTS that is not known; "" for one that is, or for none."""
        key, keys = (
            level_key(published, LEVEL_ABOVE, self.class_name_format),
            self.table.filter(level=LEVEL_ABOVE)["key"],
        )
        if key is None or key in keys:
            return ""
        return f"unseen class: {key} is no first-level class of the data set{_spelled_alike(key, keys.to_list())}"


def _spelled_alike(key: str, keys: list[str]) -> str:
    alike = difflib.get_close_matches(key, keys, n=3)
    return f" (spelled alike: {', '.join(alike)})" if alike else ""
