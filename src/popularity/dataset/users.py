"""The user file: columns that describe the author of each post, and the published vectors of each user."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import polars as pl

from popularity.core.contracts import USERS
from popularity.dataset.parsing import EARLIEST, LATEST, Parser

USER_FIELDS: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in ("photo_count", "ispro", "canbuypro", "photo_firstdate", "photo_firstdatetaken")},
    "timezone_offset": ("timezone_offset",),
    "timezone_id": ("timezone_id", "timezone_timezone_id"),
    "user_description": ("user_description",),
    "location_description": ("location_description",),
}

EARLIEST_SCENE = datetime(1800, 1, 1, tzinfo=UTC)  # the camera's date of a scan may be that of the scene
MAX_PHOTOS = 10**9

# Column of USERS -> field of the user file, length of the vector.
_VECTORS = {"description_vector": ("user_description", 399), "location_vector": ("location_description", 400)}
MIN_COMMAS = 100  # after numbers; a text with as many is a vector
MAX_ROWS = 1000


def holds_vectors(rows: pl.DataFrame) -> bool:
    """True if these rows of a user file are of form A: most descriptions are long lists of numbers."""
    for source, _ in _VECTORS.values():
        written = rows[source].filter((rows[source].str.len_bytes() > 0).fill_null(False)).head(MAX_ROWS)
        if len(written) and (written.str.count_matches(r"[0-9]\s*,") >= MIN_COMMAS).sum() * 2 > len(written):
            return True
    return False


def user_columns(rows: pl.DataFrame, parser: Parser, vectors: bool) -> pl.DataFrame:
    """The user columns of POSTS, one row a post; descriptions are null where the file holds vectors."""
    nothing = pl.Series([None] * len(rows), dtype=pl.String)
    return pl.DataFrame(
        {
            "photo_count": parser.integer("photo_count", rows["photo_count"], 0, MAX_PHOTOS),
            "is_pro": parser.flag("ispro", rows["ispro"]),
            "can_buy_pro": parser.flag("canbuypro", rows["canbuypro"]),
            "first_photo_at": parser.moment("photo_firstdate", rows["photo_firstdate"], EARLIEST, LATEST),
            "first_taken_at": parser.moment(
                "photo_firstdatetaken", rows["photo_firstdatetaken"], EARLIEST_SCENE, LATEST
            ),
            "timezone_offset": parser.offset("timezone_offset", rows["timezone_offset"]),
            "timezone_id": parser.optional_text("timezone_id", rows["timezone_id"]),
            **{
                source: nothing if vectors else parser.plain_text(source, rows[source])
                for source, _ in _VECTORS.values()
            },
        }
    )


class UserVectors:
    """The users in the order of their first post, each with the vectors of that post's row."""

    def __init__(self) -> None:
        self._users: list[pl.DataFrame] = []
        self._prints: list[pl.DataFrame] = []
        self._seen = pl.Series(dtype=pl.String)

    def add(self, uids: pl.Series, rows: pl.DataFrame, parser: Parser, vectors: bool) -> None:
        """Adds the users of some rows of a user file."""
        first = uids.is_first_distinct() & ~uids.is_in(self._seen.implode())
        columns = {"uid": uids.filter(first)}
        for name, (source, length) in _VECTORS.items():
            if vectors:
                columns[name] = parser.vector(source, rows[source].set(~first, None), length).filter(first)
            else:
                columns[name] = pl.Series([None] * int(first.sum()), dtype=pl.List(pl.Float32))
        if vectors:
            sources = [source for source, _ in _VECTORS.values()]
            self._prints.append(rows.select(uids.alias("uid"), pl.struct(sources).hash().alias("print")))
        self._users.append(pl.DataFrame(columns))
        self._seen = pl.concat([self._seen, columns["uid"]])

    def table(self) -> tuple[pl.DataFrame, int]:
        """The users in the form of the contract USERS, and the number of users with other vectors in a later row."""
        users = pl.concat(self._users).sort(USERS.key)
        if not self._prints:
            return users, 0
        variants = pl.concat(self._prints).group_by("uid").agg(pl.col("print").n_unique())
        return users, int((variants["print"] > 1).sum())
