"""The contract of every table that passes between stages, checked on each write.

- pid is text exactly as published; canonical order is pid as text, ascending.
- `source_index` keeps the row order of the published files, which is the submission's order. It
  follows the order of collection and is never a feature.
- The key of a class is its whole path (`class_key`), because names repeat between parents.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from polars.datatypes import DataType, DataTypeClass

from popularity.core.atomic import atomic_path, reading
from popularity.core.errors import ContractError


@dataclass(frozen=True)
class Column:
    """A column's type, whether it may be null, and the values it may take (None: any)."""

    dtype: DataType | DataTypeClass
    nullable: bool = False
    values: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Contract:
    """A table: its columns in order and the columns that form its unique key.

    `extra` allows further columns after the listed ones (feature tables).
    """

    name: str
    columns: Mapping[str, Column]
    key: tuple[str, ...]
    extra: bool = False


SPLITS = ("train", "test")

UTC = pl.Datetime("us", "UTC")

POSTS = Contract(
    "posts",
    {
        "pid": Column(pl.String),
        "split": Column(pl.String, values=SPLITS),
        "source_index": Column(pl.Int64),  # row in the published files of its split
        "uid": Column(pl.String),
        "label": Column(pl.Float64, nullable=True),  # log2(views + 1); null in the test split and there alone
        "category": Column(pl.String),  # class keys of the three taxonomy levels: see class_key
        "subcategory": Column(pl.String),
        "concept": Column(pl.String),
        "title": Column(pl.String),
        "tags": Column(pl.String),  # separated by spaces, as published
        "media_type": Column(pl.String),
        "posted_at": Column(UTC),
        "collected_at": Column(UTC, nullable=True),  # when the counts were read; null: when the last post was made
        "latitude": Column(pl.Float64, nullable=True),  # degrees
        "longitude": Column(pl.Float64, nullable=True),
        "geo_accuracy": Column(pl.Int8),  # 0 none, 1 world, 3 country, 6 region, 11 city, 16 street
        "has_path_alias": Column(pl.Boolean),  # the alias itself is a personal handle: never stored
        "is_public": Column(pl.Boolean, nullable=True),
        "media_status": Column(pl.String),
        "image_path": Column(pl.String),  # split/Uid/Pid.jpg; several are lines; "" for a post without a picture
        "photo_count": Column(pl.Int64, nullable=True),
        "is_pro": Column(pl.Boolean, nullable=True),
        "can_buy_pro": Column(pl.Boolean, nullable=True),
        "first_photo_at": Column(UTC, nullable=True),  # photo_firstdate: first upload
        "first_taken_at": Column(UTC, nullable=True),  # photo_firstdatetaken: camera clock
        "timezone_offset": Column(pl.Int32, nullable=True),  # minutes east of UTC
        "timezone_id": Column(pl.String, nullable=True),
        "user_description": Column(pl.String, nullable=True),  # form B: text with HTML tags removed
        "location_description": Column(pl.String, nullable=True),
    },
    key=("pid",),
)

# Form A of the user file describes each user by two published vectors, which are stored once a user.
USERS = Contract(
    "users",
    {
        "uid": Column(pl.String),
        "description_vector": Column(pl.List(pl.Float32), nullable=True),  # 399
        "location_vector": Column(pl.List(pl.Float32), nullable=True),  # 400
    },
    key=("uid",),
)

# Further columns of a user's own table: Float64 numbers and String categories, named table_<name>; see FURTHER.
COLUMNS = Contract("columns", {"pid": Column(pl.String)}, key=("pid",), extra=True)
FURTHER = "table_"  # a column of the features that came from there

IMAGE_STATUSES = ("ok", "missing", "unreadable", "too_large")

IMAGES = Contract(
    "images",
    {
        "pid": Column(pl.String),
        "shard": Column(pl.String),  # tar file or image file, relative to the data set's root; "" if missing
        "offset": Column(pl.Int64),  # of the image's first byte in the shard
        "bytes": Column(pl.Int64),
        "width": Column(pl.Int32, nullable=True),  # pixels of the upright image
        "height": Column(pl.Int32, nullable=True),
        "mode": Column(pl.String, nullable=True),  # Pillow's name: RGB, L, CMYK, ...
        "status": Column(pl.String, values=IMAGE_STATUSES),
        "checksum": Column(pl.String),  # of the file's bytes: the table changes when a picture does; "" if not ok
    },
    key=("pid",),
    extra=True,
)
# The further pictures of a post, whose vectors are averaged with that of its picture: a list of what IMAGES has for the
# picture. The column is there only where dataset.several_pictures is `mean`.
FURTHER_PICTURES = "further"

IMAGE_STATUS = Contract(
    "image_status",
    {"pid": Column(pl.String), "status": Column(pl.String, values=IMAGE_STATUSES)},
    key=("pid",),
)

# Quality and layout of decoded images: Float32 columns image_statistics.<name>; posts without an image are absent.
IMAGE_STATISTICS = Contract("image statistics", {"pid": Column(pl.String)}, key=("pid",), extra=True)

HOLDOUT = "holdout"  # the one scheme that nothing is chosen on
FORWARD = "forward"  # the scheme that choices are made on
REFIT = "refit"  # all labelled posts are train rows; the valid rows are the test part, without labels
SCHEMES = (HOLDOUT, FORWARD, "group", "random", REFIT)

# The folds of these are splits in time, whose scores are averaged; the folds of others make one score together.
TIME_SCHEMES = (HOLDOUT, FORWARD)

MAIN_MODEL = "stack"  # the model that is submitted: the mean of the members
BASELINES = ("metadata", "user_mean", "constant")
TEXT_MODEL = "text_model"  # the member that stage text_model fits

ROLES = ("train", "valid", "excluded")

FOLDS = Contract(
    "splits",
    {
        "scheme": Column(pl.String, values=SCHEMES),
        "fold": Column(pl.Int32),
        "pid": Column(pl.String),
        "role": Column(pl.String, values=ROLES),
    },
    key=("scheme", "fold", "pid"),
)


@dataclass(frozen=True, order=True)
class FoldKey:
    """Names a fold of FOLDS: its scheme and its index in the scheme, from 0."""

    scheme: str
    fold: int

    def __str__(self) -> str:
        return f"{self.scheme}, fold {self.fold}"

    @property
    def file_name(self) -> str:
        """Name of a table that belongs to the fold."""
        return f"{self.scheme}-{self.fold}.parquet"


FEATURES = Contract("features", {"pid": Column(pl.String)}, key=("pid",), extra=True)

# Scalars of the network for each post: nullable Float32 columns named <group>.<name> (losses.global,
# logits.own_global, distance.visual_own) and class_unseen.
PROTOTYPE_SCALARS = Contract("prototype scalars", {"pid": Column(pl.String)}, key=("pid",), extra=True)

# The class of each post as the network names classes (`class_name_format`); null for an empty class.
POST_CLASSES = Contract(
    "post classes",
    {"pid": Column(pl.String), "class": Column(pl.String, nullable=True)},
    key=("pid",),
)

# Losses of the network for each post, by which row selection orders train rows; null where a post has no such loss.
CLASS_LOSSES = Contract(
    "class losses",
    {
        "pid": Column(pl.String),
        "global": Column(pl.Float32, nullable=True),  # L_g, Eq 4
        "local": Column(pl.Float32, nullable=True),  # L_o, Eq 5
        "attention": Column(pl.Float32, nullable=True),  # L_c, Eq 7
    },
    key=("pid",),
)

PREDICTIONS = Contract(
    "predictions",
    {
        "pid": Column(pl.String),
        "scheme": Column(pl.String, values=SCHEMES),
        "fold": Column(pl.Int32),
        "seed": Column(pl.Int64),
        "model": Column(pl.String),
        "prediction": Column(pl.Float64),
        "error_scale": Column(pl.Float64, nullable=True),  # expected |label - prediction|; not of baselines
    },
    key=("scheme", "model", "seed", "pid", "fold"),  # a post may be valid in several splits of `forward`
)

# What each member of the stack's trend forecasts at the dates of a split's valid posts.
TRENDS = Contract(
    "trends",
    {
        "scheme": Column(pl.String, values=SCHEMES),
        "fold": Column(pl.Int32),
        "member": Column(pl.String),
        "earlier": Column(pl.Float64),  # share of the valid posts that are not later than the date, 0 to 1
        "posted_at": Column(UTC),
        "value": Column(pl.Float64),  # label units
    },
    key=("scheme", "fold", "member", "earlier"),
)

MEMBER_PREDICTIONS = Contract(
    "member predictions",
    {
        "pid": Column(pl.String),
        "scheme": Column(pl.String, values=SCHEMES),
        "fold": Column(pl.Int32),
        "prediction": Column(pl.Float64),
    },
    key=("scheme", "fold", "pid"),
)

# Predictions of the completed trials of stage `tune`; benchmarks compare rules of choice by them.
TRIAL_PREDICTIONS = Contract(
    "trial predictions",
    {
        "trial": Column(pl.Int64),
        "fold": Column(pl.Int32),  # of scheme `forward`
        "pid": Column(pl.String),
        "prediction": Column(pl.Float64),
    },
    key=("trial", "fold", "pid"),
)

LEVELS = ("category", "subcategory", "concept")  # taxonomy levels of classes, from the top down; columns of POSTS

# Classes of the training posts. The index of a class is its row in the arrays of its level.
CLASSES = Contract(
    "classes",
    {
        "level": Column(pl.String, values=LEVELS),
        "index": Column(pl.Int32),  # 0 ... k - 1 in key order
        "key": Column(pl.String),
        "name": Column(pl.String),  # readable, as in a prompt
        "parent": Column(pl.Int32, nullable=True),  # index in the level above
        "posts": Column(pl.Int64),  # training posts
    },
    key=("level", "index"),
)

# The classes that stage `prototypes` gives to posts that have none of their own; no rows where posts have classes.
CLUSTERS = Contract(
    "clusters",
    {"pid": Column(pl.String), **{level: Column(pl.String) for level in LEVELS}},
    key=("pid",),
)

MODALITIES = ("visual", "text")

MEMBERS = Contract(
    "members",
    {
        "level": Column(pl.String, values=LEVELS),
        "index": Column(pl.Int32),
        "modality": Column(pl.String, values=MODALITIES),
        "pid": Column(pl.String),
    },
    key=("level", "index", "modality", "pid"),
)

# Explains the network's outputs for a post. Classes are those of the second level.
NEAREST = Contract(
    "nearest",
    {
        "pid": Column(pl.String),
        "head": Column(pl.String, values=("visual", "text", "attention")),
        "rank": Column(pl.Int32),  # 0 is the nearest
        "index": Column(pl.Int32),  # of the class
        "key": Column(pl.String),
        # cosine of image or text to the class's prototype (its own class's without the post), or q of Eq 7
        "value": Column(pl.Float32),
    },
    key=("pid", "head", "rank"),
)

ATTENTION = Contract(
    "attention",
    {
        "pid": Column(pl.String),
        "modality": Column(pl.String, values=MODALITIES),  # of the prototype
        "rank": Column(pl.Int32),
        "index": Column(pl.Int32),
        "key": Column(pl.String),
        "weight": Column(pl.Float32),  # attention of the image's token, mean over heads and layers
    },
    key=("pid", "modality", "rank"),
)

# Sums of that attention; the columns add up to 1.
ATTENTION_MASS = Contract(
    "attention mass",
    {
        "pid": Column(pl.String),
        "image": Column(pl.Float32),  # on the image itself
        "visual": Column(pl.Float32),  # on the prototypes of the second level
        "text": Column(pl.Float32),
        "other_levels": Column(pl.Float32),
    },
    key=("pid",),
)

QUARANTINE = Contract(
    "quarantine",
    {
        "file": Column(pl.String),
        "row": Column(pl.Int64),
        "pid": Column(pl.String),
        "field": Column(pl.String),
        "value": Column(pl.String, nullable=True),  # its first 80 characters
        "reason": Column(pl.String),
        "action": Column(pl.String),  # "row dropped", "set to null", ...
    },
    key=("file", "row", "field"),
)


def class_key(*names: str) -> str:
    r"""The key of a class: the names on its path joined by '/', with '/' and '\' in names escaped.

    >>> class_key("Food", "Sea/Lake")
    'Food/Sea\\/Lake'
    """
    return "/".join(name.replace("\\", "\\\\").replace("/", "\\/") for name in names)


# The classes of every post of a table without classes: its network learns clusters (prototypes/clusters.py).
UNCLASSIFIED = {level: class_key(*["posts"] * (depth + 1)) for depth, level in enumerate(LEVELS)}


def is_unclassified(posts: pl.DataFrame) -> bool:
    """True if the posts (contract POSTS) have no classes of their own."""
    return bool((posts["concept"] == UNCLASSIFIED["concept"]).all())


def unclassified(posts: pl.DataFrame) -> pl.DataFrame:
    """`posts` (contract POSTS) as posts that have no classes of their own."""
    return posts.with_columns(pl.lit(key).alias(level) for level, key in UNCLASSIFIED.items())


def class_names(key: str) -> tuple[str, ...]:
    r"""The names on the path that `class_key` joined.

    >>> class_names("Food/Sea\\/Lake")
    ('Food', 'Sea/Lake')
    """
    parts = re.findall(r"(?:^|/)((?:\\.|[^/\\])*)", key, flags=re.DOTALL)
    return tuple(re.sub(r"\\(.)", r"\1", part, flags=re.DOTALL) for part in parts)


def empty_table(contract: Contract) -> pl.DataFrame:
    """A table of the contract with no rows."""
    return pl.DataFrame(schema={name: column.dtype for name, column in contract.columns.items()})


def check_table(frame: pl.DataFrame, contract: Contract) -> None:
    """Checks columns, types, nulls, values, unique key, finite numbers, and that the rows are sorted by the key.

    Raises:
        ContractError: `frame` breaks `contract`.
    """
    name, columns = contract.name, list(contract.columns)
    listed = frame.columns[: len(columns)] if contract.extra else frame.columns
    if listed != columns:
        raise ContractError(f"{name}: expected columns {columns}, found {frame.columns}")
    for column, rule in contract.columns.items():
        series = frame[column]
        if series.dtype != rule.dtype:
            raise ContractError(f"{name}.{column}: expected {rule.dtype}, found {series.dtype}")
        if not rule.nullable and series.null_count():
            raise ContractError(f"{name}.{column}: {series.null_count()} nulls, none allowed")
        if rule.values is not None and not series.drop_nulls().is_in(rule.values).all():
            raise ContractError(f"{name}.{column}: expected one of {rule.values}, found {series.unique().to_list()}")
    for series in frame:
        if series.dtype.is_float() and not series.drop_nulls().is_finite().all():
            raise ContractError(f"{name}.{series.name}: NaN or infinity; a missing value is null")
    key = frame.select(contract.key)
    if _is_sorted_and_unique(key):
        return
    if key.is_duplicated().any():
        twice = key.filter(key.is_duplicated()).row(0)
        raise ContractError(f"{name}: {contract.key} must be unique, {twice} occurs more than once")
    if not key.equals(key.sort(contract.key)):
        raise ContractError(f"{name}: rows must be sorted by {contract.key}")


def _is_sorted_and_unique(key: pl.DataFrame) -> bool:
    """True if each row of `key` is greater than the row before, nulls first."""
    later: pl.Expr = pl.lit(False)
    for name in reversed(key.columns):
        before, here = pl.col(name).shift(1), pl.col(name)
        # Null where exactly one of the two is null: a null is less than a value.
        less = (before < here).fill_null(before.is_null() & here.is_not_null())
        later = less | (before.eq_missing(here) & later)
    return key.height < 2 or bool(key.select(later.slice(1).all()).item())


def write_table(frame: pl.DataFrame, path: Path, contract: Contract) -> None:
    """Sorts by the contract's key, checks, and writes parquet atomically; equal tables give equal bytes.

    A table that is already sorted and in one piece is not copied.
    """
    missing = [name for name in contract.key if name not in frame.columns]
    sorted_already = not missing and _is_sorted_and_unique(frame.select(contract.key))
    frame = frame.rechunk() if sorted_already else frame.sort(contract.key)
    check_table(frame, contract)
    with atomic_path(path) as partial:
        frame.write_parquet(partial, compression="zstd", statistics=False)


def read_table(path: Path, contract: Contract) -> pl.DataFrame:
    """A table that a stage wrote.

    Raises:
        ContractError: the file is damaged or breaks the contract.
    """
    with reading(path, pl.exceptions.PolarsError):
        frame = pl.read_parquet(path)
    try:
        check_table(frame, contract)
    except ContractError as error:
        raise ContractError(f"{path}: {error}") from None
    return frame
