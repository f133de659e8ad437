"""Computes all feature tables of all schemes, each (pid, features).

row.parquet                      one row a post
context/<scheme>.parquet         train and valid rows, if they are the same posts in every fold of the scheme; else
context/<scheme>-<fold>.parquet  those of the fold
label/<scheme>-<fold>.parquet    train and valid rows of the fold
text_components.parquet          the fitted text components of `refit`, for later posts

Each table is written as soon as it is computed, so that one fold at a time is in memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

import polars as pl
from pydantic import Field
from tqdm import tqdm

from popularity.core.as_of import as_of_dates, interleaved_horizon
from popularity.core.config import Section
from popularity.core.contracts import FEATURES, FURTHER, REFIT, SCHEMES, FoldKey, read_table, write_table
from popularity.core.outliers import clipped_labels
from popularity.features.context import context_features, count_features
from popularity.features.groups import label_groups
from popularity.features.past_labels import SOURCES, code_names
from popularity.features.rows import join_by_pid, row_features
from popularity.features.tables import common_name, read_context
from popularity.features.target_statistics import target_statistics
from popularity.features.text_components import TEXT_COMPONENTS, TextReducer
from popularity.features.user_text import known_user_text, no_users, user_text_features

ROW_TABLE = "row.parquet"
StatisticsKey = Literal["uid", "category", "subcategory", "concept"]


@dataclass(frozen=True)
class FeaturizeParams(Section):
    """Section `featurize` of params.yaml.

    Args:
        seed: of the text components.
        n_text_components: columns at most, of the texts of posts and of those of users; 0 for none.
        target_statistics: the keys whose past labels become features.
        target_statistics_prior: posts' worth of the overall mean that a shrunk mean starts from.
    """

    seed: int
    n_text_components: Annotated[int, Field(ge=0)]
    target_statistics: tuple[StatisticsKey, ...]
    target_statistics_prior: Annotated[float, Field(gt=0)]


def featurize(
    posts: pl.DataFrame,
    images: pl.DataFrame,
    splits: pl.DataFrame,
    params: FeaturizeParams,
    out: Path,
    users: pl.DataFrame | None = None,
) -> None:
    """Writes every feature table into a folder.

    Args:
        posts: contract POSTS.
        images: contract IMAGES.
        splits: contract FOLDS.
        params: section featurize.
        out: the folder.
        users: contract USERS, if the data set has vectors of users' descriptions.
    """
    write_table(row_features(posts.lazy(), images.lazy()).collect(), out / ROW_TABLE, FEATURES)
    _write_context(posts, no_users() if users is None else users, splits, params, out)
    _write_labels(posts, splits, params, out / "label")


def add_columns(columns: pl.DataFrame, out: Path) -> None:
    """Adds the further columns of a user's own table to the row features.

    Args:
        columns: contract COLUMNS.
        out: the folder that `featurize` wrote.
    """
    if columns.width > 1:
        table = read_table(out / ROW_TABLE, FEATURES)
        write_table(join_by_pid(table, columns), out / ROW_TABLE, FEATURES)


def _without_columns(table: pl.DataFrame, folder: Path) -> pl.DataFrame:
    """`table` with the further columns of the stored posts, all null: later posts say nothing of them."""
    stored = pl.read_parquet_schema(folder / ROW_TABLE)
    return table.with_columns(
        pl.lit(None).cast(dtype).alias(name) for name, dtype in stored.items() if name.startswith(FURTHER)
    )


def _write_context(
    posts: pl.DataFrame, users: pl.DataFrame, splits: pl.DataFrame, params: FeaturizeParams, out: Path
) -> None:
    """Context features of each distinct set of train and valid rows, and the text components of `refit`."""
    written: list[tuple[pl.Series, Path, TextReducer]] = []
    (out / "context").mkdir(exist_ok=True)
    for scheme, folds in _by_scheme(splits, "context"):
        # The folds of `group` and `random` have the same posts, the splits of `forward` have not.
        same = all(rows["pid"].equals(folds[0]["pid"]) for rows in folds)
        for rows in folds[:1] if same else folds:
            path = out / "context" / (common_name(scheme) if same else _key_of(rows).file_name)
            known = next((each for each in written if each[0].equals(rows["pid"])), None)
            if known is None:
                frame = rows.select("pid").join(posts, on="pid", how="left", validate="1:1")
                text = TextReducer.fit(frame, params.n_text_components, params.seed)
                user_text = user_text_features(frame, users, params.n_text_components, params.seed)
                write_table(join_by_pid(context_features(frame, text), user_text), path, FEATURES)
                written.append((rows["pid"], path, text))
            else:
                _, first, text = known
                shutil.copyfile(first, path)
            if scheme == REFIT:
                write_table(text.table, out / "text_components.parquet", TEXT_COMPONENTS)


def _write_labels(posts: pl.DataFrame, splits: pl.DataFrame, params: FeaturizeParams, folder: Path) -> None:
    """Label features of each fold."""
    horizon, inputs = interleaved_horizon(posts, splits), label_inputs(posts)
    folder.mkdir(exist_ok=True)
    for _, folds in _by_scheme(splits, "label"):
        for rows in folds:
            features = fold_label_features(rows, inputs, params, horizon)
            write_table(features, folder / _key_of(rows).file_name, FEATURES)


def further_features(
    posts: pl.DataFrame,
    images: pl.DataFrame,
    splits: pl.DataFrame,
    known: pl.DataFrame,
    params: FeaturizeParams,
    folder: Path,
) -> pl.DataFrame:
    """Returns (pid, all features) of later posts, as for valid rows of `refit`, sorted by pid.

    The text components are those of the last run, because a fit with one post more gives other components. So are the
    columns `user_text`; a user without a stored post has none.

    Args:
        posts: contract POSTS, posts that are not in the data set.
        images: contract IMAGES, of the same posts.
        splits: contract FOLDS, of the posts `known`.
        known: contract POSTS.
        params: section featurize.
        folder: that `featurize` wrote.
    """
    both = pl.concat([known, posts])
    known_rows = splits.filter((pl.col("scheme") == REFIT) & (pl.col("role") != "excluded")).select("pid", "role")
    rows = pl.concat([known_rows, posts.select("pid", role=pl.lit("valid"))])
    text = TextReducer(read_table(folder / "text_components.parquet", TEXT_COMPONENTS))
    tables = [count_features(rows.select("pid").join(both, on="pid", how="left", validate="1:1")), text.apply(posts)]
    tables.append(known_user_text(posts, known, read_context(folder, FoldKey(REFIT, 0))))
    # A later post does not move the origin, at which the pasts of others end.
    timed_by = known_rows.join(known.select("pid", "posted_at"), on="pid", how="left", validate="1:1")
    horizon = interleaved_horizon(known, splits)
    tables.append(fold_label_features(rows, label_inputs(both), params, horizon, timed_by, posts["pid"]))
    table = _without_columns(row_features(posts.lazy(), images.lazy()).collect(), folder)
    for features in tables:
        table = join_by_pid(table, features)
    return table.sort("pid")


def count_each_alone(
    features: pl.DataFrame, posts: pl.DataFrame, splits: pl.DataFrame, known: pl.DataFrame
) -> pl.DataFrame:
    """Returns `features` with counts as if each of the later posts were the only one; nothing else sees the others.

    Args:
        features: of `further_features`.
        posts: contract POSTS, the same posts.
        splits: contract FOLDS, of the posts `known`.
        known: contract POSTS.
    """
    rows = splits.filter((pl.col("scheme") == REFIT) & (pl.col("role") != "excluded")).select("pid")
    stored = rows.join(known, on="pid", how="left", validate="1:1")
    counts = [count_features(pl.concat([stored, own])).filter(pid=own["pid"][0]) for own in posts.iter_slices(1)]
    return features.update(pl.concat(counts), on="pid", include_nulls=True)


def label_inputs(posts: pl.DataFrame) -> pl.DataFrame:
    """Returns the columns of `posts` that `fold_label_features` reads, with names as numbers."""
    return code_names(posts.select("pid", "posted_at", "label", *SOURCES))


def fold_label_features(
    rows: pl.DataFrame,
    inputs: pl.DataFrame,
    params: FeaturizeParams,
    horizon: timedelta,
    timed_by: pl.DataFrame | None = None,
    pids: pl.Series | None = None,
) -> pl.DataFrame:
    """Returns (pid, target statistics, groups from labels) of the train and valid rows of one fold.

    Args:
        rows: (pid, role).
        inputs: of `label_inputs`.
        params: section featurize.
        horizon: length of a block where train and valid rows interleave.
        timed_by: see `as_of_dates`.
        pids: the rows that are wanted; None for all.
    """
    frame = rows.select("pid", "role").join(inputs, on="pid", how="left", validate="1:1")
    is_train = (frame["role"] == "train") & frame["label"].is_not_null()
    clipped = pl.Series(clipped_labels(frame["label"].filter(is_train).to_numpy()))
    frame = frame.with_columns(label=frame["label"].scatter(is_train.arg_true(), clipped))
    statistics = target_statistics(frame, params.target_statistics, params.target_statistics_prior, horizon, timed_by)
    dated = join_by_pid(frame, as_of_dates(frame, horizon, timed_by))
    if pids is not None:
        statistics = statistics.filter(pl.col("pid").is_in(pids.implode()))
    return join_by_pid(statistics, label_groups(dated, params.target_statistics_prior, pids))


def _by_scheme(splits: pl.DataFrame, kind: str) -> Iterator[tuple[str, list[pl.DataFrame]]]:
    """Yields (scheme, the train and valid rows of each fold, sorted by pid); `kind` names the progress bar."""
    schemes = splits["scheme"].unique().to_list()
    for scheme in tqdm(sorted(schemes, key=SCHEMES.index), desc=f"{kind} features by scheme", unit="scheme"):
        rows = splits.filter((pl.col("scheme") == scheme) & (pl.col("role") != "excluded"))
        yield scheme, rows.sort("fold", "pid").partition_by("fold", maintain_order=True)


def _key_of(rows: pl.DataFrame) -> FoldKey:
    """The key of a fold's rows (contract FOLDS)."""
    return FoldKey(str(rows["scheme"][0]), int(rows["fold"][0]))
