"""All feature sets of all schemes, written by their join key.

row.parquet      pid                            one row a post
context.parquet  scheme, repeat, pid            the rows that the scheme shows
label.parquet    scheme, repeat, fold, pid      fit and score rows of each fold

Beside them text_components.parquet: what the text components of `final` are made of, for posts that come later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

import polars as pl
from pydantic import Field
from tqdm import tqdm

from popularity.config import Section
from popularity.features.context import TEXT_COMPONENTS, TextReducer, context_features, count_features
from popularity.features.label import label_features
from popularity.features.row import row_features
from popularity.schema import FEATURES, FOLDS, SCHEMES, Column, Contract, read_table, write_table

HistoryKey = Literal["uid", "category", "subcategory", "concept"]

CONTEXT = Contract(
    "context features",
    {"scheme": FOLDS.columns["scheme"], "repeat": Column(pl.Int32), "pid": Column(pl.String)},
    key=("scheme", "repeat", "pid"),
    extra=True,
)
LABEL = Contract(
    "label features",
    {
        "scheme": FOLDS.columns["scheme"],
        "repeat": Column(pl.Int32),
        "fold": Column(pl.Int32),
        "pid": Column(pl.String),
    },
    key=FOLDS.key,
    extra=True,
)


@dataclass(frozen=True)
class FeaturizeParams(Section):
    seed: int
    text_components: Annotated[int, Field(ge=0)]
    history: tuple[HistoryKey, ...]
    history_prior: Annotated[float, Field(gt=0)]


def featurize(
    posts: pl.DataFrame, images: pl.DataFrame, splits: pl.DataFrame, params: FeaturizeParams, out: Path
) -> None:
    """Computes every feature set and writes it into the folder `out`."""
    write_table(row_features(posts.lazy(), images.lazy()).collect(), out / "row.parquet", FEATURES)
    shown: dict[tuple[str, ...], tuple[pl.DataFrame, TextReducer]] = {}
    context: list[pl.DataFrame] = []
    label: list[pl.DataFrame] = []
    horizon = _scored_span(posts, splits)
    for (scheme, repeat), rows in tqdm(list(_by_scheme(splits)), desc="features by scheme", unit="scheme"):
        visible = rows.filter(pl.col("role") != "dropped").select("pid").unique().sort("pid")
        key = tuple(visible["pid"])
        if key not in shown:  # the folds by user and at random show the same rows
            frame = visible.join(posts, on="pid", how="left", validate="1:1")
            text = TextReducer.fit(frame, params.text_components, params.seed)
            shown[key] = context_features(frame, text), text
        features, text = shown[key]
        context.append(_keyed(features, scheme=scheme, repeat=repeat))
        if scheme == "final":
            write_table(text.table, out / "text_components.parquet", TEXT_COMPONENTS)
        if params.history:
            for (fold,), part in rows.filter(pl.col("role") != "dropped").group_by("fold", maintain_order=True):
                features = _label_features(part, posts, params, horizon)
                label.append(_keyed(features, scheme=scheme, repeat=repeat, fold=int(str(fold))))
    write_table(pl.concat(context, how="diagonal"), out / "context.parquet", CONTEXT)
    if label:
        write_table(pl.concat(label, how="diagonal"), out / "label.parquet", LABEL)


def further_features(
    posts: pl.DataFrame,
    images: pl.DataFrame,
    splits: pl.DataFrame,
    known: pl.DataFrame,
    params: FeaturizeParams,
    folder: Path,
) -> pl.DataFrame:
    """(pid, all features) of `posts`, as `featurize` gives them to scored rows of `final`, sorted by pid.

    The text components are those of the last run: a basis fitted anew, be it with one post more, is another one.

    Args:
        posts: contract POSTS, posts that come to the test part.
        images: contract IMAGES, of the same posts.
        splits: contract FOLDS, of the posts `known`.
        known: contract POSTS.
        params: section featurize.
        folder: that `featurize` wrote.
    """
    both = pl.concat([known, posts])
    shown = splits.filter((pl.col("scheme") == "final") & (pl.col("role") != "dropped")).select("pid", "role")
    rows = pl.concat([shown, posts.select("pid", role=pl.lit("score"))])
    text = TextReducer(read_table(folder / "text_components.parquet", TEXT_COMPONENTS))
    sets = [count_features(rows.select("pid").join(both, on="pid", how="left", validate="1:1")), text.apply(posts)]
    if params.history:
        # A post that comes later does not move the cut at which the histories of others end.
        timed_by = shown.join(known.select("pid", "posted_at"), on="pid", how="left", validate="1:1")
        sets.append(_label_features(rows, both, params, _scored_span(known, splits), timed_by))
    table = row_features(posts.lazy(), images.lazy()).collect()
    for features in sets:
        table = table.join(features, on="pid", how="left", validate="1:1")
    return table.sort("pid")


def read_features(folder: Path, scheme: str, repeat: int, fold: int, pids: pl.DataFrame) -> pl.DataFrame:
    """(pid, all features) for the posts `pids` (column pid) of one fold, sorted by pid."""
    table = pids.select("pid").join(read_table(folder / "row.parquet", FEATURES), on="pid", how="left", validate="1:1")
    context = pl.scan_parquet(folder / "context.parquet").filter(
        (pl.col("scheme") == scheme) & (pl.col("repeat") == repeat)
    )
    table = table.join(context.drop("scheme", "repeat").collect(), on="pid", how="left", validate="1:1")
    if (folder / "label.parquet").exists():
        label = pl.scan_parquet(folder / "label.parquet").filter(
            (pl.col("scheme") == scheme) & (pl.col("repeat") == repeat) & (pl.col("fold") == fold)
        )
        table = table.join(label.drop("scheme", "repeat", "fold").collect(), on="pid", how="left", validate="1:1")
    return table.sort("pid")


def _label_features(
    rows: pl.DataFrame,
    posts: pl.DataFrame,
    params: FeaturizeParams,
    horizon: timedelta,
    timed_by: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """The histories of `rows` (pid, role), the fit and score rows of one fold."""
    facts = posts.select("pid", "posted_at", "label", *params.history)
    frame = rows.select("pid", "role").join(facts, on="pid", how="left", validate="1:1")
    return label_features(frame, params.history, params.history_prior, horizon, timed_by)


def _by_scheme(splits: pl.DataFrame) -> Iterator[tuple[tuple[str, int], pl.DataFrame]]:
    for scheme in SCHEMES:
        rows = splits.filter(pl.col("scheme") == scheme)
        for (repeat,), part in rows.group_by("repeat", maintain_order=True):
            yield (scheme, int(str(repeat))), part


def _keyed(frame: pl.DataFrame, *, scheme: str, repeat: int, fold: int | None = None) -> pl.DataFrame:
    """`frame` with its scheme, repeat and fold in front."""
    keys = [pl.lit(scheme).alias("scheme"), pl.lit(repeat, pl.Int32).alias("repeat")]
    if fold is not None:
        keys.append(pl.lit(fold, pl.Int32).alias("fold"))
    return frame.select(*keys, pl.all())


def _scored_span(posts: pl.DataFrame, splits: pl.DataFrame) -> timedelta:
    """Length of the span that `matched` scores: the horizon of blocks where fit and score rows interleave.

    Taken from `matched` because its scored rows are shown in the schemes that interleave; rows of `report` are not.
    """
    scored = splits.filter((pl.col("scheme") == "matched") & (pl.col("role") == "score")).select("pid").unique()
    times = scored.join(posts.select("pid", "posted_at"), on="pid", how="left", validate="1:1")
    span: timedelta = times.select(pl.col("posted_at").max() - pl.col("posted_at").min()).item()
    return max(span, timedelta(days=1))
