"""The text model of every fold: what it says of the scored rows; and the model of `final`, for later posts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import polars as pl
import torch
from tqdm import tqdm

from popularity.core.contracts import TEXT_PREDICTIONS, FoldKey, empty_table, read_table, write_table
from popularity.core.parallel import ordered_map, torch_threads
from popularity.encoders.text import EmbedTextParams
from popularity.text_model.model import TextModelParams, fit
from popularity.validation import rows_of
from popularity.validation.folds import load_fold

FINAL = "refit"


def fit_folds(
    posts: pl.DataFrame,
    splits: pl.DataFrame,
    features: Path,
    encoder: EmbedTextParams,
    params: TextModelParams,
    schemes: Sequence[str],
    *,
    state: Path,
    model: Path,
) -> pl.DataFrame:
    """What the models say of every fold's scored rows (contract TEXT_PREDICTIONS); empty without epochs.

    Args:
        posts: contract POSTS.
        splits: contract FOLDS.
        features: folder that featurize wrote.
        encoder: section embed_text.
        params: section text_model.
        schemes: beside `final`.
        state: finished folds are kept there and not fitted again.
        model: file of the model of `final`.
    """
    if not params.epochs:
        return empty_table(TEXT_PREDICTIONS)
    folds = list(rows_of(splits, [*schemes, FINAL]))
    work = partial(_predictions, posts, features, encoder, params, state, model)
    parallel = 1 if torch.cuda.is_available() else params.parallel_folds
    done = ordered_map(work, folds, parallel=parallel, threads=params.num_threads)
    found: pl.DataFrame = pl.concat(tqdm(done, "text model", len(folds), unit="fold"))
    return found.sort(TEXT_PREDICTIONS.key)


def _predictions(
    posts: pl.DataFrame,
    features: Path,
    encoder: EmbedTextParams,
    params: TextModelParams,
    state: Path,
    model: Path,
    task: tuple[FoldKey, pl.DataFrame],
) -> pl.DataFrame:
    """Contract TEXT_PREDICTIONS, of one fold."""
    key, rows = task
    finished = state / key.file_name
    if not finished.exists():
        data = load_fold(key, rows, posts, features)
        with torch_threads(params.num_threads):
            fitted = fit(data.fit, data.label, data.posted_at, encoder, params)
            predicted = fitted.predict(data.score, data.scored_at)
        told = data.score.select("pid", scheme=pl.lit(key.scheme), fold=pl.lit(key.fold, pl.Int32)).with_columns(
            prediction=pl.Series(predicted, dtype=pl.Float64)
        )
        if key.scheme == FINAL:
            fitted.save(model)
        write_table(told, finished, TEXT_PREDICTIONS)
    return read_table(finished, TEXT_PREDICTIONS)
