"""Which column of a user's table is what: found by name and type, shown, and corrected by the user."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from popularity.core.config import Section, read_yaml
from popularity.core.errors import DataError
from popularity.dataset.parsing import numbers, present
from popularity.dataset.table_dates import date_format, share
from popularity.dataset.table_file import TableFile

SAMPLE = 10_000  # rows that are looked at
EXAMPLES = 3  # rows that are shown
MAX_CATEGORIES = 200  # distinct values among the sample; more are a text
MIN_USABLE = 0.95  # share of the values of a column that must be of its type
PICTURE = r"(?i)\.(jpe?g|png|webp|gif|bmp|tiff?|avif)$"

# Names of columns by what they hold, the likeliest first; as they are after `plain_name`.
NAMES: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "pid", "post_id", "item_id", "listing_id", "video_id", "thread_id", "article_id", "key"),
    "picture": (
        *("picture", "image", "image_path", "image_file", "picture_path", "photo", "thumbnail", "img", "cover"),
        *("file_name", "filename", "file", "path"),
    ),
    "text": ("text", "title", "caption", "headline", "subject", "name", "message", "body", "description"),
    "tags": ("tags", "hashtags", "keywords", "alltags"),
    "date": (
        *("date", "datetime", "timestamp", "posted_at", "published_at", "created_at", "listed_at", "created_utc"),
        *("post_date", "publish_date", "published", "created", "time", "postdate"),
    ),
    "label": ("label", "popularity", "log_views"),
    "count": (
        *("count", "views", "view_count", "likes", "like_count", "score", "upvotes", "plays", "reads", "sold"),
        *("sales", "downloads", "visits", "clicks", "favorites", "favourites", "shares", "replies", "comments"),
    ),
    "user": (
        *("user", "user_id", "uid", "username", "author", "author_id", "channel", "channel_id", "seller", "seller_id"),
        *("shop", "account", "owner", "creator", "photographer", "artist", "uploader", "publisher", "poster"),
    ),
    "category": ("category", "section", "department", "genre", "topic", "board", "forum", "class"),
    "subcategory": ("subcategory", "sub_category", "subsection", "subforum"),
    "concept": ("concept", "subsubcategory"),
    "latitude": ("latitude", "lat"),
    "longitude": ("longitude", "lon", "lng", "long"),
}
# What the lack of a column means that people may not expect.
WITHOUT: Mapping[str, str] = {
    "id": "made of the numbers of the rows",
    "user": "each post is its own user",
    "category": "the network learns clusters of posts",
}
# Counts that grow with the label after the post: as features they would tell what is to be predicted.
OUTCOMES = (*NAMES["count"], *NAMES["label"], "rating", "ratings", "engagement", "retweets", "reactions", "revenue")


@dataclass(frozen=True)
class TableColumns(Section):
    """Section dataset.columns: the name of the column that holds each thing; "" for none.

    Args:
        id: of the post; none: the number of the row.
        picture: path of the picture, from the folder of pictures on; none: the id names the file.
        text: title.
        tags: separated by spaces or commas.
        date: of the post.
        count: views, likes or the like; popularity is log2(count + 1).
        label: popularity itself, in place of a count.
        user: author; none: each post is its own.
        category: first class level.
        subcategory: second class level; none: the first.
        concept: third class level; none: the second.
        latitude: degrees.
        longitude: degrees.
        numbers: further columns of numbers.
        categories: further columns of few different texts.
    """

    id: str = ""
    picture: str = ""
    text: str = ""
    tags: str = ""
    date: str = ""
    count: str = ""
    label: str = ""
    user: str = ""
    category: str = ""
    subcategory: str = ""
    concept: str = ""
    latitude: str = ""
    longitude: str = ""
    numbers: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()

    def roles(self) -> dict[str, str]:
        """What is found in one column each -> its name."""
        return {role: name for role in NAMES if (name := getattr(self, role))}

    def used(self) -> list[str]:
        """The names of all columns, each once."""
        return list(dict.fromkeys([*self.roles().values(), *self.numbers, *self.categories]))

    def as_values(self) -> dict[str, Any]:
        """For params.yaml."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class Found:
    """The columns of a table and what is not used.

    Args:
        columns: what each used column is.
        left_out: column -> why it is not used.
        head: the first rows.
    """

    columns: TableColumns
    left_out: Mapping[str, str]
    head: pl.DataFrame


def find_columns(table: TableFile, given: Mapping[str, Any], *, with_pictures: bool) -> Found:
    """What each column of a table is, by `given` and else by name and type.

    Args:
        table: of the training posts, or of all.
        given: role -> column, as in TableColumns; "" for none.
        with_pictures: True if there is a folder of pictures.

    Raises:
        DataError: a column that is not there, or too little to learn from: a text or pictures, a date, and a count.
    """
    head = table.head(table.names, SAMPLE)
    _refuse_unknown(given, head, table.path)
    chosen = {role: name for role, name in given.items() if role in NAMES}
    free = [name for name in head.columns if name not in _named(given)]
    for role in NAMES:
        if role in chosen or (role == "label" and chosen.get("count")) or (role == "count" and chosen.get("label")):
            continue
        if role == "picture" and not with_pictures:
            continue
        found = next((name for name in _by_name(role, free) if _is_a(role, head[name])), "")
        if not found and role == "date":
            found = next((name for name in free if date_format(head[name]) and numbers(head[name]).is_null().all()), "")
        chosen[role] = found
        free = [name for name in free if name != found]
    if chosen.get("subcategory") and not chosen.get("category"):
        chosen["category"], chosen["subcategory"] = chosen["subcategory"], ""
    further, left_out = _further(head.select(free))
    columns = TableColumns(
        **chosen,
        numbers=tuple(given.get("numbers", further["numbers"])),
        categories=tuple(given.get("categories", further["categories"])),
    )
    refuse_too_little(columns, table, with_pictures=with_pictures)
    return Found(columns, {name: why for name, why in left_out.items() if name not in columns.used()}, head)


def refuse_too_little(columns: TableColumns, table: TableFile, *, with_pictures: bool) -> None:
    """Raises DataError if a table says too little of its posts."""
    needed = {
        "a date": columns.date,
        "a count (views, likes, ...) or a label": columns.count or columns.label,
        "a text, or pictures": columns.text or columns.tags or (with_pictures and (columns.picture or columns.id)),
    }
    missing = [what for what, found in needed.items() if not found]
    if missing:
        raise DataError(
            f"no column holds {' and none '.join(missing)}: the columns are {', '.join(table.names)}",
            file=table.path,
            expected="a date, a count or a label, and a text or pictures of every post",
            fix='say what the columns are: MAP="text=caption,date=day,count=likes", or MAP=mapping.yaml',
        )


def parse_map(text: str) -> dict[str, Any]:
    """What the user says of the columns: `role=column,role=column`, or a YAML file of the same.

    Several columns of numbers or categories are joined by "+". `role=` says that no column is that.

    >>> parse_map("text=caption,user=,numbers=price+stock")
    {'text': 'caption', 'user': '', 'numbers': ['price', 'stock']}

    Raises:
        DataError: an unknown role, or no "role=column".
    """
    if text.endswith((".yaml", ".yml")):
        pairs: dict[str, Any] = read_yaml(Path(text))
    else:
        split = [part.partition("=") for part in text.split(",") if part.strip()]
        if wrong := [role for role, sign, _ in split if not sign]:
            raise DataError(f"MAP: {wrong[0]!r}", expected='role=column,role=column, as "text=caption,count=likes"')
        pairs = {role.strip(): name.strip() for role, _, name in split}
    roles = [field.name for field in dataclasses.fields(TableColumns)]
    if unknown := [role for role in pairs if role not in roles]:
        raise DataError(f"MAP: {unknown[0]!r} is nothing that a column can hold", expected=f"one of {', '.join(roles)}")
    for role in ("numbers", "categories"):
        if isinstance(pairs.get(role), str):
            pairs[role] = [name for name in pairs[role].split("+") if name]
    return {role: value if value is not None else "" for role, value in pairs.items()}


def mapping_text(found: Found, counts: Mapping[str, int]) -> str:
    """The mapping for people: each column with the number of its values, and the first rows.

    Args:
        found: the columns.
        counts: column -> values in all rows.
    """
    columns = found.columns
    lines = ['columns (others: MAP="role=column,..."):']
    entries = [*columns.roles().items()]
    entries += [("numbers", name) for name in columns.numbers] + [("categories", name) for name in columns.categories]
    for role, name in entries:
        examples = " | ".join(_shown(value) for value in found.head[name].head(EXAMPLES))
        lines.append(f"  {role:<12} {name} ({counts.get(name, 0):,} values): {examples}")
    lines += [f"  {role:<12} none: {meaning}" for role, meaning in WITHOUT.items() if not getattr(columns, role)]
    lines += [f"  not used     {name}: {why}" for name, why in found.left_out.items()]
    return "\n".join(lines)


def plain_name(name: str) -> str:
    """A name in lower case with single underscores.

    >>> plain_name("View Count"), plain_name("viewCount")
    ('view_count', 'view_count')
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"[\W_]+", "_", spaced.lower()).strip("_")


def _named(given: Mapping[str, Any]) -> list[str]:
    return [name for value in given.values() for name in ([value] if isinstance(value, str) else value)]


def _refuse_unknown(given: Mapping[str, Any], head: pl.DataFrame, path: Path) -> None:
    missing = [name for name in _named(given) if name and name not in head.columns]
    if missing:
        raise DataError(f"MAP: no column {missing[0]!r}", file=path, expected=f"one of {', '.join(head.columns)}")


def _by_name(role: str, names: Sequence[str]) -> list[str]:
    """The columns whose name says `role`, the likeliest first: the name itself, then one that ends with it."""
    plain = {name: plain_name(name) for name in names}
    exact = [name for wanted in NAMES[role] for name in names if plain[name] == wanted]
    ending = [name for wanted in NAMES[role] for name in names if plain[name].endswith(f"_{wanted}")]
    return list(dict.fromkeys([*exact, *([] if role in ("id", "user", "category") else ending)]))


def _is_a(role: str, texts: pl.Series) -> bool:
    """True if the values can be what a column is named for."""
    given = present(texts).drop_nulls()
    if not len(given):
        return False
    if role in ("count", "label", "latitude", "longitude"):
        return share(numbers(given).is_not_null()) >= MIN_USABLE
    if role == "date":
        return date_format(given) is not None
    if role == "picture":
        return share(given.str.contains(PICTURE)) >= MIN_USABLE
    if role == "id":
        return not given.is_duplicated().any()
    return role != "text" or numbers(given).is_null().any()


def _further(free: pl.DataFrame) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Numbers and categories among columns that are nothing else, and why others are left out."""
    further: dict[str, list[str]] = {"numbers": [], "categories": []}
    left_out = {}
    for column in free:
        given = present(column).drop_nulls()
        distinct, plain = given.n_unique(), plain_name(column.name)
        if plain in OUTCOMES or plain.endswith(tuple(f"_{name}" for name in ("count", "views", "likes"))):
            left_out[column.name] = "counts what comes after the post; numbers=... in MAP takes it all the same"
        elif distinct < 2:
            left_out[column.name] = "the same in all rows"
        elif numbers(given).is_not_null().all():
            further["numbers"].append(column.name)
        elif distinct <= min(MAX_CATEGORIES, len(given) // 2):
            further["categories"].append(column.name)
        else:
            left_out[column.name] = "neither a number nor one of few values"
    return further, left_out


def _shown(value: str | None) -> str:
    text = "" if value is None else " ".join(value.split())
    return text if len(text) <= 40 else text[:37] + "..."
